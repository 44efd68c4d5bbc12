"""How good are the answers, and which of them changed? Works on logits only, so anything can be judged again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import DataError, NonFiniteError
from edgekiln.runtime.spec import Logits

__all__ = ["Accuracy", "Flip", "Labels", "PairedCounts", "balanced_drop_interval", "find_flips", "measure_accuracy",
           "pair_answers"]  # fmt: skip

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers, 0 to 1.

    Attributes:
        images: how many were judged.
        top1: share of images whose best logit is the label's.
        balanced: mean recall over the classes that occur.
        recall: per class; ``None`` for a class without images.
        distinct_outputs: distinct rows of logits; a collapsed engine has few, and looks fast.
    """

    images: int
    top1: float
    balanced: float
    recall: tuple[float | None, ...]
    distinct_outputs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "recall": list(self.recall)}


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """Answers of two models on the same images.

    Attributes:
        images: how many.
        broken: right before, wrong now.
        mended: wrong before, right now.
        agreeing: same answer, right or wrong.
    """

    images: int
    broken: int
    mended: int
    agreeing: int

    @property
    def drop(self) -> float:
        """Top-1 lost, as a share; negative where it rose."""
        return (self.broken - self.mended) / self.images


@dataclass(frozen=True, slots=True)
class Flip:
    """One image on which two models disagree; ``confidence`` is the first model's softmax margin of its answer."""

    key: str
    label: str
    before: str
    now: str
    margin: float


def measure_accuracy(logits: Logits, labels: Labels) -> Accuracy:
    """Judge logits float32 (N, C) against labels int64 (N,).

    Raises:
        DataError: no images, or shapes that do not match.
        NonFiniteError: NaN or infinity among the logits.
    """
    _check(logits, labels)
    right = logits.argmax(axis=1) == labels
    recall = tuple(
        float(right[labels == c].mean()) if (labels == c).any() else None for c in range(logits.shape[1])
    )
    present = [r for r in recall if r is not None]
    return Accuracy(
        images=len(labels),
        top1=float(right.mean()),
        balanced=float(np.mean(present)),
        recall=recall,
        distinct_outputs=len(np.unique(logits, axis=0)),
    )


def pair_answers(baseline: Logits, engine: Logits, labels: Labels) -> PairedCounts:
    """Count what changed from ``baseline`` to ``engine``, both float32 (N, C) of the same images."""
    _check(baseline, labels)
    _check(engine, labels)
    before, now = baseline.argmax(axis=1), engine.argmax(axis=1)
    was_right, is_right = before == labels, now == labels
    return PairedCounts(
        images=len(labels),
        broken=int((was_right & ~is_right).sum()),
        mended=int((~was_right & is_right).sum()),
        agreeing=int((before == now).sum()),
    )


def balanced_drop_interval(
    baseline: Logits,
    engine: Logits,
    labels: Labels,
    confidence: float,
    *,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the drop in balanced accuracy: a paired bootstrap, stratified by class.

    It describes and never decides: where no image flips, its width is zero.
    """
    was_right, is_right = baseline.argmax(axis=1) == labels, engine.argmax(axis=1) == labels
    generator = np.random.default_rng(seed)
    drops = np.zeros(resamples)
    classes = np.unique(labels)
    for label in classes:
        lost = was_right[labels == label].astype(int) - is_right[labels == label]
        shares = [(lost == 1).mean(), (lost == -1).mean()]
        draws = generator.multinomial(len(lost), [*shares, max(0.0, 1 - sum(shares))], size=resamples)
        drops += (draws[:, 0] - draws[:, 1]) / len(lost)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drops / len(classes), [tail, 1 - tail])
    return float(low), float(high)


def find_flips(
    baseline: Logits, engine: Logits, labels: Labels, *, keys: Sequence[str], classes: Sequence[str]
) -> list[Flip]:
    """Images whose answer changed, the most confident baseline answer first."""
    before, now = baseline.argmax(axis=1), engine.argmax(axis=1)
    exponentials = np.exp(baseline.astype(np.float64) - baseline.max(axis=1, keepdims=True))
    scores = np.sort(exponentials / exponentials.sum(axis=1, keepdims=True), axis=1)
    margin = scores[:, -1] - scores[:, -2]
    flipped = sorted((int(i) for i in np.flatnonzero(before != now)), key=lambda i: -float(margin[i]))
    return [
        Flip(keys[i], classes[labels[i]], classes[before[i]], classes[now[i]], float(margin[i]))
        for i in flipped
    ]


def _check(logits: Logits, labels: Labels) -> None:
    if len(labels) == 0:
        raise DataError("There is no image to judge: the evaluation split is empty.")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise DataError(f"Got logits {logits.shape} for {len(labels)} labels.")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise NonFiniteError(
            f"The logits of {bad.size} images are NaN or infinite, the first is image {bad[0]}."
        )
