"""What happens to loaded engines when the process forks: a typed error in the child, never a hang or a crash.

A fork copies memory and one thread. The worker threads of an engine library, and what a GPU's driver knows of the
process, are not copied: a session of onnxruntime that was opened with four threads ends its child by a segmentation
fault when it is freed there. So a loaded engine belongs to the process that loaded it, whatever its library.
"""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet

from edgekiln.runtime.errors import ForkedError

__all__ = ["HomeProcess", "keep_in_forks"]


class HomeProcess:
    """The process in which it was made."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """False in a fork."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise ForkedError in a fork. Call it before any lock is taken: its holder may not exist in the child."""
        if os.getpid() == self._pid:
            return
        raise ForkedError(
            f"This model was loaded in process {self._pid} and cannot be used in its fork {os.getpid()}.",
            hint="Load the bundle in each worker, after the fork, or start workers with multiprocessing's 'spawn'.",
        )


_kept: WeakSet[object] = WeakSet()


def keep_in_forks(library_object: object) -> None:
    """Never free ``library_object`` in a forked child: its destructor would wait for threads that are not there.

    What it holds stays in the child's memory, shared with the parent's as long as neither writes to it.
    """
    _kept.add(library_object)


def _make_immortal() -> None:
    for library_object in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(library_object))


os.register_at_fork(after_in_child=_make_immortal)
