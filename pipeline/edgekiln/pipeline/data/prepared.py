"""Splits made ready: which pictures are in which, and their frames as arrays on disk, or as files to decode later.

``index.json`` is the same for both. Arrays are ``train.npy``, ``val.npy`` and ``test.npy``, uint8 (N, H, W, 3).
Without them ``preparation.json`` says how a picture becomes a frame, and ``pictures.local.json`` where each lies: the
one file here that is true on this machine alone, so a stage's digest leaves it out. This module knows no network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.capacity import describe_bytes
from edgekiln.pipeline.data.arrays import array_bytes, fits_memory, map_array, read_array
from edgekiln.pipeline.data.caching import PICTURES_NAME, PREPARATION_NAME, Keeper, array_file, choose_keeper
from edgekiln.pipeline.data.labelled import SPLITS, LabelledImages, Sample, SplitName, split_samples
from edgekiln.pipeline.data.leaks import (
    LeakPolicy,
    Looked,
    Sorter,
    check_leaks,
    find_near_copies,
    print_frame,
)
from edgekiln.pipeline.data.listing import read_source
from edgekiln.pipeline.data.loading import map_ahead
from edgekiln.pipeline.data.picture_frames import PictureFrames
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract, Normalization
from edgekiln.runtime.errors import DataError, ImageError
from edgekiln.runtime.pictures.encoded import read_encoded
from edgekiln.runtime.pictures.image import Frame, Picture

__all__ = [
    "INDEX_NAME",
    "PreparedSplit",
    "describe_unjudged",
    "hold_in_memory",
    "identity_file",
    "load_split",
    "make_contract",
    "prepare_splits",
    "read_classes",
    "read_observed",
]

INDEX_NAME = "index.json"
OBSERVED_NAME = "observed.local.json"
_MOST_PAIRS = 1000  # near copies that are kept; all are counted
_CHUNK = 8  # pictures that a thread takes at a time
_AHEAD_PICTURES, _AHEAD_BYTES = 512, 2**28  # under way between the threads and the writer, at most


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One split, ready to train or judge on.

    Attributes:
        frames: uint8 (N, H, W, 3): memory-mapped, in memory, or (``PictureFrames``) decoded when they are read. All
            three are read the same way; what needs a plain array takes ``np.array(frames[chosen])``.
        labels: int64 (N,).
        keys: name of each picture, for messages and reports.
        sha256: of each picture's bytes.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: tuple[str, ...]
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def make_contract(
    settings: DataSettings, classes: Sequence[str], normalization: Normalization = SHARED_NORMALIZATION
) -> Contract:
    """The contract that a recipe's data section describes."""
    return Contract(
        height=settings.size,
        width=settings.size,
        resize=settings.resize,
        shorter_side=settings.shorter_side,
        interpolation=settings.interpolation,
        normalization=normalization,
        classes=tuple(classes),
        sensor_bits=settings.sensor_bits,
    )


def prepare_splits(
    settings: DataSettings,
    *,
    seed: int,
    folder: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make ``train``, ``val`` and ``test`` ready in ``folder`` as the module says; returns the index.

    Where the same pixels stand in several splits, ``data.leaks`` decides. ``move`` keeps them in the one that judges
    (test before val before train), and once there, so that test is the same for every share and seed of train. The
    index names what was left out or is unreadable, and pixels under two labels; ``OBSERVED_NAME`` what changes nothing.

    Args:
        settings: the source, how its pictures are prepared, and ``cache``.
        seed: of the split.
        folder: empty, or with what an interrupted call left.
        advance: told of pictures as ``advance(done, total)``.
        message: told in a line which cache was taken, and why.

    Raises:
        DataError: the source is unusable, too many pictures are unreadable, or equal pixels may not be moved.
        ResourceError: the arrays do not fit on the disk. No part of them is left.
    """
    images = read_source(settings)
    samples = _split(images, settings, seed)
    contract = make_contract(settings, images.classes)
    keeper = choose_keeper(settings, samples, contract, folder, message)
    sorter = Sorter(sum(len(part) for part in samples.values()), advance, LeakPolicy.of(settings, images))
    # What was left out stands in a file that no digest holds. The empty list keeps the digests of earlier versions.
    index: dict[str, Any] = {"classes": list(images.classes), "ignored": [], "splits": {}}
    try:
        index["splits"] = _sort_splits(samples, keeper, sorter, contract)
        _check_unreadable(sorter.unreadable, sorter.total, settings)
        check_leaks(sorter.refused, settings)
        index |= sorter.left_out()
        _check_after_decoding(index)
    except BaseException:
        keeper.discard()  # gigabytes of no use; a full disk would stay full
        raise
    index["unjudged"] = _find_unjudged(index)
    keeper.finish()
    return _write_index(folder, index, _observe(images, sorter))


def _write_index(folder: Path, index: dict[str, Any], observed: dict[str, Any]) -> dict[str, Any]:
    for name, values in ((INDEX_NAME, index), (OBSERVED_NAME, observed)):
        (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")
    return index | observed


def _observe(images: LabelledImages, sorter: Sorter) -> dict[str, Any]:
    """What people should know and nothing depends on: names that were left out, copies that stay where they are."""
    observed: dict[str, Any] = {
        "ignored": list(images.ignored),
        "notices": list(images.notices),
        "allowed": sorter.allowed,
        "near_copies": None,
        "levels": sorter.levels,
    }
    if not sorter.without_pixels:
        near = find_near_copies(sorter.prints)
        names = ("split", "position", "same_split", "same_position", "bits")
        pairs = [dict(zip(names, pair, strict=True)) for pair in near.pairs[:_MOST_PAIRS]]
        observed["near_copies"] = {"count": len(near.pairs), "looked_at": near.looked_at, "pairs": pairs}
    return observed


def _sort_splits(
    samples: Mapping[SplitName, Sequence[Sample]], keeper: Keeper, sorter: Sorter, contract: Contract
) -> dict[str, dict[str, list[Any]]]:
    """The index's entry of each split; its pictures are read, looked at and kept on the way."""
    entries: dict[str, dict[str, list[Any]]] = {}
    for name in _JUDGING_FIRST:
        with (
            keeper.open_split(name, len(samples[name])) as keep,
            closing(_look_at_all(samples[name], keeper.look, contract)) as found,
        ):
            entries[name] = sorter.sort(name, found, keep)
    return entries


_JUDGING_FIRST: tuple[SplitName, ...] = ("test", "val", "train")


def _look_at_all(
    samples: Sequence[Sample], look: Callable[[Picture], Frame | None], contract: Contract
) -> Generator[Looked, None, None]:
    """Every picture in order, read and looked at in threads, with bounded memory."""

    def work(chunk: Sequence[Sample]) -> list[Looked]:
        return [_look_at(sample, look) for sample in chunk]

    rest = iter(samples)
    chunks = iter(lambda: list(islice(rest, _CHUNK)), [])
    pictures = min(_AHEAD_PICTURES, _AHEAD_BYTES // array_bytes(1, contract))
    with closing(map_ahead(work, chunks, ahead=max(2, pictures // _CHUNK))) as done:
        for chunk in done:
            yield from chunk


def _look_at(sample: Sample, look: Callable[[Picture], Frame | None]) -> Looked:
    try:
        encoded = _read_picture(sample.picture)
        frame = look(encoded)
        looked = Looked(sample, _digest_picture(encoded), frame)
        if frame is None:
            return looked
        return replace(looked, print=print_frame(frame), levels=(int(frame.min()), int(frame.max())))
    except ImageError as error:
        return Looked(sample, failure=error)


def _read_picture(picture: Picture) -> Picture:
    """Files as their bytes, so that what is hashed is what is decoded."""
    if not isinstance(picture, str | os.PathLike):
        return picture
    try:
        return read_encoded(picture)
    except ImageError as error:
        # Without its place: the index, which names the key, goes into reports.
        message = error.message.replace(f"There is no file {picture}", "The picture is not there")
        raise ImageError(message.replace(str(picture), "The picture"), reason=error.reason) from error


def _digest_picture(picture: Picture) -> str:
    """sha256 of the encoded bytes, or of shape and pixels where there are none."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    array = np.ascontiguousarray(picture)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def _split(images: LabelledImages, settings: DataSettings, seed: int) -> dict[SplitName, tuple[Sample, ...]]:
    """``split_samples``, whose refusal knows no folder."""
    try:
        return split_samples(
            images,
            validation=settings.validation,
            test=settings.test,
            seed=seed,
            share=settings.train_share,
            test_seed=settings.test_seed,
            test_share=settings.test_share,
        )
    except DataError as error:
        where = settings.path or settings.source
        raise DataError(f"{where}: {error.message}", hint=error.hint, path=settings.path) from error


def _check_unreadable(unreadable: Sequence[dict[str, str]], total: int, settings: DataSettings) -> None:
    if len(unreadable) <= settings.max_unreadable * total:
        return
    first = min(unreadable, key=lambda entry: entry["key"])
    are = "is" if len(unreadable) == 1 else "are"
    raise DataError(
        f"{len(unreadable)} of {total} pictures {are} unreadable, more than {settings.max_unreadable:.1%}; "
        f"the first is {first['key']}: {first['message']}",
        hint="Remove or replace them, or raise data.max_unreadable.",
        path=settings.path / first["key"] if settings.path else None,
    )


def _find_unjudged(index: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes without a picture in val or test: they are trained, and nothing is learnt about how well."""
    found = []
    for label, name in enumerate(index["classes"]):
        missing = [split for split in ("val", "test") if label not in index["splits"][split]["labels"]]
        if missing:
            found.append({"class": name, "splits": missing})
    return found


def _check_after_decoding(index: dict[str, Any]) -> None:
    """Duplicates and unreadable files may have emptied a class or a split."""
    for name in SPLITS:
        if not index["splits"][name]["keys"]:
            raise DataError(
                f"No picture of the {name} split is left after removing duplicates and unreadable files.",
                hint="Add pictures that stand in no other split.",
            )
    present = set(index["splits"]["train"]["labels"])
    for label, name in enumerate(index["classes"]):
        if label not in present:
            raise DataError(
                f"No readable picture of class {name!r} is left in train.",
                hint="Add pictures to it that stand in no other split, or remove the class.",
            )


def describe_unjudged(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences about the classes that some split which judges has no picture of; five, and a count of the others."""
    told = [
        f"Class {e['class']!r} has no picture in {' and '.join(e['splits'])}: it is trained, and not judged there."
        for e in entries[:5]
    ]
    return [*told, f"{len(entries) - 5} more classes likewise."] if len(entries) > 5 else told


# --------------------------------------------------------------------------------------------------------------
# Reading it again


def load_split(folder: Path, name: SplitName, *, in_memory: bool = False) -> PreparedSplit:
    """Open one split that ``prepare_splits`` made ready.

    Args:
        folder: where it was made.
        name: of the split.
        in_memory: read its array whole, which is what ``data.cache = "memory"`` trains on; else it is mapped.

    Raises:
        ResourceError: it does not fit into memory.
    """
    entry, array = _read_index(folder)["splits"][name], array_file(folder, name)
    if array.exists():
        frames = read_array(array) if in_memory else map_array(array)
    else:
        frames = cast("NDArray[np.uint8]", _open_pictures(folder, name, entry["sha256"]))
    return PreparedSplit(
        frames=frames,
        labels=np.asarray(entry["labels"], dtype=np.int64),
        keys=tuple(entry["keys"]),
        sha256=tuple(entry["sha256"]),
    )


def _open_pictures(folder: Path, name: SplitName, sha256: Sequence[str]) -> PictureFrames:
    places = json.loads((folder / PICTURES_NAME).read_text("ascii"))
    preparation = json.loads((folder / PREPARATION_NAME).read_text("utf-8"))
    contract = Contract.from_json(preparation["contract"])
    return PictureFrames(Path(places["root"]), tuple(places["files"][name]), tuple(sha256), contract)


def hold_in_memory(split: PreparedSplit, message: Callable[[str], None]) -> PreparedSplit:
    """For who reads a split many times: where its frames would be decoded each time, decode them once if they fit."""
    frames: Any = split.frames
    if not isinstance(frames, PictureFrames):
        return split
    if not fits_memory(frames.nbytes):
        message(f"  {describe_bytes(frames.nbytes)} of frames do not fit into memory: decoded at every use")
        return split
    return replace(split, frames=frames[:])


def identity_file(folder: Path, name: SplitName) -> Path:
    """The file whose bytes tell one content of a split from another: its array, or the index with every sha256."""
    array = array_file(folder, name)
    return array if array.exists() else folder / INDEX_NAME


def read_classes(folder: Path) -> tuple[str, ...]:
    """Class names of what ``prepare_splits`` wrote."""
    return tuple(_read_index(folder)["classes"])


def read_observed(folder: Path) -> dict[str, Any]:
    """What ``prepare_splits`` saw and nothing depends on: ``ignored``, ``notices``, ``allowed``, ``near_copies`` and
    ``levels``, the darkest and the brightest one of all frames where they were decoded."""
    file = folder / OBSERVED_NAME
    if file.exists():
        observed: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return observed
    # Prepared by an earlier version: copies were not looked for.
    return {
        "ignored": _read_index(folder)["ignored"],
        "notices": [],
        "allowed": [],
        "near_copies": None,
        "levels": None,
    }


def _read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text("utf-8"))
    return index
