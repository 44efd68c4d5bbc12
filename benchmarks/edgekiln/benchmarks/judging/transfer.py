"""Which way of transfer is better, from answers that were judged on the same test images with the same seeds.

Works on right and wrong answers only; trains nothing and knows no network. Two things vary: the seed (which training
images, their order, augmentation, first weights) and the test images. Both stand in the interval of every difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.timing.measurement import STUDENT_QUANTILES
from edgekiln.runtime.errors import DataError

__all__ = ["CONFIDENCE", "COSTS", "Choice", "Estimate", "Metric", "choose_method", "compare_paired", "estimate_mean",
           "measure_metric", "student_quantile"]  # fmt: skip

Metric = Literal["top1", "balanced"]
Right = NDArray[np.bool_]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

COSTS = ("probe", "full", "combined", "scratch")
"""From cheap to dear. A probe trains one layer; the combined loss takes two batches a step; from scratch takes as many
steps as full fine-tuning, and needs more images or more epochs before it is as good, so it stands last."""
CONFIDENCE = 0.95
_NORMAL_QUANTILE = 1.960


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % interval, as a share.

    Attributes:
        seeds: how many stand behind it.
        low, high: ``None`` with one seed, which says nothing on how much another would differ.
        freedom: degrees of freedom of the Student t that gave the interval; ``None`` without one.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    freedom: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which method to take.

    Attributes:
        method: ``None`` where nothing can be said.
        best: the method with the highest mean.
        reason: one sentence.
    """

    method: str | None
    best: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def student_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t; between whole degrees of freedom, and beyond 30, linear in their reciprocal.

    That is the usual way to read a table of t; it is never below the exact value by more than the table's rounding.
    """
    if not freedom >= 1:
        raise DataError(f"Got {freedom} degrees of freedom, wanted at least 1.")
    below = min(math.floor(freedom), len(STUDENT_QUANTILES))
    if freedom == below:
        return STUDENT_QUANTILES[below - 1]
    lower, upper = STUDENT_QUANTILES[below - 1], _NORMAL_QUANTILE
    span = 1 / below
    if below < len(STUDENT_QUANTILES):
        upper, span = STUDENT_QUANTILES[below], 1 / below - 1 / (below + 1)
    return lower + (upper - lower) * (1 / below - 1 / freedom) / span


def measure_metric(right: Right, labels: Labels, metric: Metric) -> Floats:
    """The metric of each seed, float64 (seeds,), of right answers bool (seeds, images) to labels int64 (images,)."""
    return right.astype(np.float64) @ _weigh_images(labels, metric)


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Mean of one share per seed, with Student's t interval, cut at 0 and 1.

    It says how another seed would do on these same test images, not on others.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    half = student_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), len(values), len(values) - 1)


def compare_paired(first: Right, second: Right, labels: Labels, metric: Metric) -> Estimate:
    """By how much ``first`` is better than ``second``, paired by seed and by test image.

    Seeds and images are crossed: every seed answers every image. As for readers and cases in radiology, the variance
    of the mean difference is taken as the sum of two,

        V_seeds  = variance of the seeds' differences / seeds,
        V_images = sampling variance of the images' differences, each a mean over the seeds,

    which counts the interaction of both once too often, so it errs on the wide side (Owen 2007, The pigeonhole
    bootstrap, doi:10.1214/07-AOAS122, section 3). The interval is Student's t, with Welch's and Satterthwaite's degrees
    of freedom, (V_seeds + V_images)^2 / (V_seeds^2 / (seeds - 1) + V_images^2 / (images - 1)). V_images adds half an
    image to either kind of changed answer (Agresti and Min 2005, doi:10.1002/sim.1781), so that two methods without a
    changed answer still get an interval. For balanced accuracy it is the mean over strata, the classes. In simulations
    with 3 seeds, whether seeds or images varied more, 93 to 98 of 100 intervals held the truth.

    Args:
        first: right answers, bool (seeds, images).
        second: the same for the other method, of the same seeds and images in the same order.
        labels: int64 (images,).
        metric: ``top1`` or ``balanced``.

    Raises:
        DataError: shapes that do not match.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[1:] != labels.shape or first.size == 0:
        raise DataError(
            f"Got answers {first.shape} to compare with {second.shape}, for {len(labels)} labels."
        )
    change = first.astype(np.float64) - second.astype(np.float64)
    by_seed = change @ _weigh_images(labels, metric)
    mean, seeds = float(by_seed.mean()), len(by_seed)
    if seeds < 2:
        return Estimate(mean, None, None, seeds)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    strata = [labels == label for label in np.unique(labels)] if metric == "balanced" else [labels >= 0]
    by_image = change.mean(axis=0)
    of_images = sum(_image_variance(by_image[members]) for members in strata) / len(strata) ** 2
    images = max(1, len(labels) - len(strata))
    freedom = (of_seeds + of_images) ** 2 / (of_seeds**2 / (seeds - 1) + of_images**2 / images)
    half = student_quantile(freedom) * math.sqrt(of_seeds + of_images)
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), seeds, freedom)


def choose_method(right: Mapping[str, Right], labels: Labels, metric: Metric, margin: float) -> Choice:
    """The cheapest method that is as good as the best one, as far as these seeds and images tell.

    A method is as good when its mean is at most ``margin`` below the best one's, and its interval against the best one
    either includes zero (not shown to be worse) or stays within ``margin`` (shown not to be worse by more). The mean
    has to be near as well, since a few seeds make wide intervals, and those alone would favour whatever is cheap.

    Args:
        right: right answers, bool (seeds, images), of each method that finished all seeds.
        labels: int64 (images,).
        metric: that decides.
        margin: what may be given up for a cheaper method, as a share.
    """
    if not right:
        return Choice(None, None, "No method finished all its seeds, so none can be recommended.")
    means = {name: float(measure_metric(answers, labels, metric).mean()) for name, answers in right.items()}
    order = [name for name in COSTS if name in right]
    best = max(order, key=lambda name: means[name])  # of equal means the cheapest
    if len(right[best]) < 2:
        return Choice(
            None, best, f"One seed gives no interval, so nothing is recommended; {best} was highest here."
        )
    if len(order) == 1:
        return Choice(best, best, f"{best} is the only method that can be compared.")
    for name in order[: order.index(best)]:
        difference = compare_paired(right[name], right[best], labels, metric)
        verdict = _judge_shortfall(difference, margin)
        if verdict is not None:
            return Choice(
                name, best, f"{name}: {_tell_difference(difference, best)}, {verdict}; it is cheaper."
            )
    return Choice(best, best, _explain_best(best, order, right, labels, metric))


def _explain_best(
    best: str, order: Sequence[str], right: Mapping[str, Right], labels: Labels, metric: Metric
) -> str:
    cheaper = order[: order.index(best)]
    if not cheaper:
        return f"{best}: the highest mean, and nothing is cheaper."
    differences = {name: compare_paired(right[best], right[name], labels, metric) for name in cheaper}
    against = "; ".join(_tell_difference(difference, name) for name, difference in differences.items())
    open_ones = [name for name, difference in differences.items() if (difference.low or 0.0) <= 0]
    if not open_ones:
        return f"{best}: {against}; shown to be better than all that is cheaper."
    return (
        f"{best}: the highest mean, {against}; it is not shown to be better than {' and '.join(open_ones)}: "
        "more seeds would tell."
    )


def _judge_shortfall(difference: Estimate, margin: float) -> str | None:
    """Why a method counts as good as the best one, of its difference to it; ``None`` where it does not."""
    if difference.low is None or difference.high is None or difference.mean < -margin:
        return None
    if difference.low >= -margin:
        return f"shown to be no further below than {100 * margin:g} point{'' if margin == 0.01 else 's'}"
    return "not shown to be worse" if difference.high >= 0 else None


def _tell_difference(difference: Estimate, other: str) -> str:
    low, high = 100 * (difference.low or 0.0), 100 * (difference.high or 0.0)
    return f"{100 * difference.mean:+.2f} points against {other} [{low:+.2f}, {high:+.2f}]"


def _weigh_images(labels: Labels, metric: Metric) -> Floats:
    """float64 (images,) that sum to 1: each image alike, or each class alike."""
    if metric == "top1":
        return np.full(len(labels), 1 / len(labels))
    counts = np.bincount(labels)
    return np.asarray(1 / (counts[labels] * np.count_nonzero(counts)))


def _image_variance(change: Floats) -> float:
    """Variance of the mean of changes float64 (images,), each -1 to 1, by Agresti and Min's adjusted Wald method."""
    images = len(change) + 2
    return float((change**2).sum() + 1 - change.sum() ** 2 / images) / images**2
