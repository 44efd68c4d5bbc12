"""How many images a gate needs, told before anything is judged: from how often INT8 changes an answer.

The interval is the gate's own. Probabilities are sums over all counts of flips, so nothing is drawn by chance.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.judging.gate import tango_interval, tango_limits

__all__ = ["USUAL_BROKEN", "USUAL_MENDED", "chance_to_pass", "images_to_pass", "most_broken"]

USUAL_BROKEN, USUAL_MENDED = 0.005, 0.003
"""Shares of images that a sound INT8 engine breaks and mends; docs/proof.md tells the runs that they rest on."""

_CONFIDENCE = 0.95  # the recipe's default


def chance_to_pass(
    images: int,
    max_drop: float,
    *,
    broken: float = USUAL_BROKEN,
    mended: float = USUAL_MENDED,
    confidence: float = _CONFIDENCE,
) -> float:
    """The probability that an engine with these rates of flips passes the gate on ``images`` images.

    Of independent images the counts (b, m) of broken and mended ones are multinomial; their probabilities are added
    up where the upper end of Tango's interval lies below ``max_drop``.

    Args:
        images: that judge.
        max_drop: allowed drop of top-1, a share.
        broken, mended: shares above 0, together below 1.
        confidence: of the interval.
    """
    # Twelve standard deviations and more beyond the mean: what is left out is below the rounding of the sum.
    most = [min(images, math.ceil(images * p + 12 * math.sqrt(images * p) + 12)) for p in (broken, mended)]
    b, m = (np.arange(count + 1) for count in most)
    limits = _largest_passing(m, images, max_drop, confidence, most[0])
    same = images - b[:, None] - m
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])  # of factorials
    terms = logs[images] - logs[b][:, None] - logs[m] - logs[np.maximum(same, 0)]
    terms = terms + b[:, None] * math.log(broken) + m * math.log(mended) + same * math.log1p(-broken - mended)
    return float(np.exp(terms)[(b[:, None] <= limits) & (same >= 0)].sum())


def _largest_passing(
    mended: NDArray[np.int64], images: int, max_drop: float, confidence: float, most: int
) -> NDArray[np.int64]:
    """For each count of mended images the most broken ones with which the gate passes, up to ``most``; -1 for none.

    The upper end of the interval rises with each broken image, so the border is found by bisection.
    """
    passing, failing = np.full(mended.shape, -1), np.minimum(most, images - mended) + 1
    while (failing - passing > 1).any():
        middle = (passing + failing) // 2
        tried = np.maximum(middle, 0)
        _, high = tango_limits(tried, mended, images, confidence)
        passes = high < max_drop
        open_still = failing - passing > 1
        passing = np.where(open_still & passes, middle, passing)
        failing = np.where(open_still & ~passes, middle, failing)
    return passing


def images_to_pass(max_drop: float, chance: float) -> int:
    """About how many images let a usual INT8 engine pass with this probability.

    The probability rises in steps with small dips, as every whole count of flips does: the number is one of several.
    """
    low, high = 8, 16
    while chance_to_pass(high, max_drop) < chance:
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if chance_to_pass(middle, max_drop) >= chance else (middle, high)
    return high


def most_broken(images: int, max_drop: float, confidence: float = _CONFIDENCE) -> int | None:
    """The most images that may change for the worse, with none for the better, so that the engine passes.

    ``None`` where not even an engine without a flip would pass.
    """
    if tango_interval(0, 0, images, confidence)[1] >= max_drop:
        return None
    return int(_largest_passing(np.zeros(1, np.int64), images, max_drop, confidence, images)[0])
