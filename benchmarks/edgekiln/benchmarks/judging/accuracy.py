"""How good are the answers, and what changed in them? Works on logits only, so anything can be judged again.

An image's answer is the class of its largest logit, the first of them where several are equal. Nothing here decides
whether an engine may ship; ``gate.py`` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import DataError, NonFiniteError
from edgekiln.runtime.spec import Logits

__all__ = ["Accuracy", "Difference", "Flip", "Labels", "PairedCounts", "compare_logits", "find_flips",
           "measure_accuracy", "pair_answers", "pair_by_class", "warn_of_collapse"]  # fmt: skip

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

CALIBRATION_BINS = 15
"""As in Guo et al. (2017), so that the figure can be set beside theirs."""

DENSE_CLASSES = 50
"""Up to this many classes the confusion matrix is stored whole; 1,000 classes would be a million numbers."""

_TOP = 5
_ROWS = (
    1024  # images taken at a time: float64 copies of all logits would not fit beside 50,000 x 1,000 of them
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How one model answers; shares are 0 to 1.

    Attributes:
        images: how many were judged.
        top1: share of images whose answer is the label.
        top5: share of images whose label is among the five largest logits; ``None`` below six classes, where five
            answers leave none out.
        balanced: mean recall over the classes that occur.
        recall: per class; ``None`` for a class without images.
        ece: expected calibration error of the answers' softmax; see ``_calibration_error``.
        distinct_outputs: distinct rows of logits; a collapsed engine has few, and looks fast.
        confusion: counts int64 (C, C); rows are labels, columns answers.
    """

    images: int
    top1: float
    top5: float | None
    balanced: float
    recall: tuple[float | None, ...]
    ece: float
    distinct_outputs: int
    confusion: NDArray[np.int64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. ``confusion`` is a list of rows up to 50 classes, else the diagonal and the rest:
        ``{"diagonal": [count, ...], "off_diagonal": [[label, answer, count], ...]}``."""
        return {
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "balanced": self.balanced,
            "recall": list(self.recall),
            "ece": self.ece,
            "distinct_outputs": self.distinct_outputs,
            "confusion": _store_confusion(self.confusion),
        }


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

    @property
    def agreement(self) -> float:
        """Share of images with the same answer, right or wrong."""
        return self.agreeing / self.images


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an engine's logits are from the baseline's.

    Attributes:
        max_logit_difference, mean_logit_difference: of ``|baseline - engine|`` over all images and classes.
        kl_nats: mean over the images of KL(baseline || engine) of their softmax distributions.
    """

    max_logit_difference: float
    mean_logit_difference: float
    kl_nats: float


@dataclass(frozen=True, slots=True)
class Flip:
    """One image on which two models disagree; ``margin`` is the first model's softmax margin of its answer."""

    key: str
    label: str
    before: str
    now: str
    margin: float


def measure_accuracy(logits: Logits, labels: Labels) -> Accuracy:
    """Judge logits float32 (N, C) against labels int64 (N,).

    Raises:
        DataError: no images, shapes that do not match, or a label that is no class.
        NonFiniteError: NaN or infinity among the logits.
    """
    _check(logits, labels)
    classes = logits.shape[1]
    answers = logits.argmax(axis=1)
    confusion = np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)
    images, right = confusion.sum(axis=1), confusion.diagonal()
    recall = tuple(float(r / n) if n else None for r, n in zip(right, images, strict=True))
    return Accuracy(
        images=len(labels),
        top1=float((answers == labels).mean()),
        top5=_top_share(logits, labels, _TOP) if classes > _TOP else None,
        balanced=float(np.mean([r for r in recall if r is not None])),
        recall=recall,
        ece=_calibration_error(_confidences(logits), answers == labels),
        distinct_outputs=_count_distinct(logits),
        confusion=confusion.astype(np.int64),
    )


def pair_answers(baseline: Logits, engine: Logits, labels: Labels) -> PairedCounts:
    """Count what changed from ``baseline`` to ``engine``, both float32 (N, C) of the same images."""
    _check_pair(baseline, engine, labels)
    before, now = baseline.argmax(axis=1), engine.argmax(axis=1)
    return _count_pairs(before, now, labels)


def pair_by_class(baseline: Logits, engine: Logits, labels: Labels) -> list[PairedCounts]:
    """``pair_answers`` for the images of each class that occurs, in the classes' order."""
    _check_pair(baseline, engine, labels)
    before, now = baseline.argmax(axis=1), engine.argmax(axis=1)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return [_count_pairs(before[part], now[part], labels[part]) for part in np.split(order, starts)]


def _count_pairs(before: Labels, now: Labels, labels: Labels) -> PairedCounts:
    was_right, is_right = before == labels, now == labels
    return PairedCounts(
        images=len(labels),
        broken=int((was_right & ~is_right).sum()),
        mended=int((~was_right & is_right).sum()),
        agreeing=int((before == now).sum()),
    )


def compare_logits(baseline: Logits, engine: Logits) -> Difference:
    """Compare the logits float32 (N, C) of two models for the same images.

    KL(p || q) = sum_c p_c (log p_c - log q_c), with log p from a log-softmax in float64: no term is a logarithm of a
    probability that has underflowed to zero.

    Raises:
        DataError: shapes that do not match.
    """
    if baseline.shape != engine.shape or baseline.size == 0:
        raise DataError(f"Got logits {engine.shape} to compare with logits {baseline.shape}.")
    largest = total = divergence = 0.0
    for rows in _row_blocks(len(baseline)):
        first, second = baseline[rows].astype(np.float64), engine[rows].astype(np.float64)
        distance = np.abs(first - second)
        largest = max(largest, float(distance.max()))
        total += float(distance.sum())
        log_p, log_q = _log_softmax(first), _log_softmax(second)
        divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
    # KL is never negative; a sum of rounded terms may be, by 1e-17.
    return Difference(largest, total / baseline.size, max(0.0, divergence / len(baseline)))


def find_flips(
    baseline: Logits, engine: Logits, labels: Labels, *, keys: Sequence[str], classes: Sequence[str]
) -> list[Flip]:
    """Images whose answer changed, worst first: lost right answers, then by the baseline's margin."""
    before, now = baseline.argmax(axis=1), engine.argmax(axis=1)
    flipped = np.flatnonzero(before != now)
    margins = dict(zip(flipped.tolist(), _margins(baseline[flipped]).tolist(), strict=True))
    worst_first = sorted(margins, key=lambda i: (before[i] != labels[i], -margins[i]))
    return [
        Flip(keys[i], classes[labels[i]], classes[before[i]], classes[now[i]], margins[i])
        for i in worst_first
    ]


def warn_of_collapse(distinct: int, baseline_distinct: int) -> str | None:
    """A sentence where an engine tells the images apart far less than the baseline does, else ``None``.

    Test images are distinct, and so are PyTorch's logits for them. Half is generous: rounding merges a few rows, an
    engine that ignores its input merges nearly all.
    """
    if distinct >= baseline_distinct / 2:
        return None
    return (
        f"collapsed: {distinct} distinct outputs, where PyTorch has {baseline_distinct} for the same images"
    )


# --------------------------------------------------------------------------------------------------------------
# Parts


def _top_share(logits: Logits, labels: Labels, k: int) -> float:
    """Share of images with fewer than k classes ahead of the label; equal logits count in the classes' order, as
    argmax does, so that k = 1 is top-1."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ahead = (logits > own).sum(axis=1) + ((logits == own) & earlier).sum(axis=1)
    return float((ahead < k).mean())


def _calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Expected calibration error of answers with softmax ``confidence`` float64 (N,).

    Guo, C., Pleiss, G., Sun, Y., Weinberger, K. (2017), On calibration of modern neural networks, ICML, eq. 3:

        ECE = sum_m |B_m| / N * |accuracy(B_m) - mean confidence(B_m)|,

    where B_m holds the images with a confidence in ((m - 1) / M, m / M], and M is 15.
    """
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64)
    hits = np.bincount(bins, weights=right, minlength=CALIBRATION_BINS + 1)
    sums = np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS + 1)
    return float(np.abs(hits - sums).sum() / len(confidence))


def _confidences(logits: Logits) -> Floats:
    """Softmax of the answers, float64 (N,): 1 / sum_c exp(logit_c - largest logit)."""
    parts = []
    for rows in _row_blocks(len(logits)):
        values = logits[rows].astype(np.float64)
        parts.append(1 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1))
    return np.concatenate(parts)


def _margins(logits: Logits) -> Floats:
    """Softmax of the best class less that of the second, float64 (N,). Needs two classes, as a flip does."""
    if len(logits) == 0:
        return np.zeros(0)
    best = np.partition(np.exp(_log_softmax(logits.astype(np.float64))), -2, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _count_distinct(logits: Logits) -> int:
    """Distinct rows, by digest: np.unique(axis=0) compares field by field, minutes for 1,000 classes."""
    rows = np.ascontiguousarray(logits) + 0  # turns -0.0 into 0.0, which has other bytes
    return len({hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows})


def _row_blocks(images: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, images, _ROWS))


def _store_confusion(confusion: NDArray[np.int64]) -> Any:
    if len(confusion) <= DENSE_CLASSES:
        return confusion.tolist()
    off_diagonal = [
        [int(label), int(answer), int(confusion[label, answer])]
        for label, answer in zip(*np.nonzero(confusion), strict=True)
        if label != answer
    ]
    return {"diagonal": confusion.diagonal().tolist(), "off_diagonal": off_diagonal}


def _check_pair(baseline: Logits, engine: Logits, labels: Labels) -> None:
    _check(baseline, labels)
    _check(engine, labels)
    if baseline.shape != engine.shape:
        raise DataError(f"Got logits {engine.shape} to compare with logits {baseline.shape}.")


def _check(logits: Logits, labels: Labels) -> None:
    if len(labels) == 0:
        raise DataError("There is no image to judge: the evaluation split is empty.")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise DataError(f"Got logits {logits.shape} for {len(labels)} labels.")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(f"Got labels {labels.min()} to {labels.max()} for {logits.shape[1]} classes.")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise NonFiniteError(
            f"The logits of {bad.size} images are NaN or infinite, the first is image {bad[0]}."
        )
