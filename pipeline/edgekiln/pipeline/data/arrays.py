"""Pictures as one uint8 array per split on disk: written in one pass, mapped or read whole, checked to fit before.

A file is complete or absent: what is interrupted, by a full disk too, is taken away again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekiln.pipeline.capacity import (
    FULL_ERRORS,
    available_memory_bytes,
    describe_bytes,
    free_disk_bytes,
)
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ResourceError
from edgekiln.runtime.pictures.image import Frame
from edgekiln.runtime.spec import Frames

__all__ = ["ArrayWriter", "array_bytes", "fits_memory", "map_array", "no_space", "read_array"]

_MEMORY_SHARE = 0.8  # of what is free: training itself needs the rest


def array_bytes(pictures: int, contract: Contract) -> int:
    """N x H x W x 3, the header left out."""
    return pictures * contract.height * contract.width * 3


class ArrayWriter:
    """Appends frames to a ``.npy`` file of uint8 (N, H, W, 3) whose N is known when the block ends.

    Raises:
        ResourceError: the disk is full. The file is gone then, as after every other failure inside the block.
    """

    def __init__(self, path: Path, capacity: int, contract: Contract) -> None:
        self._path, self._contract, self._capacity = path, contract, capacity
        self._count = 0
        self._file = path.open("wb")
        # numpy pads a header so that the first axis may grow without moving the data: every count's is as long.
        self._header_size = self._file.write(_header(capacity, contract))

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if error is None:
                self._finish()
                whole = True
        finally:
            with contextlib.suppress(OSError):  # told already: what is buffered finds no space either
                self._file.close()
            if not whole:
                self._path.unlink(missing_ok=True)

    def add(self, frame: Frame) -> None:
        """Append uint8 (H, W, 3)."""
        with self._explain_full_disk():
            self._file.write(np.ascontiguousarray(frame).data)
        self._count += 1

    def _finish(self) -> None:
        header = _header(self._count, self._contract)
        if len(header) != self._header_size:
            raise AssertionError(f"a header of {len(header)} bytes, {self._header_size} are kept free")
        with self._explain_full_disk():
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()

    @contextlib.contextmanager
    def _explain_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_ERRORS:
                raise
            need = array_bytes(self._capacity, self._contract)
            raise no_space(self._path.parent, need, self._capacity) from error


def no_space(folder: Path, need: int, pictures: int, *, on_files: bool = True) -> ResourceError:
    """What to raise where arrays of so many bytes do not fit.

    Args:
        folder: where they were to be written.
        need: bytes.
        pictures: how many they hold.
        on_files: whether the pictures are files, which could be decoded when they are used instead.
    """
    ways = ["Free some", "choose another place with --runs", "take a smaller data.size"]
    if on_files:
        ways.append("set data.cache = 'none', which decodes pictures when they are used")
    return ResourceError(
        f"No space is left for {pictures} pictures as arrays: they need {describe_bytes(need)}, "
        f"{describe_bytes(free_disk_bytes(folder))} are free in {folder}.",
        hint=f"{', '.join(ways[:-1])}, or {ways[-1]}.",
        path=folder,
    )


def _header(count: int, contract: Contract) -> bytes:
    buffer = io.BytesIO()
    shape = (count, contract.height, contract.width, 3)
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def map_array(path: Path) -> Frames:
    """The frames, mapped: they stay on disk until they are touched, and in the page cache while there is room."""
    frames: Frames = np.load(path, mmap_mode="r", allow_pickle=False)
    return frames


def read_array(path: Path) -> Frames:
    """The frames in memory of their own.

    Raises:
        ResourceError: they would take more than four fifths of the memory that is free.
    """
    mapped = map_array(path)
    if not fits_memory(mapped.nbytes):
        free = available_memory_bytes() or 0
        raise ResourceError(
            f"data.cache = 'memory': the {len(mapped)} pictures of {path.stem} need {describe_bytes(mapped.nbytes)}, "
            f"{describe_bytes(free)} are free, of which {_MEMORY_SHARE:.0%} may be taken.",
            hint="Set data.cache = 'disk': the same arrays are then mapped, and as much of them as fits stays in "
            "memory by itself.",
            path=path,
        )
    frames = np.empty(mapped.shape, np.uint8)
    with path.open("rb") as file:
        file.seek(path.stat().st_size - mapped.nbytes)
        if file.readinto(frames.data) != mapped.nbytes:
            raise AssertionError(f"{path} ends before its header says")  # np.load has compared the two
    return frames


def fits_memory(need: int) -> bool:
    """Whether so many bytes are at most four fifths of what is free, where the system tells."""
    free = available_memory_bytes()
    return free is None or need <= _MEMORY_SHARE * free
