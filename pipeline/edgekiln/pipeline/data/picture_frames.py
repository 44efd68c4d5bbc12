"""Frames that are decoded from their files when they are read: what ``data.cache = "none"`` trains and judges on.

Reads like the array that the other caches map: same shape, same pixels, since both come from ``image.prepare``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.limits import usable_threads
from edgekiln.runtime.pictures.image import Frame, prepare
from edgekiln.runtime.spec import Frames

__all__ = ["PictureFrames"]

_READ_AHEAD = 64  # frames of an iteration that are decoded together


@dataclass(frozen=True)
class PictureFrames:
    """uint8 (N, H, W, 3), read-only and not in memory: every reading decodes.

    Indexed by an integer, a slice, or an array of integers or booleans along the first axis alone; the answer is an
    array of its own. Several frames are decoded in as many threads as there are cores.

    Attributes:
        root: folder that ``files`` are relative to.
        sha256: of each file. One that has changed since it was listed is refused: labels and splits may not hold.

    Raises:
        ImageError: on reading, a file is gone, has changed, or cannot be decoded. No DataError: of a variant that would
            be its own failure, and kept as such, where it is the whole run's.
    """

    root: Path
    files: Sequence[str] = field(repr=False)
    sha256: Sequence[str] = field(repr=False)
    contract: Contract

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return (len(self.files), self.contract.height, self.contract.width, 3)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that all of it would take as an array."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Any) -> Frame:
        if isinstance(key, int | np.integer):
            return self.read(range(len(self))[key])
        chosen = np.arange(len(self))[key]  # numpy's own rules, and its errors
        if chosen.ndim != 1:
            raise IndexError(f"Frames on files take indices along one axis, got {chosen.ndim} axes.")
        frames = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        self._fill(frames, chosen)
        return frames

    def __iter__(self) -> Iterator[Frame]:
        for start in range(0, len(self), _READ_AHEAD):
            yield from self[start : start + _READ_AHEAD]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Frames on files become an array by decoding, which is a copy.")
        frames = self[:]
        return frames if dtype is None else frames.astype(dtype, copy=False)

    def _fill(self, frames: Frames, chosen: NDArray[np.int64]) -> None:
        def put(place: int) -> None:
            frames[place] = self.read(int(chosen[place]))

        if len(chosen) < 2:  # a thread would cost and gain nothing
            for place in range(len(chosen)):
                put(place)
            return
        with ThreadPoolExecutor(min(len(chosen), usable_threads())) as pool:
            for _ in pool.map(put, range(len(chosen))):
                pass  # the first failure in order, whichever came first

    def read(self, index: int) -> Frame:
        """Decode one frame, uint8 (H, W, 3); ``index`` is from 0 to N - 1."""
        path = self.root / self.files[index]
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise _changed(path, f"cannot be read: {error.strerror}", "unreadable") from error
        if hashlib.sha256(encoded).hexdigest() != self.sha256[index]:
            raise _changed(path, "is no longer the picture that was listed", "changed")
        try:
            return prepare(encoded, self.contract)
        except ImageError as error:
            raise ImageError(
                f"{path} cannot be decoded: {error.message}",
                reason=error.reason,
                hint="Remove or replace it and run the same command again; data.check = 'whole' finds such pictures "
                "before training.",
                path=path,
            ) from error


def _changed(path: Path, what: str, reason: str) -> ImageError:
    return ImageError(
        f"{path} {what}.",
        reason=reason,
        hint="Run the same command again: it lists the pictures anew. They must stay as they are while a recipe with "
        "data.cache = 'none' runs.",
        path=path,
    )
