"""From a benchmark's result to what a bundle keeps of it: the time of each engine, with the kind of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.measurement import STUDENT_QUANTILES, Measurement
from edgekiln.benchmarks.timing.result import BenchmarkResult
from edgekiln.runtime.backends import Backend
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.times import MeasuredTime

__all__ = ["find_median", "measured_times"]


def measured_times(result: BenchmarkResult, backends: Mapping[str, Backend]) -> dict[str, dict[str, Any]]:
    """By variant: what its calls took, as an entry of the list ``times`` among its figures.

    Of the bare library call at batch 1, which every engine has, and of nothing where the benchmark is invalid. To be
    called on the machine that was timed, in an environment with its libraries.

    Args:
        result: of the benchmark.
        backends: of the variants that took part, by their names.
    """
    if result.validity.state == "invalid":
        return {}
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found = {}
    for measured in result.sides:
        if measured.boundary != "engine" or measured.batch != 1 or measured.name not in backends:
            continue
        low, middle, high = (round(ms, 6) for ms in find_median(measured))
        found[measured.name] = MeasuredTime(
            read_kind(backends[measured.name], _device_number(measured)),
            p50_ms=middle,
            low_ms=low,
            high_ms=high,
            threads=measured.config.get("threads"),
            validity=result.validity.state,
            when=when,
        ).to_dict()
    return found


def _device_number(measured: Measurement) -> int:
    return int((measured.device or "").partition(":")[2] or 0)


def find_median(measured: Measurement) -> tuple[float, float, float]:
    """(low, middle, high) in milliseconds: the median over blocks, and its 95 % interval over processes.

    Student's t on the logarithms of the processes' medians: what differs from process to process is the larger part
    of the error. Of one process alone the medians of its blocks stand for them.
    """
    processes = measured.block_medians()
    samples = np.log([np.median(own) for own in processes] if len(processes) > 1 else processes[0])
    middle, count = measured.median_ms, len(samples)
    if count < 2:
        return middle, middle, middle
    quantile = STUDENT_QUANTILES[min(count - 2, len(STUDENT_QUANTILES) - 1)]
    stretch = float(np.exp(quantile * samples.std(ddof=1) / np.sqrt(count)))
    return middle / stretch, middle, middle * stretch
