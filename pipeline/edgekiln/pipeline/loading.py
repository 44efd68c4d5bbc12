"""Work that runs ahead of its user: in threads, in order, with a bounded number of results waiting.

Threads and not processes: Pillow frees the interpreter's lock while it decodes, and what a thread has written is
already where its user reads it. Order and content are those of a plain loop, whatever the threads' timing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.picture_frames import PictureFrames
from edgekiln.runtime.spec import Frames

__all__ = ["Prefetcher", "map_ahead"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHUNK = (
    8  # frames that a thread takes at a time: smaller costs more in the queue, larger leaves threads idle
)


def map_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int, threads: int | None = None
) -> Generator[_Result, None, None]:
    """``map`` in threads that are at most ``ahead`` items before the caller; ``items`` are drawn as they are needed.

    Results and failures come in the order of the items. Closing the iterator ends the threads.

    Args:
        work: called in threads.
        items: what it is called with.
        ahead: how many results may be under way or waiting, at least 1.
        threads: as many as there are usable cores where it is left out.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), "edgekiln-load") as pool:
        waiting = deque(pool.submit(work, item) for item in islice(rest, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


class Prefetcher:
    """Batches of frames, uint8 (B, H, W, 3), ready before they are asked for.

    An iterator over what ``frames[chosen]`` gives for each array of indices, in order. At most ``ahead`` batches wait
    or are being read besides the one that the caller holds, so memory is bounded by ``ahead + 1`` batches. What fails
    is raised at its own batch, and ends the iteration. ``close``, or leaving the ``with`` block, ends the threads.

    Args:
        frames: of a ``PreparedSplit``: an array, mapped or not, or ``PictureFrames``.
        batches: arrays of indices, int64 (B,); drawn as they are needed, in the caller's thread.
        ahead: how many batches to read before they are asked for, at least 1.
        threads: as many as there are usable cores where it is left out.
        allocate: makes the uint8 array of a shape that a batch is written into. Page-locked memory lets a GPU copy
            a batch while it computes on another: ``lambda shape: torch.empty(shape, dtype=torch.uint8,
            pin_memory=True).numpy()``.
    """

    def __init__(
        self,
        frames: Frames | PictureFrames,
        batches: Iterable[NDArray[np.int64]],
        *,
        ahead: int = 4,
        threads: int | None = None,
        allocate: Callable[[tuple[int, ...]], Frames] | None = None,
    ) -> None:
        if ahead < 1:
            raise ValueError(f"ahead = {ahead}, wanted at least 1.")
        self._frames, self._batches, self._ahead = frames, iter(batches), ahead
        self._allocate = allocate or (lambda shape: np.empty(shape, np.uint8))
        self._pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), "edgekiln-prefetch")
        self._waiting: deque[_Batch] = deque()
        self._fill()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Frames:
        if not self._waiting:
            self.close()
            raise StopIteration
        try:
            frames = self._waiting.popleft().wait()
        except BaseException:
            self.close()
            raise
        self._fill()
        return frames

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; what was read ahead is dropped. Closing twice does nothing."""
        self._batches = iter(())
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while len(self._waiting) < self._ahead:
            try:
                chosen = next(self._batches)
            except StopIteration:
                return
            except Exception as error:  # its turn comes after the batches before it
                self._waiting.append(_Batch(failure=error))
                self._batches = iter(())
                return
            self._waiting.append(self._begin(chosen))

    def _begin(self, chosen: NDArray[np.int64]) -> _Batch:
        frames, source = self._allocate((len(chosen), *self._frames.shape[1:])), self._frames

        def read(start: int) -> None:
            if isinstance(source, PictureFrames):
                for place in range(start, min(start + _CHUNK, len(chosen))):
                    frames[place] = source.read(int(chosen[place]))
            else:
                frames[start : start + _CHUNK] = source[chosen[start : start + _CHUNK]]

        return _Batch(frames, [self._pool.submit(read, start) for start in range(0, len(chosen), _CHUNK)])


class _Batch:
    """Frames under way, or why there are none."""

    def __init__(
        self, frames: Any = None, parts: Iterable[Future[None]] = (), failure: Exception | None = None
    ) -> None:
        self._frames, self._parts, self._failure = frames, list(parts), failure

    def wait(self) -> Frames:
        if self._failure is not None:
            raise self._failure
        for part in self._parts:
            part.result()
        frames: Frames = self._frames
        return frames
