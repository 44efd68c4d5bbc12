"""Judges engines on the target against the answers of the parent's PyTorch, on the same pictures. Builds nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import apply_floor
from edgekiln.benchmarks.judging.verdict import judge_answers
from edgekiln.pipeline.device.canary_records import CanaryReference, record_canaries
from edgekiln.pipeline.device.pictures import KnownPictures
from edgekiln.pipeline.device.static_batches import ask_static_batches, list_static_batches
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.backends.tensorrt_buckets import list_profiles
from edgekiln.runtime.bundles.canaries import CanaryRecord, check_canaries
from edgekiln.runtime.errors import EngineError, EnvironmentProblem, NonFiniteError, ResourceError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Logits

__all__ = ["JudgedBy", "judge_engines"]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class JudgedBy:
    """What an engine is held against.

    Attributes:
        gate: metric, largest drop and confidence.
        reference: FP32's answers to the made pictures, and the engine's precision.
        recorded: the engine's own answers to them where it was judged before; ``None`` for one that is new.
        failure: what was found wrong with it before it ran.
    """

    gate: Mapping[str, Any]
    reference: CanaryReference
    recorded: CanaryRecord | None = None
    failure: str | None = None


def judge_engines(
    backend: Backend,
    engines: Sequence[Path],
    pictures: KnownPictures | None,
    judged_by: JudgedBy,
    progress: Progress,
) -> tuple[dict[str, Any], Logits | None]:
    """The verdict, its figures and canaries; and the logits of the pictures that were found, where the engine ran."""
    failure, gate = judged_by.failure, judged_by.gate
    if pictures is None:
        reason = failure or "built on this machine without pictures to judge it on; --data FOLDER judges it"
        return {"verdict": "fail" if failure else "unverified", "reason": reason}, None
    try:
        logits, canaries, details = _run(backend, engines, pictures, judged_by, progress)
    except (EnvironmentProblem, ResourceError) as problem:
        own = backend.startswith("tensorrt")  # whose engines are built on the machine
        told = f"built, not run, because: {problem}" if own else f"not run here, because: {problem}"
        return {"verdict": "not-run", "reason": told}, None
    except (NonFiniteError, EngineError) as error:
        return {"verdict": "fail", "reason": f"failed while running: {error}"}, None
    judged = judge_answers(
        pictures.reference,
        logits,
        max_drop=gate["max_drop"],
        confidence=gate["confidence"],
        metric=gate["metric"],
        failure=failure,
    )
    baseline = measure_accuracy(pictures.reference.logits, pictures.reference.labels).to_dict()
    judged = apply_floor(judged, baseline, gate["min_top1"])
    judged["canaries"] = canaries
    judged |= details
    judged["judged_images"] = {"here": len(logits), "parent": pictures.known}
    return judged, logits


def _run(
    backend: Backend,
    engines: Sequence[Path],
    pictures: KnownPictures,
    judged_by: JudgedBy,
    progress: Progress,
) -> tuple[Logits, dict[str, Any], dict[str, Any]]:
    """The engine's answers to the pictures, its canaries, and figures of its profiles and static models, if any.

    Raises:
        EngineError: it answers the made pictures otherwise than where it was judged before.
    """
    read = [engine.read_bytes() for engine in engines]
    session = open_session(backend, read)
    try:
        if judged_by.recorded is not None:
            asked = check_canaries(session, judged_by.recorded, thorough=True)
            if asked.problem:
                raise EngineError(
                    f"it answers otherwise here than where it was judged before: {asked.problem}"
                )
        logits = _answer_all(session, pictures, progress)
        reopen = functools.partial(_reopen, backend, read)
        canaries, profiles = record_canaries(session, reopen, judged_by.reference), list_profiles(session)
        details: dict[str, Any] = {"profiles": profiles} if len(profiles) > len(engines) else {}
        if sizes := list_static_batches(session):
            allowed = max(canaries["tolerances"])
            rows = ask_static_batches(session.run, sizes, pictures.frames, logits, allowed)
            details["static_batches"] = rows
        return logits, canaries, details
    finally:
        session.close()


def _answer_all(session: Session, pictures: KnownPictures, progress: Progress) -> Logits:
    frames, parts = pictures.frames, []
    for first in range(0, len(frames), _BATCH):
        parts.append(session.run(np.array(frames[first : first + _BATCH])))
        progress.advance(min(first + _BATCH, len(frames)), len(frames), "test pictures")
    return np.concatenate(parts)


def _reopen(backend: Backend, engines: Sequence[bytes], threads: int) -> Session:
    return open_session(backend, engines, threads=threads)
