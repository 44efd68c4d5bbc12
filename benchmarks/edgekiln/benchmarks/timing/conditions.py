"""Judges the conditions that a benchmark ran under: the worst stretch of work decides, and what changed is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.timing.measurement import Measurement, Validity, assess

__all__ = ["judge_conditions"]

_LEAST_CLOCK = 0.9
_CONDITIONS = ("cpu", "cores", "governor", "thread_settings", "cpu_quota_cores", "gpus", "versions")


def judge_conditions(
    measurements: Sequence[Measurement],
    sessions: Sequence[Mapping[str, Any]],
    repeated: Mapping[str, float],
    rounds: Sequence[Mapping[str, Any]],
) -> Validity:
    """The worst stretch of work decides; conditions that changed, clocks that fell and throttling are told as noise."""
    validity = assess(
        measurements,
        steal=max(session.get("steal", 0.0) for session in sessions),
        foreign_load=max(session["foreign_load"] for session in sessions),
        repeated=repeated,
    )
    machines = [session["machine"] for session in sessions]
    changed = [key for key in _CONDITIONS if any(machine[key] != machines[0][key] for machine in machines)]
    reasons = _describe_clocks(rounds)
    if changed:
        reasons.append(f"it was interrupted and went on under another {' and '.join(changed)}")
    if validity.state == "invalid" or not reasons:
        return validity
    return Validity("noisy", (*validity.reasons, *reasons), validity.self_ratio)


def _describe_clocks(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What slowed the machine itself, as read at the end of every round."""
    found = []
    clocks = [part["cpu_mhz"] for part in rounds if part["cpu_mhz"]]
    if clocks and min(clocks) < _LEAST_CLOCK * max(clocks):
        found.append(
            f"the CPU's clock went from {max(clocks):.0f} down to {min(clocks):.0f} MHz between rounds"
        )
    causes = {
        cause
        for part in rounds
        for gpu in part["gpu_state"]
        for cause in gpu["throttled_by"] or ()
        if cause not in {"idle", "application clocks"}  # nothing to do, or a clock that somebody set
    }
    if causes:
        found.append(f"the GPU was throttled by {', '.join(sorted(causes))}")
    return found
