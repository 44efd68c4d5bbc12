"""Checks of arguments that Python itself would let pass, or refuse somewhere deep inside with an error of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

from edgekiln.runtime.errors import UsageError

__all__ = [
    "MAX_THREADS",
    "check_choice",
    "check_duration",
    "check_several",
    "check_strings",
    "check_threads",
    "check_whole_number",
]

MAX_THREADS = 1024
"""Of an engine. More than any machine gains from, and few enough to be started."""


def check_whole_number(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> None:
    """Raise UsageError where ``value`` is not a whole number from ``at_least`` to ``at_most``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, got {value!r}.")
    if int(value) < at_least:
        raise UsageError(f"{name} must be at least {at_least}, got {value}.")
    if at_most is not None and int(value) > at_most:
        raise UsageError(f"{name} must be at most {at_most}, got {value}.")


def check_threads(threads: int | None) -> None:
    """Raise UsageError where ``threads`` is neither ``None`` nor a number of threads."""
    if threads is not None:
        check_whole_number("threads", threads, at_most=MAX_THREADS)


def check_duration(name: str, value: Any, unit: str, *, zero: bool) -> None:
    """Raise UsageError where ``value`` is no number of ``unit`` over 0, or with ``zero`` 0 itself, or has no end."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not 0 <= number < math.inf or (number == 0 and not zero):
        raise UsageError(f"{name} must be {'0 or more' if zero else 'over 0'} {unit}, got {value!r}.")


def check_several(pictures: object, caller: str) -> None:
    """Raise UsageError where ``pictures`` is a single one, or nothing that gives pictures."""
    one = isinstance(pictures, str | bytes | bytearray | memoryview | os.PathLike)
    if one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
        raise UsageError(
            f"{caller} takes several pictures, got one.", hint="Use predict for one, or put it in a list."
        )
    if not isinstance(pictures, Iterable):
        raise UsageError(
            f"{caller} takes several pictures, in a list or an iterator, got {type(pictures).__name__}.",
            hint="Use predict for one, or put it in a list.",
        )


def check_strings(name: str, values: Collection[str]) -> None:
    """Raise UsageError where ``values`` is one string, which is a collection of strings too, or holds anything else."""
    several = isinstance(values, Collection) and not isinstance(values, str)
    if not several or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{name} must be a list of strings, got {values!r}.")


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Raise UsageError where ``value`` is none of the strings of the ``Literal`` type ``kind``."""
    known = get_args(kind)
    if value not in known:
        raise UsageError(f"Unknown {name} {value!r}; known: {', '.join(known)}.")
