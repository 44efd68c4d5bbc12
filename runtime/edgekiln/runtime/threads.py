"""Threads that may not start: the system refuses more of them, or the interpreter is ending."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgekiln.runtime.errors import ResourceError

__all__ = ["start_thread"]


def start_thread(work: Callable[[], None], name: str, *, daemon: bool = False) -> threading.Thread:
    """A thread that has begun; raises ResourceError where none can be started."""
    thread = threading.Thread(target=work, name=name, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(
            f"The thread {name} cannot be started: {error}.",
            hint="A limit of threads is reached (ulimit -u, or the container's), or the program is ending.",
        ) from error
    return thread
