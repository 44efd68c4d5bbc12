"""Times contenders in turns, in one process, each call from pixels on the host to logits on the host.

It knows no library. The statistics are those of ``edgekiln.benchmarks.timing.measurement``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgekiln.benchmarks.environment import measure_foreign_load, read_cpu_times
from edgekiln.benchmarks.timing.measurement import (
    Block,
    Measurement,
    Ratio,
    assess,
    compare_speed,
    widen_ratio,
)
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["Caller", "Contender", "TimingPlan", "summarize", "time_in_turns"]

_DEVICE_CALLS = 12
_WARM_UP_SECONDS = 0.3


class Caller(Protocol):
    """An opened contender."""

    def begin(self) -> None:
        """Called before each turn: sets what is global to the process."""

    def run(self, frames: Frames) -> Logits:
        """uint8 (N, H, W, 3) on the host to float32 (N, C) on the host; returns when they are there."""

    def device_ms(self, frames: Frames, calls: int) -> list[float] | None:
        """GPU milliseconds of ``calls`` calls, copies included, between events; ``None`` where it cannot be told."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time.

    Attributes:
        family: the library: ``torch``, ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``.
        config: how it is set up, for the reader.
        open: makes it ready; may take minutes.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    open: Callable[[], Caller]


@dataclass(frozen=True, slots=True)
class TimingPlan:
    """Rounds, in each of which every contender has a block of at least so many seconds."""

    rounds: int = 12
    block_seconds: float = 0.25


@dataclass(slots=True)
class _Times:
    blocks: list[Block] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)


def time_in_turns(
    callers: Mapping[str, Caller],
    batches: Sequence[Frames],
    plan: TimingPlan,
    *,
    tell: Callable[[str, int], None] = lambda name, index: None,
    midway: Callable[[], None] = lambda: None,
) -> dict[str, tuple[Measurement, list[float]]]:
    """Measurements and GPU milliseconds by name.

    Args:
        callers: the baseline first; it has a second turn in each round, to be compared with itself.
        batches: real pictures; calls rotate over them.
        tell: told of (contender, round) before each turn.
        midway: called once, halfway: what the machine is like under load is asked there.
    """
    names = list(callers)
    times = {name: _Times() for name in names}
    for caller in callers.values():
        caller.begin()
        _time_block(caller, batches, _WARM_UP_SECONDS)
    turns = [*((name, 0) for name in names), (names[0], 1)]
    for index in range(plan.rounds):
        # Alternate who goes first: what follows another contender finds its caches cold.
        for name, turn in turns if index % 2 == 0 else turns[::-1]:
            tell(name, index)
            caller = callers[name]
            caller.begin()
            caller.run(batches[0])  # whoever had its turn before has emptied the caches
            block = _time_block(caller, batches, plan.block_seconds)
            times[name].blocks.append(Block(0, index, turn, block))
            if turn == 0:
                times[name].device_ms += caller.device_ms(batches[index % len(batches)], _DEVICE_CALLS) or []
        if index == plan.rounds // 2:
            midway()
    size = len(batches[0])
    return {
        name: (Measurement(name, "call", size, {}, (), found.blocks), found.device_ms)
        for name, found in times.items()
    }


def _time_block(
    caller: Caller, batches: Sequence[Frames], seconds: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Milliseconds of single calls, as many as ``seconds`` hold, three at least."""
    run, count = caller.run, len(batches)
    times: list[int] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        frames = batches[len(times) % count]
        before = time.perf_counter_ns()
        run(frames)
        times.append(time.perf_counter_ns() - before)
    return np.asarray(times, np.float64) / 1e6


def measure_load() -> Callable[[], tuple[float, float]]:
    """Begin to watch the CPU; what is returned gives (cores that others kept busy before, share stolen since)."""
    foreign, before = measure_foreign_load(), read_cpu_times()
    return lambda: (foreign, (read_cpu_times() - before).steal_share)


def summarize(
    measured: Mapping[str, tuple[Measurement, list[float]]],
    references: Sequence[str],
    *,
    foreign_load: float,
    steal: float,
) -> dict[str, Any]:
    """JSON values: percentiles of all calls, and ratios to each of ``references`` that was measured.

    An invalid run gets no ratio; the baseline is the first of ``measured``.
    """
    measurements = {name: measurement for name, (measurement, _) in measured.items()}
    validity = assess(list(measurements.values()), steal=steal, foreign_load=foreign_load)
    trusted = validity.state != "invalid"
    return {
        "validity": {
            "state": validity.state,
            "reasons": list(validity.reasons),
            "baseline_against_itself": _ratio_dict(validity.self_ratio),
        },
        "contenders": {
            name: {
                **_figures(measurement, device_ms),
                "times_faster_than": {
                    other: _ratio_dict(
                        widen_ratio(compare_speed(measurements[other], measurement), validity.self_ratio)
                    )
                    for other in references
                    if trusted and other in measurements and other != name
                },
            }
            for name, (measurement, device_ms) in measured.items()
        },
    }


def _ratio_dict(ratio: Ratio) -> dict[str, float]:
    return {"value": ratio.value, "low95": ratio.low, "high95": ratio.high}


def _figures(measurement: Measurement, device_ms: Sequence[float]) -> dict[str, Any]:
    p50 = measurement.percentile_ms(50)
    device = float(np.median(device_ms)) if device_ms else None
    return {
        "calls": len(measurement.times_ms),
        "p50_ms": p50,
        "p90_ms": measurement.percentile_ms(90),
        "p99_ms": measurement.percentile_ms(99),
        "p99_rests_on_ten_calls": measurement.p99_ms is not None,
        "images_per_second": 1000 * measurement.batch / float(measurement.times_ms.mean()),
        "device_p50_ms": device,
        "wall_over_device": None if device is None else p50 / device,
        "spread_of_blocks": measurement.spread,
        "block_medians_ms": np.round(measurement.block_medians()[0], 4).tolist(),
    }
