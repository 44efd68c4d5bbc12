"""Finds the pictures that a bundle was judged on: files are matched with its test split by the sha256 of their bytes.

Neither name, ending nor folder matters. Knows no engine.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekiln.benchmarks.judging.stored_answers import read_answers
from edgekiln.benchmarks.judging.verdict import Reference
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DataError, ImageError, UsageError
from edgekiln.runtime.limits import usable_threads
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.spec import Frames

__all__ = ["KnownPictures", "find_pictures", "match_pictures"]

_MAX_PICTURE_BYTES = 64 * 2**20
_AT_ONCE = 256  # pictures that are prepared before their frames are written


@dataclass(frozen=True, slots=True)
class KnownPictures:
    """Those test pictures that were found, prepared, and what PyTorch said of them.

    Attributes:
        frames: uint8 (N, H, W, 3), in a file that has no name: what an engine does not look at costs no memory.
        reference: PyTorch's logits and the labels of these N pictures; flips are told by the names of the files here.
        known: how many test pictures the parent was judged on.
        paths: of the N files.
        digests: sha256 of their bytes.
    """

    frames: Frames
    reference: Reference
    known: int
    paths: tuple[Path, ...]
    digests: tuple[str, ...]


def find_pictures(parent: Bundle, folder: Path, progress: Progress, room: Path) -> KnownPictures:
    """Find the parent's test pictures below ``folder`` by the sha256 of their bytes, and prepare them.

    Args:
        parent: the bundle.
        folder: holds them, in any layout.
        progress: told of what was found.
        room: an existing folder on a disk with room for the prepared pictures.

    Raises:
        UsageError: there is no such folder.
        DataError: it has none of them, or one cannot be decoded here.
    """
    answers = read_answers(parent)
    found = match_pictures(answers.digests, folder, progress)
    positions = sorted(found)
    paths = tuple(found[i] for i in positions)
    reference = Reference(
        answers.baseline[positions],
        answers.labels[positions],
        [str(path.relative_to(folder)) for path in paths],
        parent.contract.classes,
    )
    with progress.stage("pictures"):
        frames = _prepare_all(parent.contract, paths, room, progress)
    return KnownPictures(
        frames, reference, len(answers.digests), paths, tuple(answers.digests[i] for i in positions)
    )


def match_pictures(digests: Sequence[str], folder: Path, progress: Progress) -> dict[int, Path]:
    """The first file below ``folder`` of each picture, by the picture's position in ``digests``.

    Raises:
        UsageError: there is no such folder.
        DataError: it has none of them.
    """
    if not folder.is_dir():
        hint = "Give --data the folder with the test pictures."
        raise UsageError(f"There is no folder {folder}.", hint=hint, path=folder)
    index = {digest: i for i, digest in enumerate(digests)}
    found, others = _match_files(folder, index, progress)
    progress.message(
        f"pictures: {len(found)} of the parent's {len(index)} test pictures found, {others} other files"
    )
    if not found:
        raise DataError(
            f"None of the {others} files below {folder} is one of the {len(index)} pictures that the parent was "
            "judged on.",
            hint="Copy the original files of its test split here, byte for byte. "
            "`edgekiln build` without --data builds, and judges nothing.",
            path=folder,
        )
    return found


def _match_files(folder: Path, index: Mapping[str, int], progress: Progress) -> tuple[dict[int, Path], int]:
    """The first file of each picture, by the picture's position in the split; and how many files are none of them."""
    found: dict[int, Path] = {}
    others = 0
    with (
        progress.stage("pictures"),
        ThreadPoolExecutor(usable_threads()) as pool,
    ):  # hashing lets go of the interpreter
        paths = sorted(_walk(folder))
        for number, (path, digest) in enumerate(zip(paths, pool.map(_digest, paths), strict=True), start=1):
            position = index.get(digest)
            if position is None:
                others += 1
            else:
                found.setdefault(position, path)
            progress.advance(number, len(paths), "looking for the parent's test pictures")
    return found, others


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, through linked folders too; a link that leads back is followed once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place) / file for file in files)


def _digest(path: Path) -> str:
    """sha256 of a file; empty for what cannot be one of the pictures: too large, unreadable, a pipe."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_PICTURE_BYTES:
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _prepare_all(contract: Contract, paths: Sequence[Path], room: Path, progress: Progress) -> Frames:
    """uint8 (N, H, W, 3), mapped from a file that goes with the process. Decoding lets go of the interpreter."""
    shape = (len(paths), contract.height, contract.width, 3)
    try:
        with tempfile.TemporaryFile(dir=room) as file, ThreadPoolExecutor(usable_threads()) as pool:
            for first in range(0, len(paths), _AT_ONCE):
                for frame in pool.map(lambda path: prepare(path, contract), paths[first : first + _AT_ONCE]):
                    file.write(frame.tobytes())
                progress.advance(min(first + _AT_ONCE, len(paths)), len(paths), "preparing pictures")
            file.flush()  # what does not fit is told here, and not by a signal when it is read
            return np.memmap(file, np.uint8, "r", shape=shape)
    except ImageError as error:
        raise DataError(
            f"A test picture of the parent cannot be decoded here: {error.message}",
            hint="Its bytes are right, so this machine's Pillow lacks its format.",
            path=error.path,
        ) from error
