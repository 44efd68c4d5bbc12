"""Judges one engine's answers against PyTorch's: figures, flips and verdict. Needs numpy only, so a Jetson can.

Where the answers come from is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

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

__all__ = ["Reference", "judge_answers", "summarize_simulation"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What engines are judged against: the PyTorch model's logits float32 (N, C), labels and names of N images."""

    logits: Logits
    labels: Labels
    keys: Sequence[str]
    classes: Sequence[str]


def judge_answers(
    reference: Reference,
    logits: Logits,
    *,
    max_drop: float,
    confidence: float,
    metric: Metric = "top1",
    failure: str | None = None,
) -> dict[str, Any]:
    """JSON values about an engine: verdict and reason, accuracy, paired drops with their intervals, flips.

    Args:
        reference: the PyTorch answers for the same images, in the same order.
        logits: float32 (N, C) of the engine.
        max_drop: largest allowed drop of the metric, a share.
        confidence: of the intervals, one of which decides.
        metric: what may not drop: top-1 or balanced accuracy.
        failure: what was found wrong with the engine before; decides against it whatever its accuracy.
    """
    metric = check_metric(metric)
    baseline, labels = reference.logits, reference.labels
    counts, strata = pair_answers(baseline, logits, labels), pair_by_class(baseline, logits, labels)
    result = _apply_gate(metric, counts, strata, max_drop=max_drop, confidence=confidence)
    own, theirs = measure_accuracy(logits, labels), measure_accuracy(baseline, labels)
    collapse = warn_of_collapse(own.distinct_outputs, theirs.distinct_outputs)
    flips = find_flips(baseline, logits, labels, keys=reference.keys, classes=reference.classes)
    return {
        "verdict": "fail" if failure else result.verdict,
        "reason": failure or result.reason,
        "warnings": [collapse] if collapse else [],
        "accuracy": own.to_dict(),
        "metric": metric,
        "drop": _interval(
            counts.drop, tango_interval(counts.broken, counts.mended, counts.images, confidence)
        ),
        "balanced_drop": _interval(theirs.balanced - own.balanced, balanced_interval(strata, confidence)),
        "counts": asdict(counts),
        "agreement": counts.agreement,
        "mcnemar_p": mcnemar_p(counts.broken, counts.mended),
        "max_drop": max_drop,
        "confidence": confidence,
        "images_to_decide": result.images_to_decide,
        **asdict(compare_logits(baseline, logits)),
        "flips": [asdict(flip) for flip in flips],
    }


def _apply_gate(
    metric: Metric,
    counts: PairedCounts,
    strata: Sequence[PairedCounts],
    *,
    max_drop: float,
    confidence: float,
) -> GateResult:
    if metric == "balanced":
        return judge_balanced(strata, max_drop=max_drop, confidence=confidence)
    return judge(counts, max_drop=max_drop, confidence=confidence)


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
