"""Puts beside the timings of a benchmark what explains them: ceilings, floors, phases of a call, memory, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from edgekiln.runtime.backends import SLOT_BACKENDS
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.limits import usable_threads

if TYPE_CHECKING:
    from pathlib import Path

    from edgekiln.benchmarks.timing.contender import Contender
    from edgekiln.benchmarks.timing.roofline import Ceilings

__all__ = ["add_limits"]

_PHASE_CALLS = 100


def add_limits(
    values: dict[str, Any],
    contenders: Sequence[Contender],
    products: Mapping[str, tuple[Mapping[str, Any], str]],
    frames_file: Path,
    advance: Callable[[int, str], None] = lambda done, note: None,
) -> None:
    """Add ``ceilings`` to a benchmark's JSON values, and to each measurement floor, share, phases, memory and energy.

    Measured after the timings, in processes of their own: neither disturbs the other. Ceilings are those of the
    thread count that a contender was timed with (all cores where it left that to its library), or of the GPU where it
    ran there. ``advance`` is told before each contender. What cannot be measured is ``None``, and why stands in
    ``limits_problems``: finished timings are not lost for it. Why there is no energy stands beside it, in
    ``energy_reason``: most machines have no meter, which is no problem of the run.
    """
    problems: list[str] = []
    meters = _Meters()
    ceilings: dict[int | None, Ceilings | None] = {}
    by_name = {contender.name: contender for contender in contenders}  # some may not have been timed
    for done, measurement in enumerate(values["measurements"]):
        contender = by_name[measurement["name"]]
        advance(done, f"limits of {contender.name}")
        threads = _threads_used(measurement)
        if threads not in ceilings:
            ceilings[threads] = _measure_ceilings(threads, problems)
        limits, product = ceilings[threads], products.get(measurement["name"])
        measurement.update(_find_floor(measurement["p50_ms"], limits, product))
        measurement.update(_measure_memory(contender, measurement, frames_file, problems))
        measurement["phases"] = _measure_phases(contender, measurement, frames_file, problems)
        measurement.update(meters.measure(contender, measurement, frames_file))
    values["ceilings"] = [found.to_dict() for found in ceilings.values() if found]
    values["limits_problems"] = problems


def _threads_used(measurement: Mapping[str, Any]) -> int | None:
    """CPU threads of a contender, or ``None`` where it ran on a GPU."""
    if measurement["device"] not in {"cpu", None}:
        return None
    return measurement["config"].get("threads") or usable_threads()


def _find_floor(
    median_ms: float, limits: Ceilings | None, product: tuple[Mapping[str, Any], str] | None
) -> dict[str, float | None]:
    from edgekiln.benchmarks.timing.roofline import floor_ms, share_of_floor

    floor = floor_ms(product[0], limits, product[1]) if limits and product else None
    return {"floor_ms": floor, "share_of_floor": None if floor is None else share_of_floor(median_ms, floor)}


def _measure_memory(
    contender: Contender, measurement: Mapping[str, Any], frames_file: Path, problems: list[str]
) -> dict[str, float | None]:
    from edgekiln.benchmarks.costs.memory import measure_memory

    arguments, on_gpu = {**contender.arguments, **measurement["config"]}, _threads_used(measurement) is None
    try:
        used = measure_memory(contender.factory, arguments, frames_file, on_gpu=on_gpu)
    except EngineError as error:
        problems.append(f"{contender.name}: {error}")
        return {"peak_rss_mb": None, "device_mb": None}
    return {"peak_rss_mb": used.peak_rss_mb, "device_mb": used.device_mb}


def _measure_phases(
    contender: Contender, measurement: Mapping[str, Any], frames_file: Path, problems: list[str]
) -> dict[str, float | None] | None:
    """Median milliseconds of each field of ``CallPhases``; ``None`` where the session of a backend cannot tell."""
    from edgekiln.benchmarks.timing import worker_process

    if contender.arguments.get("backend") not in SLOT_BACKENDS:
        return None
    try:
        with worker_process.open_worker(frames_file, contender) as worker:
            worker.open(measurement["config"])
            told = worker.phases(_PHASE_CALLS)
    except EngineError as error:
        problems.append(f"{contender.name}: {error}")
        return None
    if told is None:
        return None
    known = {name: [float(ms) for call in told if (ms := call[name]) is not None] for name in told[0]}
    return {name: median(found) if found else None for name, found in known.items()}


class _Meters:
    """Knows after one look at each kind of device whether its energy can be read."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def measure(
        self, contender: Contender, measurement: Mapping[str, Any], frames_file: Path
    ) -> dict[str, Any]:
        """``energy`` in the units of its keys, or ``None`` with ``energy_reason``."""
        from edgekiln.benchmarks.costs.energy.contender import measure_contender

        device: Literal["cpu", "cuda"] = "cuda" if _threads_used(measurement) is None else "cpu"
        reason = self._look(device)
        if reason:
            return {"energy": None, "energy_reason": reason}
        arguments = {**contender.arguments, **measurement["config"]}
        try:
            found = measure_contender(contender.factory, arguments, frames_file, device=device)
        except EngineError as error:
            return {"energy": None, "energy_reason": str(error)}
        return {"energy": found.to_dict(), "energy_reason": None}

    def _look(self, device: Literal["cpu", "cuda"]) -> str:
        """Why there is no meter; empty where there is one."""
        from edgekiln.benchmarks.costs.energy.sources import find_gpu_uuid, open_meter

        if device not in self._reasons:
            meter, reason = open_meter(device, gpu_uuid=find_gpu_uuid() if device == "cuda" else None)
            if meter is not None:
                meter.close()
            self._reasons[device] = reason
        return self._reasons[device]


def _measure_ceilings(threads: int | None, problems: list[str]) -> Ceilings | None:
    from edgekiln.benchmarks.timing.roofline import measure_ceilings, measure_gpu_ceilings

    try:
        return measure_gpu_ceilings() if threads is None else measure_ceilings(threads)
    except EngineError as error:
        problems.append(str(error))
        return None
