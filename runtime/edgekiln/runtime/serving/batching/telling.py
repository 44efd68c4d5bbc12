"""Tells answers beside the engine: what callers are told, and what they do then, need not keep it waiting.

Knows nothing of requests or predictions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from edgekiln.runtime.errors import ResourceError
from edgekiln.runtime.limits import start_thread

__all__ = ["Teller"]

_log = logging.getLogger("edgekiln.runtime")


class Teller:
    """A thread that is started when there is first something for it to do. Its owner tells from one thread only."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ends = False
        self._kept: Callable[[], None] | None = None

    def tell(self, work: Callable[[], None], *, later: bool) -> None:
        """Do ``work`` here and now, or keep it where ``later`` allows that and the thread keeps up.

        One that does not keep up, since callbacks of futures are slow, must not pile up answers without a bound.
        """
        if later and self._kept is None and not self._ends and self._work.empty() and self._has_thread():
            self._kept = work
        else:
            work()

    def tell_kept(self) -> None:
        """Let the thread do what was kept. The caller is about to leave Python to the others for a while."""
        if (kept := self._kept) is not None:
            self._kept = None
            self._work.put(kept)

    def is_here(self) -> bool:
        """Whether the calling thread is the teller's."""
        return threading.current_thread() is self._thread

    def close(self, *, wait: bool) -> None:
        """Tell what is left, and end the thread: from the owner's thread or behind its end. ``wait`` for its end."""
        self._ends = True
        self.tell_kept()
        self._work.put(None)
        if wait and self._thread is not None and not self.is_here():
            self._thread.join()

    def _has_thread(self) -> bool:
        if self._thread is None:
            try:
                self._thread = start_thread(self._tell_all, "edgekiln-teller", daemon=True)
            except ResourceError:  # a limit of threads is reached: slower, and no reason to fail
                return False
        return True

    def _tell_all(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException:
                _log.exception("telling answers has failed")
            del work  # or the last batch would stay until the next one comes
