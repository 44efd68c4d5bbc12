"""The calls that a profile is made of: on which frames, how many, and their times. Knows no library."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter_ns

import numpy as np

from edgekiln.runtime.spec import Frames

__all__ = ["WARM_UP_CALLS", "choose_calls", "make_frames", "time_calls", "warm_up"]

WARM_UP_CALLS = 3
"""Of each session. Profilers time them too, and they are taken out."""
_SECONDS = 1.0
_FEWEST, _MOST = 10, 200
"""Calls of a series. onnxruntime keeps some 800 bytes of each layer of each call."""
_FRAMES = 8


def make_frames(height: int, width: int) -> list[Frames]:
    """Pictures of noise, uint8 (1, height, width, 3) each: the same ones every time."""
    noise = np.random.default_rng(0).integers(0, 256, (_FRAMES, height, width, 3), np.uint8)
    return [np.ascontiguousarray(noise[i : i + 1]) for i in range(_FRAMES)]


def warm_up(calls: Sequence[Callable[[], object]]) -> None:
    """The first calls of a session, which are slower."""
    for number in range(WARM_UP_CALLS):
        calls[number % len(calls)]()


def time_calls(calls: Sequence[Callable[[], object]], count: int) -> list[float]:
    """Milliseconds of ``count`` calls, in turn."""
    times = []
    gc.disable()
    try:
        for number in range(count):
            call = calls[number % len(calls)]
            begin = perf_counter_ns()
            call()
            times.append((perf_counter_ns() - begin) / 1e6)
    finally:
        gc.enable()
    return times


def choose_calls(calls: Sequence[Callable[[], object]]) -> int:
    """So many that a series takes about a second."""
    warm_up(calls)
    one = median(time_calls(calls, WARM_UP_CALLS)) / 1e3
    return int(min(max(_SECONDS / max(one, 1e-9), _FEWEST), _MOST))
