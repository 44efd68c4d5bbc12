"""Which data set a run's folder belongs to, so that another one of the same name does not take its place.

A data set is the same while it lies in the same place, or while most of its pictures are those that are remembered,
by name and size: it may be moved, and it may grow. Knows no pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekiln.runtime.errors import UsageError

__all__ = ["DataMemory", "check_data", "keep_data", "remember_data"]

_NAME = "data.json"
_REMEMBERED = 64  # pictures, evenly spaced over the data set
_SAME = 0.5  # share of them that must be found again


@dataclass(frozen=True, slots=True)
class DataMemory:
    """What a data set is known by.

    Attributes:
        source: ``data.source``.
        place: absolute path; ``None`` where the source has none.
        sizes: bytes by key of some pictures; none where they are no files.
        files: by key, all pictures of the data set that is at hand; not written.
    """

    source: str
    place: str | None
    sizes: dict[str, int]
    files: dict[str, str]


def remember_data(
    source: str, place: str | None, files: Sequence[tuple[str, str | os.PathLike[str]]]
) -> DataMemory:
    """The memory of a data set whose pictures are these (key, path)."""
    step = max(1, len(files) // _REMEMBERED)
    paths = {key: os.fspath(path) for key, path in files}
    sizes = {key: size for key, path in files[::step] if (size := _size(path)) is not None}
    return DataMemory(source, place, sizes, paths)


def check_data(folder: Path, now: DataMemory) -> None:
    """Compare with what a run's folder belongs to; it may belong to nothing yet.

    Raises:
        UsageError: it belongs to another data set.
    """
    before = _read(folder)
    if before is None or (before.source, before.place) == (now.source, now.place):
        return
    found = sum(_size(now.files.get(key)) == size for key, size in before.sizes.items())
    if before.sizes and found >= _SAME * len(before.sizes):
        return
    raise UsageError(
        f"{folder} belongs to another data set, {before.place or before.source}; this one is "
        f"{now.place or now.source}. Its bundle would be replaced.",
        hint="Give the recipe another name, or the run another folder with --runs; if it is the same data in a new "
        f"form, remove {folder / _NAME}.",
        path=folder,
    )


def keep_data(folder: Path, now: DataMemory) -> None:
    """Write which data set a run's folder belongs to."""
    values = {key: value for key, value in asdict(now).items() if key != "files"}
    text = json.dumps(values, indent=1, sort_keys=True)
    file = folder / _NAME
    if not file.exists() or file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")


def _read(folder: Path) -> DataMemory | None:
    try:
        values = json.loads((folder / _NAME).read_text("utf-8"))
        return DataMemory(values["source"], values["place"], dict(values["sizes"]), {})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never written, or changed by hand


def _size(path: str | os.PathLike[str] | None) -> int | None:
    try:
        return None if path is None else os.stat(path).st_size  # noqa: PTH116 # of 100,000 files: a Path each costs as much
    except OSError:
        return None
