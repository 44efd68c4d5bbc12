"""Memory that was freed goes back to the system, where the C library keeps it otherwise."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Ask glibc for the free pages of all its arenas (``malloc_trim``, malloc(3)); nothing where there is no such call.

    Each thread allocates in an arena of its own, and glibc gives back only what lies at an arena's end. What an engine
    leaves when it is freed is megabytes among what goes on being used. Takes some milliseconds, without the GIL.
    """
    trim = _find_malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _find_malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return found
