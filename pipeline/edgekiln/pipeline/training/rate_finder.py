"""The learning-rate range test: rates rise exponentially from step to step until the loss breaks out.

Smith 2017 (arXiv:1506.01186). The rate that is taken is a tenth of the one where the smoothed loss is lowest, the
usual reading of that curve: at the minimum itself the loss is about to rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgekiln.runtime.errors import GateError

__all__ = ["RangeTest", "find_rate"]

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
_SMOOTHING = 0.9
_BREAKOUT = 4.0  # times the lowest smoothed loss
_FIRST = 10  # steps whose smoothed losses are still those of single batches


@dataclass(frozen=True, slots=True)
class RangeTest:
    """What the test saw: ``points`` are (rate, smoothed loss), ``rate`` is the one to take."""

    points: tuple[tuple[float, float], ...]
    rate: float


def find_rate(train: Callable[[int, float], float]) -> RangeTest:
    """Run the test.

    Args:
        train: does step ``number`` at a rate, and returns its loss.

    Raises:
        GateError: the loss rises from the lowest rates on, or is no number.
    """
    points: list[tuple[float, float]] = []
    average, best = 0.0, math.inf
    for number in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        loss = train(number, rate)
        if not math.isfinite(loss):
            break
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING ** (number + 1))
        points.append((rate, smoothed))
        if number >= _FIRST:
            best = min(best, smoothed)
            if smoothed > _BREAKOUT * best:
                break
    settled = points[_FIRST:]
    if not settled:
        raise GateError(
            "The learning-rate finder found no rate at which the loss stays a number.",
            hint="Look at the data's labels and at the pretrained weights; or give finetune.learning_rate.",
        )
    lowest = min(settled, key=lambda point: point[1])
    if lowest == settled[0]:
        raise GateError(
            f"The learning-rate finder saw no rate from {lowest[0]:.1e} on that lowers the loss.",
            hint="The head may be as good as it gets already: give finetune.learning_rate, or epochs = 0.",
        )
    return RangeTest(tuple(points), lowest[0] / 10)
