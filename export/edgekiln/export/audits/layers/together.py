"""The layers of all engines of one network, and what each computes otherwise than the FP32 engine of its library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgekiln.export.audits.layers.difference import compare_engines
from edgekiln.export.audits.layers.profile import EngineProfile
from edgekiln.export.audits.layers.profiling import ProfiledEngine, profile_engine
from edgekiln.runtime.backends import Backend
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.spec import Frames

__all__ = ["profile_together"]


def profile_together(
    engines: Iterable[tuple[ProfiledEngine, str]],
    frames: Sequence[Frames],
    *,
    name_machine: Callable[[Backend], str],
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Time the layers of each engine, one engine after the other.

    Args:
        engines: each with its precision: fp32, fp16, int8.
        frames: uint8 (1, height, width, 3) each, to call CPU engines with in turn.
        name_machine: what a backend runs on.
        tell: told the name of each engine before it is timed.

    Returns:
        JSON values: ``profiles``; ``differences``, each from the first FP32 engine of a backend to another engine of
        it; and ``problems``: by engine, why its layers were not told.
    """
    found: list[tuple[EngineProfile, str]] = []
    problems: dict[str, str] = {}
    for engine, precision in engines:
        tell(engine.name)
        try:
            machine = name_machine(engine.backend)
            found.append((profile_engine(engine, timed=True, machine=machine, frames=frames), precision))
        except EdgekilnError as error:  # what was measured before is not lost for it
            problems[engine.name] = str(error)
    references: dict[str, EngineProfile] = {}
    for profile, precision in found:
        if precision == "fp32":
            references.setdefault(profile.backend, profile)
    pairs = [(references.get(profile.backend), profile) for profile, _ in found]
    return {
        "profiles": [profile.to_dict() for profile, _ in found],
        "differences": [
            compare_engines(first, other).to_dict()
            for first, other in pairs
            if first is not None and other is not first
        ],
        "problems": problems,
    }
