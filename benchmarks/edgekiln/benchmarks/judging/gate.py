"""May an engine ship? Decided by a score interval of the paired difference, never by a bootstrap.

A bootstrap interval has no width where no image flips, and passes bad engines on small test sets. Tango's interval
decides for top-1, Tango's intervals of the classes put together by MOVER for balanced accuracy. McNemar's test is
told beside them and decides nothing: it asks whether anything changed at all, not whether it changed by too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekiln.benchmarks.judging.accuracy import PairedCounts
from edgekiln.runtime.errors import DataError

__all__ = ["GateResult", "Metric", "balanced_interval", "check_metric", "format_confidence", "images_to_decide",
           "judge", "judge_balanced", "mcnemar_p", "newcombe_interval", "tango_interval", "tango_limits",
           "wilson_interval"]  # fmt: skip

Metric = Literal["top1", "balanced"]
Interval = tuple[float, float]
Floats = NDArray[np.float64]

_MAX_IMAGES = 100_000_000
_NAMES: dict[Metric, str] = {"top1": "top-1", "balanced": "balanced accuracy"}


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict on one engine.

    Attributes:
        verdict: ``pass`` when the whole interval of the drop lies below ``max_drop``, ``fail`` when it lies
            above, else ``inconclusive``.
        metric: what may not drop.
        drop: of the metric, against the baseline, as a share.
        low, high: the score interval of the drop.
        images_to_decide: for ``inconclusive``, how many test images would decide if they flipped at the same
            rates; ``None`` where no number would.
        reason: the verdict in a sentence.
    """

    verdict: Literal["pass", "fail", "inconclusive"]
    metric: Metric
    drop: float
    low: float
    high: float
    max_drop: float
    confidence: float
    images_to_decide: int | None
    reason: str

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and the sentence that says why."""
        from edgekiln.runtime.bundles.notebook import show_table

        return show_table(f"Gate: {self.verdict}", (), [(self.reason,)])


def judge(counts: PairedCounts, *, max_drop: float, confidence: float) -> GateResult:
    """Judge paired answers against the largest allowed drop of top-1 (a share)."""
    interval = _scaled_tango(counts, confidence)
    return _decide("top1", counts.drop, counts.images, interval, max_drop=max_drop, confidence=confidence)


def judge_balanced(strata: Sequence[PairedCounts], *, max_drop: float, confidence: float) -> GateResult:
    """Judge the paired answers of each class against the largest allowed drop of balanced accuracy (a share)."""

    def interval(factor: float) -> Interval:
        return balanced_interval(strata, confidence, factor=factor)

    drop = float(np.mean([s.drop for s in strata]))
    images = sum(s.images for s in strata)
    return _decide("balanced", drop, images, interval, max_drop=max_drop, confidence=confidence)


def _decide(
    metric: Metric,
    drop: float,
    images: int,
    interval: Callable[[float], Interval],
    *,
    max_drop: float,
    confidence: float,
) -> GateResult:
    """The verdict; ``interval`` gives the interval that as many images times its argument would have."""
    low, high = interval(1.0)
    seen = (
        f"{_NAMES[metric]} drop {100 * drop:+.2f} points, {format_confidence(confidence)} interval "
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
        needed = _search_images(images, interval, max_drop)
        more = (
            "no number of images would decide at these rates"
            if needed is None
            else f"about {needed} test images would decide, there are {images}"
        )
        reason = f"{seen}: {more}"
    return GateResult(verdict, metric, drop, low, high, max_drop, confidence, needed, reason)


def format_confidence(confidence: float) -> str:
    """``95%``, ``97.5%``: the confidence of an interval as the reports write it."""
    return f"{100 * confidence:.6g}%"


def tango_interval(broken: float, mended: float, images: float, confidence: float) -> Interval:
    """Score interval of the difference of two paired proportions; see ``tango_limits``.

    Args:
        broken: right before, wrong now. Need not be whole.
        mended: wrong before, right now.
        images: all images.
        confidence: two-sided, for example 0.95.

    Returns:
        (low, high) of (broken - mended) / images, within -1 to 1.
    """
    low, high = tango_limits(broken, mended, images, confidence)
    return float(low), float(high)


def tango_limits(
    broken: ArrayLike, mended: ArrayLike, images: ArrayLike, confidence: float
) -> tuple[Floats, Floats]:
    """Score intervals of the differences of paired proportions, element by element.

    Tango, T. (1998), Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17:891-908. The bounds are the differences d at which

        (broken - mended - n d) / sqrt(n (2 q + d (1 - d))) = +-z,

    where q is the maximum-likelihood estimate, under d, of the probability of being mended: the root of
    A q^2 + B q + C with A = 2n, B = -broken - mended + (2n - broken + mended) d, C = -mended d (1 - d).

    Returns:
        (low, high), float64 arrays of the arguments' common shape.
    """
    b, m, n = np.broadcast_arrays(
        *(np.asarray(values, dtype=np.float64) for values in (broken, mended, images))
    )
    # 1e-9: counts that were scaled to another number of images may add up to a rounding more than all.
    wrong = (n <= 0) | (b < 0) | (m < 0) | (b + m > n * (1 + 1e-9))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise DataError(f"Got {b.flat[i]:g} broken and {m.flat[i]:g} mended of {n.flat[i]:g} images.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    estimate = (b - m) / n
    # The score falls from +inf to -inf as d rises, so each bound is bracketed by the estimate and an end.
    low = _bisect(lambda d: _tango_score(b, m, n, d) > z, np.full(b.shape, -1.0), estimate)
    high = _bisect(lambda d: _tango_score(b, m, n, d) > -z, estimate, np.full(b.shape, 1.0))
    return low, high


def _tango_score(b: Floats, m: Floats, n: Floats, d: Floats) -> Floats:
    first = 2 * n
    second = -b - m + (2 * n - b + m) * d
    third = -m * d * (1 - d)
    q = (np.sqrt(np.maximum(0.0, second * second - 4 * first * third)) - second) / (2 * first)
    variance = n * (2 * q + d * (1 - d))
    distance = b - m - n * d
    # Without variance, any distance is infinitely many standard errors, and none is none.
    certain = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
    return np.where(variance > 0, distance / np.sqrt(np.where(variance > 0, variance, 1.0)), certain)


def _bisect(is_before: Callable[[Floats], NDArray[np.bool_]], start: Floats, end: Floats) -> Floats:
    """The points between start and end at which ``is_before`` turns from true to false, to float precision."""
    for _ in range(60):  # 2 / 2**60 is below the spacing of floats near 1
        middle = (start + end) / 2
        before = is_before(middle)
        start, end = np.where(before, middle, start), np.where(before, end, middle)
    return np.asarray((start + end) / 2)


def balanced_interval(strata: Sequence[PairedCounts], confidence: float, *, factor: float = 1.0) -> Interval:
    """Interval of the drop of balanced accuracy: the mean over K classes of their drops d_k.

    MOVER, the method of variance estimates recovery, on Tango's limits (l_k, u_k) of each class:

        low  = mean(d) - sqrt(sum_k (d_k - l_k)^2) / K
        high = mean(d) + sqrt(sum_k (u_k - d_k)^2) / K

    Zou, G. Y., Donner, A. (2008), Construction of confidence limits about effect measures: a general approach,
    Statistics in Medicine 27:1693-1702; for any linear function, Zou, G. Y., Huang, W., Zhang, X. (2009), A note on
    confidence interval estimation for a linear function of binomial proportions, Computational Statistics and Data
    Analysis 53:1080-1085. It wants independent estimates, and classes share no image. The classes' weights are fixed
    (1 / K), so their drops need not be alike. With one class it is Tango's interval. Where many classes have few
    images, it is wider than it need be: each class without a flip adds its own width.

    Args:
        strata: the classes that occur, one entry each.
        confidence: two-sided.
        factor: as if there were so many times the images, flipping at the same rates.
    """
    counts = (
        np.array([(s.broken, s.mended, s.images) for s in strata], dtype=np.float64).reshape(-1, 3) * factor
    )
    if len(counts) == 0:
        raise DataError("There is no class to judge.")
    # Most of many classes have the same counts, often no flip at all.
    unique, repeats = np.unique(counts, axis=0, return_counts=True)
    broken, mended, images = unique.T
    low, high = tango_limits(broken, mended, images, confidence)
    drops = (broken - mended) / images
    classes = len(counts)
    mean = float((repeats * drops).sum()) / classes
    below = float(np.sqrt((repeats * (drops - low) ** 2).sum())) / classes
    above = float(np.sqrt((repeats * (high - drops) ** 2).sum())) / classes
    return mean - below, mean + above


def mcnemar_p(broken: int, mended: int) -> float:
    """Exact two-sided p-value of McNemar's test: are images broken and mended equally often?

    McNemar, Q. (1947), Psychometrika 12:153-157, in its exact form: given n = broken + mended, broken is
    Binomial(n, 1/2) under the null hypothesis, so

        p = min(1, 2 * sum_{i <= min(broken, mended)} C(n, i) / 2^n).

    The sum is of whole numbers and is rounded once, at the end.
    """
    if broken < 0 or mended < 0:
        raise DataError(f"Got {broken} broken and {mended} mended images.")
    total = broken + mended
    term = tail = 1
    for i in range(min(broken, mended)):
        term = term * (total - i) // (i + 1)  # C(n, i + 1), always whole
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def newcombe_interval(first: int, second: int, images: int, confidence: float) -> Interval:
    """Interval of the drop ``(first - second) / images`` of two shares whose pairs are not known.

    Newcombe, R. G. (1998), Interval estimation for the difference between independent proportions, Statistics in
    Medicine 17:873-890, method 10, from the Wilson limits (l, u) of each share p:

        low  = p1 - p2 - sqrt((p1 - l1)^2 + (u2 - p2)^2)
        high = p1 - p2 + sqrt((u1 - p1)^2 + (p2 - l2)^2)

    Two models answer the same images alike more often than chance would, so that it is wider than it need be.

    Args:
        first, second: right answers of each.
        images: of which both were given all.
        confidence: two-sided.
    """
    p1, p2 = first / images, second / images
    (l1, u1), (l2, u2) = (wilson_interval(right, images, confidence) for right in (first, second))
    return p1 - p2 - math.hypot(p1 - l1, u2 - p2), p1 - p2 + math.hypot(u1 - p1, p2 - l2)


def wilson_interval(right: int, images: int, confidence: float) -> Interval:
    """Score interval of a share ``right / images``, two-sided.

    Wilson, E. B. (1927), Journal of the American Statistical Association 22:209-212.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, extra = right / images, z * z / images
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / images + extra / (4 * images)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def images_to_decide(counts: PairedCounts, *, max_drop: float, confidence: float) -> int | None:
    """Smallest number of images whose interval excludes ``max_drop`` if images flip at the rates seen."""
    return _search_images(counts.images, _scaled_tango(counts, confidence), max_drop)


def _scaled_tango(counts: PairedCounts, confidence: float) -> Callable[[float], Interval]:
    """Tango's interval by how many times the images there would be."""

    def interval(factor: float) -> Interval:
        return tango_interval(
            counts.broken * factor, counts.mended * factor, counts.images * factor, confidence
        )

    return interval


def _search_images(images: int, interval: Callable[[float], Interval], max_drop: float) -> int | None:
    def decides(number: int) -> bool:
        low, high = interval(number / images)
        return high < max_drop or low > max_drop

    upper = images
    while not decides(upper):
        upper *= 2
        if upper > _MAX_IMAGES:
            return None
    lower = upper // 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if decides(middle) else (middle, upper)
    return upper


def check_metric(metric: Any) -> Metric:
    """The metric, if it is one; a manifest may say anything."""
    if metric not in get_args(Metric):
        raise DataError(f"Got the gate metric {metric!r}; known: {', '.join(get_args(Metric))}.")
    known: Metric = metric
    return known
