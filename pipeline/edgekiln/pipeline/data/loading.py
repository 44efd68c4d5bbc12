"""Work that runs ahead of its user: in threads, in order, with a bounded number of results waiting.

Threads and not processes: Pillow frees the interpreter's lock while it decodes, and what a thread has written is
already where its user reads it. Order and content are those of a plain loop, whatever the threads' timing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from edgekiln.runtime.limits import usable_threads

__all__ = ["map_ahead"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    with ThreadPoolExecutor(threads or usable_threads(), "edgekiln-load") as pool:
        waiting = deque(pool.submit(work, item) for item in islice(rest, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
