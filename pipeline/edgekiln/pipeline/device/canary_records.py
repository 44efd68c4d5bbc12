"""Records an engine's canaries where it is judged: its answers to the made pictures, and how far others may differ.

A picture's tolerance is the sum of three parts:

1. a share of the range of FP32's answers, by precision (``_FLOORS``): other orders of summation, other roundings;
2. twice how far this engine's answers lie from FP32's for that picture, or for half of the pictures where that is
   more. Processors and versions differ in which products they compute in INT8 and how they round; each way has its own
   rounding error, of about that size, and two of them are at most twice as far apart;
3. four times how far its own answers differ between batch sizes and numbers of threads.

Training with quantization moves the weights too, so part 2 is wider for such a variant.
So a library may compute another way and stays inside, while a wrong kernel (another channel's scale, an overflow, a
stale buffer) errs by a share of the answer itself. Knows neither how an engine is opened nor its verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.canaries import CanaryRecord, decode_logits, plan_calls
from edgekiln.runtime.bundles.canary_inputs import CANARIES, CANARY_RECIPE, digest_frames, make_canaries
from edgekiln.runtime.bundles.source import FRESH_COPY
from edgekiln.runtime.errors import BundleError, EngineError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames, Logits, Precision

__all__ = ["CanaryReference", "answer_canaries", "find_tolerances", "read_reference", "record_canaries"]

_FLOORS: Mapping[Precision, float] = {
    Precision.FP32: 1e-3,
    Precision.FP16: 5e-3,
    Precision.BF16: 2e-2,
    Precision.INT8: 1e-2,
}
"""Share of the range of FP32's answers. FP32: Winograd's convolutions and fused additions differ by up to some 1e-4.
FP16 has 11 bits, and sums lose some. BF16 has 8: one rounding of an answer is up to 1/256 of it already. INT8: an 8-bit
answer has steps of 1/255 of its range, and may be some off."""

_LEAST = 1e-4
"""In logits: an engine whose answers hardly differ is no reason to ask for the same bits."""

_THREADS = frozenset({1, 2})
"""Numbers of threads that a CPU's engine is asked with, besides the library's own choice, which is all cores."""


@dataclass(frozen=True, slots=True)
class CanaryReference:
    """What an engine is held against: its precision, and FP32's answers (16, classes), where there are such."""

    logits: Logits | None
    precision: Precision


def answer_canaries(session: Session) -> Logits:
    """float32 (16, classes): an engine's answer to each picture alone."""
    frames = make_canaries(*session.frame_shape)
    return np.concatenate([session.run(frames[i : i + 1]) for i in range(len(frames))])


def record_canaries(
    session: Session, reopen: Callable[[int], Session], reference: CanaryReference
) -> dict[str, Any]:
    """JSON values for the variant's entry of the manifest.

    Args:
        session: the engine.
        reopen: opens it again with so many threads; called for CPU backends only.
        reference: FP32's answers.

    Raises:
        EngineError: its answers depend on the batch size or the number of threads.
        NonFiniteError: it gave NaN or infinity.
    """
    frames = make_canaries(*session.frame_shape)
    answers = answer_canaries(session)
    spread = _spread(session, frames, answers)
    if session.backend in CPU_BACKENDS:
        for threads in sorted(_THREADS - {os.cpu_count()}):
            other = reopen(threads)
            try:
                spread = np.maximum(spread, _spread(other, frames, answers))
            finally:
                other.close()
    within = find_tolerances(answers, np.zeros_like(spread), reference)
    if (spread > within).any():
        worst = int((spread / within).argmax())
        raise EngineError(
            f"its answers depend on the batch size or the number of threads: for the made picture "
            f"{CANARIES[worst][0]!r} by {spread[worst]:.2g} in a logit, where {within[worst]:.2g} is rounding"
        )
    tolerances = tuple(float(value) for value in find_tolerances(answers, spread, reference))
    return CanaryRecord(CANARY_RECIPE, digest_frames(frames), answers, tolerances).to_dict()


def _spread(session: Session, frames: Frames, answers: Logits) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Largest |difference| of a logit from ``answers`` by picture, over single pictures and all batch sizes."""
    spread = np.zeros(len(frames))
    for call in plan_calls(session):
        pictures = list(call)
        logits = session.run(frames[pictures]).astype(np.float64)
        # one may be in a call several times
        np.maximum.at(spread, pictures, np.abs(logits - answers[pictures]).max(axis=1))
    return spread


def find_tolerances(
    answers: Logits, spread: np.ndarray[Any, np.dtype[np.float64]], reference: CanaryReference
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 (16,): what is allowed for each picture, see the module. Without FP32's answers, part 2 is left out."""
    known = answers if reference.logits is None else reference.logits
    floor = max(_FLOORS[reference.precision] * float(np.ptp(known)), _LEAST)
    distance = np.abs(answers.astype(np.float64) - known).max(axis=1)
    allowed: np.ndarray[Any, np.dtype[np.float64]] = (
        floor + 2 * np.maximum(distance, np.median(distance)) + 4 * spread
    )
    return allowed


def read_reference(bundle: Bundle) -> Logits | None:
    """FP32's answers, as a bundle keeps them for engines that are judged elsewhere.

    ``None`` where it is older than that, or keeps answers to pictures of another recipe.

    Raises:
        BundleError: they cannot be read.
    """
    values = bundle.manifest.get("canary_reference")
    if values is None:
        return None
    try:
        if values["recipe"] != CANARY_RECIPE:
            return None
        return decode_logits(values["logits"], (len(CANARIES), len(bundle.contract.classes)))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"The canary_reference of {bundle.path} cannot be read: {error}.",
            hint=FRESH_COPY,
            path=bundle.path,
        ) from error
