"""Judges one engine's answers against PyTorch's: figures, flips and verdict. Needs numpy only, so a Jetson can.

Where the answers come from is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekiln.benchmarks.judging.accuracy import (
    Labels,
    PairedCounts,
    compare_logits,
    find_flips,
    measure_accuracy,
    pair_answers,
    pair_by_class,
    warn_of_collapse,
)
from edgekiln.benchmarks.judging.gate import (
    GateResult,
    Metric,
    balanced_interval,
    check_metric,
    judge,
    judge_balanced,
    mcnemar_p,
    tango_interval,
)
from edgekiln.runtime.spec import Logits

__all__ = ["Pairs", "Reference", "judge_answers", "summarize_simulation"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What engines are judged against: the PyTorch model's logits float32 (N, C), labels and names of N images."""

    logits: Logits
    labels: Labels
    keys: Sequence[str]
    classes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The answers of both sides to the same N images: logits float32 (N, C) and labels int64 (N,)."""

    baseline: Logits
    engine: Logits
    labels: Labels

    def join(self, other: Pairs) -> Pairs:
        """These images and the others after them."""
        return Pairs(
            np.concatenate([self.baseline, other.baseline]),
            np.concatenate([self.engine, other.engine]),
            np.concatenate([self.labels, other.labels]),
        )


def judge_answers(
    reference: Reference,
    logits: Logits,
    *,
    max_drop: float,
    confidence: float,
    metric: Metric = "top1",
    failure: str | None = None,
    val: Pairs | None = None,
) -> dict[str, Any]:
    """JSON values about an engine: verdict and reason, accuracy, paired drops with their intervals, flips.

    Args:
        reference: the PyTorch answers for the same images, in the same order.
        logits: float32 (N, C) of the engine.
        max_drop: largest allowed drop of the metric, a share.
        confidence: of the intervals, one of which decides.
        metric: what may not drop: top-1 or balanced accuracy.
        failure: what was found wrong with the engine before; decides against it whatever its accuracy.
        val: answers to a further split. Drops, their counts and the verdict are then of both, and ``drop_by_split``
            tells each; accuracy, flips and distances of logits stay those of test.
    """
    metric, baseline, labels = check_metric(metric), reference.logits, reference.labels
    test = Pairs(baseline, logits, labels)
    paired = _pair(test if val is None else test.join(val), confidence)
    result = _apply_gate(metric, paired, max_drop=max_drop, confidence=confidence)
    # The gate counts images, and does not know of which splits.
    reason = result.reason if val is None else result.reason.replace("test images", "test and val images")
    own, theirs = measure_accuracy(logits, labels), measure_accuracy(baseline, labels)
    collapse = warn_of_collapse(own.distinct_outputs, theirs.distinct_outputs)
    flips = find_flips(baseline, logits, labels, keys=reference.keys, classes=reference.classes)
    return {
        "verdict": "fail" if failure else result.verdict,
        "reason": failure or reason,
        "warnings": [collapse] if collapse else [],
        "accuracy": own.to_dict(),
        "metric": metric,
        **paired.to_dict(),
        **({} if val is None else {"drop_by_split": _drop_by_split(test, val, confidence)}),
        "max_drop": max_drop,
        "confidence": confidence,
        "images_to_decide": result.images_to_decide,
        **asdict(compare_logits(baseline, logits)),
        "flips": [asdict(flip) for flip in flips],
    }


@dataclass(frozen=True, slots=True)
class _Paired:
    """What changed on some images, whole and by class, and the drops with their intervals."""

    counts: PairedCounts
    strata: Sequence[PairedCounts]
    drop: dict[str, float]
    balanced_drop: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the drops, and the counts that they come from."""
        return {
            "drop": self.drop,
            "balanced_drop": self.balanced_drop,
            "counts": asdict(self.counts),
            "agreement": self.counts.agreement,
            "mcnemar_p": mcnemar_p(self.counts.broken, self.counts.mended),
        }


def _pair(pairs: Pairs, confidence: float) -> _Paired:
    counts = pair_answers(pairs.baseline, pairs.engine, pairs.labels)
    strata = pair_by_class(pairs.baseline, pairs.engine, pairs.labels)
    before, now = (
        measure_accuracy(logits, pairs.labels).balanced for logits in (pairs.baseline, pairs.engine)
    )
    return _Paired(
        counts,
        strata,
        _interval(counts.drop, tango_interval(counts.broken, counts.mended, counts.images, confidence)),
        _interval(before - now, balanced_interval(strata, confidence)),
    )


def _drop_by_split(test: Pairs, val: Pairs, confidence: float) -> dict[str, Any]:
    """Whether val flatters is seen where each split stands alone."""
    return {name: _pair(part, confidence).to_dict() for name, part in (("test", test), ("val", val))}


def _apply_gate(metric: Metric, paired: _Paired, *, max_drop: float, confidence: float) -> GateResult:
    if metric == "balanced":
        return judge_balanced(paired.strata, max_drop=max_drop, confidence=confidence)
    return judge(paired.counts, max_drop=max_drop, confidence=confidence)


def _interval(value: float, bounds: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "low": bounds[0], "high": bounds[1]}


def summarize_simulation(reference: Reference, logits: Logits) -> dict[str, Any]:
    """What a CPU simulation of an engine's graph answers: evidence for one that cannot run here, never a verdict."""
    counts = pair_answers(reference.logits, logits, reference.labels)
    return {
        "top1": measure_accuracy(logits, reference.labels).top1,
        "drop": counts.drop,
        "flips": counts.images - counts.agreeing,
        "images": counts.images,
    }
