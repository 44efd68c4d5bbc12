"""Is the network any good at all? An engine that equals a network which guesses is worth nothing.

Top-1 of PyTorch and of each engine is held against the share of the largest class, which a constant answer reaches
too, and against ``gate.min_top1`` where the recipe sets it. Both by Wilson's interval of top-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

from edgekiln.benchmarks.judging.gate import format_confidence, wilson_interval

__all__ = ["apply_floor", "judge_floor", "warn_of_guessing"]

_SEVERITY = ("pass", "inconclusive", "fail")
_Verdict = Literal["pass", "fail", "inconclusive"]


def warn_of_guessing(
    engines: Iterable[Mapping[str, Any]], classes: Sequence[str], confidence: float
) -> list[str]:
    """One sentence that names the engines whose top-1 is not shown to be above a constant answer's; none, no sentence.

    Args:
        engines: rows of a report, PyTorch's first; those without ``accuracy`` were not judged.
        classes: names in the order of the labels.
        confidence: of the two-sided interval of top-1.
    """
    told: list[str] = []
    largest, most, images = "", 0, 0
    for engine in engines:
        accuracy = engine.get("accuracy")
        if not accuracy:
            continue
        counts = _count_labels(accuracy)
        most, images = max(counts), sum(counts)
        largest = classes[counts.index(most)]
        low, high = _top1_interval(accuracy, confidence)
        if low <= most / images:
            name = "PyTorch" if engine["name"] == "baseline" else engine["name"]
            figures = f"{100 * accuracy['top1']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
            told.append(f"{'of ' * (not told)}{name} {figures}")
    if not told:
        return []
    return [
        f"NO BETTER THAN GUESSING: top-1 {', '.join(told)}, with its {format_confidence(confidence)} interval, is not "
        f"shown to be above {100 * most / images:.2f} %, the share of {largest!r} among the {images} test pictures. "
        "Check the labels, train longer or on more pictures; gate.min_top1 refuses a network that is not good enough."
    ]


def judge_floor(accuracy: Mapping[str, Any], min_top1: float, confidence: float) -> tuple[_Verdict, str]:
    """Verdict and reason on a top-1 that has to be ``min_top1`` (a share) at least."""
    low, high = _top1_interval(accuracy, confidence)
    top1, images = accuracy["top1"], accuracy["images"]
    seen = (
        f"top-1 {100 * top1:.2f} %, {format_confidence(confidence)} interval {100 * low:.2f} to {100 * high:.2f}, "
        f"wanted at least {100 * min_top1:.2f} (gate.min_top1)"
    )
    if low >= min_top1:
        return "pass", f"{seen}: the whole interval is inside"
    if high < min_top1:
        return "fail", f"{seen}: the whole interval is below"
    if top1 == min_top1:
        return "inconclusive", f"{seen}: no number of images would decide at this share"
    # Wilson's interval is where the score test does not reject: it excludes the floor from this number on.
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    needed = math.ceil(z * z * min_top1 * (1 - min_top1) / (top1 - min_top1) ** 2)
    return (
        "inconclusive",
        f"{seen}: about {needed} test images would decide at this share, there are {images}",
    )


def apply_floor(
    judged: dict[str, Any], baseline: Mapping[str, Any], min_top1: float | None
) -> dict[str, Any]:
    """What ``judge_answers`` gave of an engine, with the floor's verdict on the engine and on PyTorch itself.

    The worst verdict holds. ``baseline`` is the accuracy of PyTorch on the same images; without ``min_top1`` nothing is
    changed.
    """
    if min_top1 is None:
        return judged
    own, reason = judge_floor(judged["accuracy"], min_top1, judged["confidence"])
    theirs, reason_of_theirs = judge_floor(baseline, min_top1, judged["confidence"])
    reasons = [judged["reason"], reason]
    if _SEVERITY.index(theirs) > _SEVERITY.index(own):
        reasons.append(f"PyTorch itself: {reason_of_theirs}")
    verdict = max(judged["verdict"], own, theirs, key=_SEVERITY.index)
    return {**judged, "verdict": verdict, "reason": "; ".join(reasons)}


def _top1_interval(accuracy: Mapping[str, Any], confidence: float) -> tuple[float, float]:
    images = accuracy["images"]
    return wilson_interval(round(accuracy["top1"] * images), images, confidence)


def _count_labels(accuracy: Mapping[str, Any]) -> list[int]:
    """How many test images each class has, from the confusion as ``Accuracy.to_dict`` stores it."""
    stored = accuracy["confusion"]
    if not isinstance(stored, Mapping):
        return [sum(row) for row in stored]
    counts = list(stored["diagonal"])
    for label, _, count in stored["off_diagonal"]:
        counts[label] += count
    return counts
