"""Threads that may not start: the system refuses more of them, or the interpreter is ending."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgekiln.runtime.errors import ResourceError

__all__ = ["explain_no_thread", "start_thread"]


def start_thread(work: Callable[[], None], name: str, *, daemon: bool = False) -> threading.Thread:
    """A thread that has begun; raises ResourceError where none can be started."""
    thread = threading.Thread(target=work, name=name, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:
        raise explain_no_thread(name, error) from error
    return thread


def explain_no_thread(name: str, error: RuntimeError) -> ResourceError:
    """The error to raise where Python says that it can start no thread."""
    return ResourceError(
        f"The thread {name} cannot be started: {error}.",
        hint="A limit of threads is reached (ulimit -u, or the container's), or the program is ending.",
    )
