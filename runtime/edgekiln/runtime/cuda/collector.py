"""Holds Python's garbage collector off. It knows nothing of CUDA.

A stream that is being captured must not see certain calls of the same thread, a free among them. The collector runs
at any allocation, and what it frees may be another library's, whose destructor calls CUDA.
"""

from __future__ import annotations

import gc
import threading
from contextlib import AbstractContextManager
from types import TracebackType

__all__ = ["collector_held_off"]


class _HeldOff(AbstractContextManager[None]):
    """The collector is one for all threads: the first who enters stops it, the last who leaves starts it again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._was_enabled:
                gc.enable()


collector_held_off = _HeldOff()
"""Inside, no cycle is collected in any thread. May be nested and entered by several threads."""
