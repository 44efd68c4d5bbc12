"""Whether a model gives the same classes when JPEGs are decoded fast: what allows ``pictures/fast_decode.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekiln.runtime.bundles.manifest import FastDecodeRecord
from edgekiln.runtime.errors import GateError, UsageError
from edgekiln.runtime.pictures.fast_decode import MAX_BOUND, MEAN_BOUND, measure_difference, prepare_scaled
from edgekiln.runtime.pictures.image import Frame, Picture, prepare
from edgekiln.runtime.serving.loaded import LoadedModel, ModelHolder
from edgekiln.runtime.spec import Logits

__all__ = ["MINIMUM_EVIDENCE", "FastDecodeEvidence", "establish_agreement", "judge_agreement"]

MINIMUM_EVIDENCE = 100
"""Pictures that have to be scaled: with none of 100 flipped, at most 3 % flip, with 95 % confidence (the rule of
three)."""


@dataclass(frozen=True, slots=True)
class FastDecodeEvidence:
    """Why fast decoding was allowed.

    Attributes:
        pictures: how many were compared.
        scaled: how many of them the fast path decodes in another way than the plain path; all gave the same class.
        mean_difference: largest mean absolute difference of a prepared picture, in levels of 255.
    """

    pictures: int
    scaled: int
    mean_difference: float


def establish_agreement(
    classifier: ModelHolder, pictures: Iterable[Picture], *, minimum: int = MINIMUM_EVIDENCE
) -> FastDecodeEvidence:
    """Turn fast decoding on for the model that ``classifier`` serves, if each picture gets the same class both ways.

    It is off again after a reload: what was shown of one model says nothing of the next.

    Args:
        classifier: the one to turn it on for.
        pictures: the evaluation split, or pictures like those to come.
        minimum: how many of them have to be such that the fast path scales them.

    Raises:
        GateError: a picture gets another class; it stays off.
        UsageError: fewer than ``minimum`` pictures are evidence.
        ImageError: a picture cannot be read.
    """
    compared, differences, flipped = 0, [], []
    with classifier.hold() as model:
        for compared, picture in enumerate(pictures, start=1):
            plain = prepare(picture, model.contract)  # also where it is not compared: it may be unreadable
            if (scaled := prepare_scaled(picture, model.contract)) is None:
                continue
            differences.append(measure_difference(scaled, plain)[0])
            if not _same_class(model, plain, scaled):
                flipped.append(compared - 1)
        _check_evidence(compared, len(differences), flipped, minimum)
        model.fast_decode = True
    return FastDecodeEvidence(compared, len(differences), max(differences))


def _same_class(model: LoadedModel, plain: Frame, scaled: Frame) -> bool:
    first, second = model.predict_frames([plain, scaled])
    return first.index == second.index


def _check_evidence(compared: int, scaled: int, flipped: list[int], minimum: int) -> None:
    if flipped:
        raise GateError(
            f"Fast decoding gives {len(flipped)} of {scaled} pictures another class; the first is number {flipped[0]}.",
            hint="It stays off. A model that is this near to its borders needs the plain path.",
        )
    if scaled < max(1, minimum):
        raise UsageError(
            f"{scaled} of {compared} pictures are JPEGs large enough to be scaled; {max(1, minimum)} are wanted.",
            hint="Smaller ones gain nothing. Take pictures of the size that the product will see.",
        )


def judge_agreement(
    pictures: int, plain: Logits, scaled: Logits, differences: Sequence[tuple[float, int]]
) -> FastDecodeRecord:
    """What a bundle records of one engine.

    Args:
        pictures: of the whole evaluation split.
        plain, scaled: float32 (N, classes) for the N of them that ``prepare_scaled`` makes another array of: their
            logits by way of the plain path, and by way of the fast one.
        differences: (mean, largest) absolute difference of the two arrays of each, in levels of 255.
    """
    flipped = int((plain.argmax(axis=1) != scaled.argmax(axis=1)).sum()) if len(plain) else 0
    mean = max((mean for mean, _ in differences), default=0.0)
    largest = max((largest for _, largest in differences), default=0)
    count = len(plain)
    if flipped:
        allowed, reason = False, f"fast decoding gives {flipped} of {count} pictures another class."
    elif count < MINIMUM_EVIDENCE:
        few = f"{count} of {pictures} pictures that judged it are JPEGs large enough to be scaled"
        allowed, reason = False, f"{few}; {MINIMUM_EVIDENCE} are wanted."
    elif mean > MEAN_BOUND or largest > MAX_BOUND:
        allowed, reason = (
            False,
            f"the arrays differ by {mean:.2f} on average and {largest} at most: over the bound.",
        )
    else:
        allowed, reason = True, f"all {count} pictures that were decoded both ways got the same class."
    return FastDecodeRecord(allowed, reason, pictures, count, flipped, mean, largest)
