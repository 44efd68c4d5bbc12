"""May an engine ship? Decided by Tango's score interval of the paired difference, never by a bootstrap.

A bootstrap interval has no width where no image flips, and passes bad engines on small test sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from edgekiln.benchmarks.accuracy import PairedCounts
from edgekiln.runtime.errors import DataError

__all__ = ["GateResult", "images_to_decide", "judge", "tango_interval"]

_MAX_IMAGES = 100_000_000


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict on one engine.

    Attributes:
        verdict: ``pass`` when the whole interval of the drop lies below ``max_drop``, ``fail`` when it lies
            above, else ``inconclusive``.
        drop: top-1 lost against the baseline, as a share.
        low, high: Tango's interval of the drop.
        images_to_decide: for ``inconclusive``, how many test images would decide if they flipped at the same
            rates; ``None`` where no number would.
        reason: the verdict in a sentence.
    """

    verdict: Literal["pass", "fail", "inconclusive"]
    drop: float
    low: float
    high: float
    max_drop: float
    confidence: float
    images_to_decide: int | None
    reason: str


def judge(counts: PairedCounts, *, max_drop: float, confidence: float) -> GateResult:
    """Judge paired answers against the largest allowed drop of top-1 (a share)."""
    low, high = tango_interval(counts.broken, counts.mended, counts.images, confidence)
    seen = (
        f"top-1 drop {100 * counts.drop:+.2f} points, {confidence:.0%} interval "
        f"{100 * low:+.2f} to {100 * high:+.2f}, allowed {100 * max_drop:.2f}"
    )
    needed: int | None = None
    verdict: Literal["pass", "fail", "inconclusive"]
    if high < max_drop:
        verdict, reason = "pass", f"{seen}: the whole interval is inside"
    elif low > max_drop:
        verdict, reason = "fail", f"{seen}: the whole interval is outside"
    else:
        verdict = "inconclusive"
        needed = images_to_decide(counts, max_drop=max_drop, confidence=confidence)
        more = (
            "no number of images would decide at these rates"
            if needed is None
            else f"about {needed} test images would decide, there are {counts.images}"
        )
        reason = f"{seen}: {more}"
    return GateResult(verdict, counts.drop, low, high, max_drop, confidence, needed, reason)


def tango_interval(broken: float, mended: float, images: float, confidence: float) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions.

    Tango, T. (1998), Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17:891-908. The bounds are the differences d at which

        (broken - mended - n d) / sqrt(n (2 q + d (1 - d))) = +-z,

    where q is the maximum-likelihood estimate, under d, of the probability of being mended: the root of
    A q^2 + B q + C with A = 2n, B = -broken - mended + (2n - broken + mended) d, C = -mended d (1 - d).

    Args:
        broken: right before, wrong now. Need not be whole.
        mended: wrong before, right now.
        images: all images.
        confidence: two-sided, for example 0.95.

    Returns:
        (low, high) of (broken - mended) / images, within -1 to 1.
    """
    if images <= 0 or broken < 0 or mended < 0 or broken + mended > images:
        raise DataError(f"Got {broken} broken and {mended} mended of {images} images.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    estimate = (broken - mended) / images

    def score(d: float) -> float:
        a = 2 * images
        b = -broken - mended + (2 * images - broken + mended) * d
        c = -mended * d * (1 - d)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = images * (2 * q + d * (1 - d))
        distance = broken - mended - images * d
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    # The score falls from +inf to -inf as d rises.
    low = _bisect(lambda d: score(d) > z, -1.0, estimate)
    high = _bisect(lambda d: score(d) > -z, estimate, 1.0)
    return low, high


def _bisect(is_before: Callable[[float], bool], start: float, end: float) -> float:
    """The point between start and end at which ``is_before`` turns from true to false, to float precision."""
    for _ in range(80):
        middle = (start + end) / 2
        if is_before(middle):
            start = middle
        else:
            end = middle
    return (start + end) / 2


def images_to_decide(counts: PairedCounts, *, max_drop: float, confidence: float) -> int | None:
    """Smallest number of images whose interval excludes ``max_drop`` if images flip at the rates seen."""

    def decides(images: int) -> bool:
        factor = images / counts.images
        low, high = tango_interval(counts.broken * factor, counts.mended * factor, images, confidence)
        return high < max_drop or low > max_drop

    upper = counts.images
    while not decides(upper):
        upper *= 2
        if upper > _MAX_IMAGES:
            return None
    lower = upper // 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if decides(middle) else (middle, upper)
    return upper
