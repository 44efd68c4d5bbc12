"""What is kept of each picture when it is first looked at: its frame, or the place where its file lies.

``data.cache`` names the one that is wanted; ``auto`` takes arrays where the disk has room for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

from edgekiln.pipeline.capacity import describe_bytes, free_disk_bytes
from edgekiln.pipeline.data.arrays import ArrayWriter, array_bytes, no_space
from edgekiln.pipeline.data.labelled import SPLITS, Sample, SplitName
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.image import Frame, Picture, check_encoded, prepare

__all__ = ["PICTURES_NAME", "PREPARATION_NAME", "Keeper", "array_file", "choose_keeper"]

PREPARATION_NAME = "preparation.json"
PICTURES_NAME = "pictures.local.json"
_DISK_MARGIN = (
    10**9
)  # that data.cache = "auto" keeps free: checkpoints, graphs and reports come after the arrays


def array_file(folder: Path, name: SplitName) -> Path:
    """Where the frames of a split lie, if there are any."""
    return folder / f"{name}.npy"


class Keeper(Protocol):
    """A cache: what is done with a picture when it is looked at, and what is kept of it."""

    def look(self, picture: Picture) -> Frame | None:
        """Called in threads. Raises ImageError where the picture cannot be used."""

    def open_split(
        self, name: SplitName, capacity: int
    ) -> AbstractContextManager[Callable[[Sample, Frame | None], None]]:
        """Gives the function that keeps one picture of the split."""

    def finish(self) -> None:
        """All splits are kept."""

    def discard(self) -> None:
        """Take away what was kept."""


class _ArrayKeeper:
    """Every picture is decoded once, and its frame kept."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        self._folder, self._contract = folder, contract

    def look(self, picture: Picture) -> Frame | None:
        return prepare(picture, self._contract)

    @contextmanager
    def open_split(self, name: SplitName, capacity: int) -> Iterator[Callable[[Sample, Frame | None], None]]:
        with ArrayWriter(array_file(self._folder, name), capacity, self._contract) as writer:

            def keep(_: Sample, frame: Frame | None) -> None:
                assert frame is not None  # ``look`` gives one
                writer.add(frame)

            yield keep

    def finish(self) -> None:
        pass

    def discard(self) -> None:
        for name in SPLITS:
            array_file(self._folder, name).unlink(missing_ok=True)


class _FileKeeper:
    """Every picture is read and checked, and its place kept."""

    def __init__(self, folder: Path, contract: Contract, *, whole: bool) -> None:
        self._folder, self._contract, self._whole = folder, contract, whole
        self._files: dict[str, list[str]] = {}

    def look(self, picture: Picture) -> Frame | None:
        if self._whole:  # the frame is not kept: it tells equal pictures apart from others
            return prepare(picture, self._contract)
        check_encoded(cast("bytes", picture), self._contract, whole=False)
        return None

    @contextmanager
    def open_split(self, name: SplitName, capacity: int) -> Iterator[Callable[[Sample, Frame | None], None]]:
        files = self._files[name] = []

        def keep(sample: Sample, _: Frame | None) -> None:
            files.append(str(Path(cast("str", sample.picture)).absolute()))

        yield keep

    def finish(self) -> None:
        root = os.path.commonpath(
            {file.rpartition("/")[0] or "/" for part in self._files.values() for file in part}
        )
        relative = {
            name: [file.removeprefix(root).lstrip("/") for file in part] for name, part in self._files.items()
        }
        # Names that are no UTF-8 are kept as escaped halves of surrogate pairs, which json reads back as they were.
        text = json.dumps({"root": root, "files": relative}, indent=1)
        (self._folder / PICTURES_NAME).write_text(text, "ascii")
        about = {"contract": self._contract.to_json(), "Pillow": version("Pillow")}
        (self._folder / PREPARATION_NAME).write_text(json.dumps(about, indent=1), "utf-8")

    def discard(self) -> None:
        pass


def choose_keeper(
    settings: DataSettings,
    samples: Mapping[SplitName, Sequence[Sample]],
    contract: Contract,
    folder: Path,
    message: Callable[[str], None],
) -> Keeper:
    """The cache that the settings ask for, or for ``auto`` the one that the disk has room for."""
    pictures = sum(len(part) for part in samples.values())
    on_files = all(isinstance(s.picture, str | os.PathLike) for part in samples.values() for s in part)
    need, free = array_bytes(pictures, contract), free_disk_bytes(folder)
    told = f"{pictures} pictures as arrays are {describe_bytes(need)}, {describe_bytes(free)} are free"
    if settings.cache == "none" and not on_files:
        raise DataError(
            f"data.cache = 'none' decodes files when they are used; {settings.source} gives pictures without files.",
            hint="Set data.cache = 'auto' or 'disk'.",
        )
    crowded = need + _DISK_MARGIN > free
    if settings.cache == "none" or (settings.cache == "auto" and on_files and crowded):
        why = "" if settings.cache == "none" else f", and {describe_bytes(_DISK_MARGIN)} are to stay so"
        message(f"  cache: none, pictures are decoded when they are used ({told}{why})")
        return _FileKeeper(folder, contract, whole=settings.check == "whole")
    if need > free:
        raise no_space(folder, need, pictures, on_files=on_files)
    message(f"  cache: {'memory' if settings.cache == 'memory' else 'disk'} ({told})")
    return _ArrayKeeper(folder, contract)
