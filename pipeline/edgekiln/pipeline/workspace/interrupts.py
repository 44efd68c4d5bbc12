"""Knows whether Ctrl-C came, also where KeyboardInterrupt did not come through.

Python raises it wherever the main thread is. Where that is a callback of a library in another language, the library may
make an error of its own of it, or none: safetensors then calls an intact file damaged. Taken at its word, Ctrl-C would
end as a corrupt file, or be kept as the failure of an engine.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["check_interrupt", "notice_interrupts", "was_interrupted"]

_arrived = threading.Event()


@contextlib.contextmanager
def notice_interrupts() -> Iterator[None]:
    """Remember whether SIGINT arrives inside; it raises KeyboardInterrupt all the same.

    Nothing is changed outside of the main thread, or where the signal is ignored or has a handler of somebody else.
    """
    _arrived.clear()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _notice(number: int, frame: FrameType | None) -> None:
    _arrived.set()
    signal.default_int_handler(number, frame)


def was_interrupted() -> bool:
    """Whether SIGINT arrived in the last ``notice_interrupts``."""
    return _arrived.is_set()


def check_interrupt() -> None:
    """Raise KeyboardInterrupt where it arrived and did not come through."""
    if was_interrupted():
        raise KeyboardInterrupt
