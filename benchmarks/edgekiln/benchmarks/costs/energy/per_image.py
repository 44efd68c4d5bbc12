"""Energy of one image: the power above idle while an engine runs, over the images it ran, and its error.

None of the sources is a calibrated meter; vendors give 5 % and more. Whole boards include what the engine does not
cause, so idle power is measured just before and taken off. Which source is read, and what runs, is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekiln.benchmarks.costs.energy.meters import EnergyMeter
from edgekiln.runtime.errors import EngineError, UsageError

__all__ = ["EnergyPerImage", "measure_energy"]

_LEAST_SECONDS = 0.5
SOURCE_ERROR = 0.05
"""Of a power reading, as a share: nvml.h gives +-5 % for nvmlDeviceGetPowerUsage. Taken for every source here, since
none of the others states less for a whole board or package."""


@dataclass(frozen=True, slots=True)
class EnergyPerImage:
    """Energy of one image above idle.

    Attributes:
        joules_per_image: may be negative where the work is below what the source resolves.
        idle_watts: mean power just before.
        busy_watts: mean power while the engine ran, idle included.
        images: that were run.
        seconds: that they took.
        samples: readings that the busy power rests on.
        source: what was measured, and by what.
    """

    joules_per_image: float
    idle_watts: float
    busy_watts: float
    images: int
    seconds: float
    samples: int
    source: str

    @property
    def error_joules(self) -> float:
        """Bound of the error of ``joules_per_image`` by the source: both powers are wrong by 5 %, in opposite ways.

        error = 0.05 * (busy watts + idle watts) * seconds / images

        It holds the source's error alone: not other work that came or went between idle and busy.
        """
        return SOURCE_ERROR * (self.busy_watts + self.idle_watts) * self.seconds / self.images

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, units in the keys."""
        return {
            "mj_per_image": 1000 * self.joules_per_image,
            "error_mj": 1000 * self.error_joules,
            "idle_watts": self.idle_watts,
            "busy_watts": self.busy_watts,
            "images": self.images,
            "seconds": self.seconds,
            "samples": self.samples,
            "source": self.source,
        }


def measure_energy(
    run: Callable[[], object],
    seconds: float,
    meter: EnergyMeter,
    *,
    images_per_call: int = 1,
    settle_seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyPerImage:
    """Idle for ``seconds``, then call ``run`` for ``seconds``.

    joules_per_image = (busy joules - idle watts * busy seconds) / images

    Several seconds at least: the sources refresh between every millisecond (RAPL) and about half a second (INA3221).

    Raises:
        UsageError: ``seconds`` is below 0.5, where no source has a meaning.
        EngineError: no reading arrived while idle, or while busy: the source died.
    """
    if seconds < _LEAST_SECONDS:
        raise UsageError(f"Energy over {seconds} s means nothing; measure for {_LEAST_SECONDS} s at least.")
    run()  # warm up, outside both spans
    sleep(settle_seconds)
    start, joules, samples = clock(), meter.read_joules(), meter.samples
    sleep(seconds)
    idle_watts = (meter.read_joules() - joules) / (clock() - start)
    _check_alive(meter, samples, "idle")
    start, joules, samples, calls = clock(), meter.read_joules(), meter.samples, 0
    while clock() - start < seconds:
        run()
        calls += 1
    joules, passed = meter.read_joules() - joules, clock() - start
    _check_alive(meter, samples, "busy")
    images = calls * images_per_call
    return EnergyPerImage(
        joules_per_image=(joules - idle_watts * passed) / images,
        idle_watts=idle_watts,
        busy_watts=joules / passed,
        images=images,
        seconds=passed,
        samples=meter.samples - samples,
        source=meter.describe(),
    )


def _check_alive(meter: EnergyMeter, samples: int, span: str) -> None:
    """Without a reading, a span would have 0 W, and the difference of the two would be a figure of nothing."""
    if meter.samples == samples:
        raise EngineError(
            f"{meter.describe()} gave no reading in the {span} span: it ended, or is slower than that."
        )
