"""Judges one engine's answers against PyTorch's: figures, flips and verdict. Needs numpy only, so a Jetson can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekiln.benchmarks.accuracy import (
    Labels,
    balanced_drop_interval,
    find_flips,
    measure_accuracy,
    pair_answers,
)
from edgekiln.benchmarks.gate import judge
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
    reference: Reference, logits: Logits, *, max_drop: float, confidence: float, failure: str | None = None
) -> dict[str, Any]:
    """JSON values about an engine: verdict and reason, accuracy, paired drop with interval, flips.

    Args:
        reference: the PyTorch answers for the same images, in the same order.
        logits: float32 (N, C) of the engine.
        max_drop: largest allowed drop of top-1, a share.
        confidence: of the interval that decides.
        failure: what was found wrong with the engine before; decides against it whatever its accuracy.
    """
    baseline, labels = reference.logits, reference.labels
    counts = pair_answers(baseline, logits, labels)
    result = judge(counts, max_drop=max_drop, confidence=confidence)
    low, high = balanced_drop_interval(baseline, logits, labels, confidence)
    own, theirs = measure_accuracy(logits, labels), measure_accuracy(baseline, labels)
    flips = find_flips(baseline, logits, labels, keys=reference.keys, classes=reference.classes)
    return {
        "verdict": "fail" if failure else result.verdict,
        "reason": failure or result.reason,
        "accuracy": own.to_dict(),
        "drop": {"value": result.drop, "low": result.low, "high": result.high},
        "balanced_drop": {"value": theirs.balanced - own.balanced, "low": low, "high": high},
        "counts": asdict(counts),
        "max_drop": max_drop,
        "confidence": confidence,
        "images_to_decide": result.images_to_decide,
        "max_logit_difference": float(np.abs(baseline - logits).max()),
        "flips": [asdict(flip) for flip in flips],
    }


def summarize_simulation(reference: Reference, logits: Logits) -> dict[str, Any]:
    """What a CPU simulation of an engine's graph answers: evidence for one that cannot run here, never a verdict."""
    counts = pair_answers(reference.logits, logits, reference.labels)
    return {
        "top1": measure_accuracy(logits, reference.labels).top1,
        "drop": counts.drop,
        "flips": counts.images - counts.agreeing,
        "images": counts.images,
    }
