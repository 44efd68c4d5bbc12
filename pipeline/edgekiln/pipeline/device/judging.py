"""Judges engines on the target against the answers of the parent's PyTorch, on the same pictures. Builds nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.judging.verdict import judge_answers
from edgekiln.pipeline.device.canary_records import CanaryReference, record_canaries
from edgekiln.pipeline.device.pictures import KnownPictures
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EngineError, EnvironmentProblem, NonFiniteError, ResourceError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["judge_engines"]

_BATCH = 64


def judge_engines(
    flavour: Any,
    engines: Sequence[Path],
    pictures: KnownPictures | None,
    gate: Mapping[str, Any],
    failure: str | None,
    reference: CanaryReference,
) -> tuple[dict[str, Any], Logits | None]:
    """The verdict, its figures and canaries; and the logits, where they are of all the parent's test pictures."""
    if pictures is None:
        reason = failure or "built on this machine without pictures to judge it on; --data FOLDER judges it"
        return {"verdict": "fail" if failure else "unverified", "reason": reason}, None
    try:
        logits, canaries = _run(flavour, engines, pictures.frames, reference)
    except (EnvironmentProblem, ResourceError) as problem:
        return {"verdict": "not-run", "reason": f"built, not run, because: {problem}"}, None
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
    judged["canaries"] = canaries
    judged["judged_images"] = {"here": len(logits), "parent": pictures.known}
    return judged, logits if len(logits) == pictures.known else None


def _run(
    flavour: Any, engines: Sequence[Path], frames: Frames, reference: CanaryReference
) -> tuple[Logits, dict[str, Any]]:
    """The engine's answers to the pictures, and its canaries."""
    read = [engine.read_bytes() for engine in engines]
    session = open_session(flavour, read)
    try:
        logits = np.concatenate([session.run(frames[i : i + _BATCH]) for i in range(0, len(frames), _BATCH)])
        reopen = functools.partial(_reopen, flavour, read)
        return logits, record_canaries(session, reopen, reference)
    finally:
        session.close()


def _reopen(flavour: Any, engines: Sequence[bytes], threads: int) -> Session:
    return open_session(flavour, engines, threads=threads)
