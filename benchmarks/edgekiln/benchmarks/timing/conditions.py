"""Judges the conditions that a benchmark ran under: the worst stretch of work decides, and what changed is noise.

What was timed while the machine throttled is left out. Where that is half of a round or more, the rest is only what lay
between, and the run is invalid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.timing.measurement import Measurement, Validity, assess

__all__ = ["judge_conditions", "keep_sound_turns"]

_LEAST_CLOCK = 0.9
_LEAST_SOUND = 0.5
_FORCED = frozenset({
    "hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake",
})  # fmt: skip
"""Of a GPU: heat, or a power supply that gave way. A power cap is how many GPUs always run at full load."""
_CONDITIONS = ("cpu", "cores", "governor", "thread_settings", "cpu_quota_cores", "gpus", "versions")


def judge_conditions(
    measurements: Sequence[Measurement],
    sessions: Sequence[Mapping[str, Any]],
    repeated: Mapping[str, float],
    rounds: Sequence[Mapping[str, Any]],
) -> Validity:
    """The worst stretch of work decides; conditions that changed, clocks that fell and a power cap are told as noise.

    A round of which half or more was timed while the machine throttled makes the run invalid, and so does an emulated
    processor.
    """
    validity = assess(
        measurements,
        steal=max(session.get("steal", 0.0) for session in sessions),
        foreign_load=max(session["foreign_load"] for session in sessions),
        repeated=repeated,
    )
    machines = [session["machine"] for session in sessions]
    changed = [key for key in _CONDITIONS if any(machine[key] != machines[0][key] for machine in machines)]
    if spoiled := [*_describe_emulated(machines), *_describe_spoiled(rounds)]:
        return Validity("invalid", (*spoiled, *validity.reasons), validity.self_ratio)
    reasons = [*_describe_throttled(rounds), *_describe_clocks(rounds)]
    if changed:
        reasons.append(f"it was interrupted and went on under another {' and '.join(changed)}")
    if validity.state == "invalid" or not reasons:
        return validity
    return Validity("noisy", (*validity.reasons, *reasons), validity.self_ratio)


def keep_sound_turns(part: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The blocks of a round, by contender, without those that were timed while the machine throttled.

    All of them where too few would be left: such a round is invalid, and its times are shown as they were.
    """
    blocks: list[list[dict[str, Any]]] = part["blocks"]
    if _is_spoiled(part):
        return blocks
    return [[block for block in own if not block.get("throttled")] for own in blocks]


def _throttled_turns(part: Mapping[str, Any]) -> dict[int, list[str]]:
    """What throttled the machine, by the index of the blocks that it was seen after; the same for all contenders."""
    own = part.get("blocks", [[]])[0]
    return {block["index"]: block["throttled"] for block in own if block.get("throttled")}


def _is_spoiled(part: Mapping[str, Any]) -> bool:
    turns = {block["index"] for block in part.get("blocks", [[]])[0]}
    sound = len(turns) - len(_throttled_turns(part))
    return bool(turns) and (sound < 2 or sound <= _LEAST_SOUND * len(turns)) and sound < len(turns)


def _describe_emulated(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    """That times are those of an emulator, where they are; machines of earlier reports do not tell."""
    kernels = sorted({kernel for machine in machines if (kernel := machine.get("emulated_on"))})
    return [f"the processor is emulated on {kernel}: times are the emulator's" for kernel in kernels]


def _describe_spoiled(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why what was timed says nothing of the machine at its usual speed; empty where it does."""
    found = []
    for part in rounds:
        forced = sorted({c for gpu in part["gpu_state"] for c in gpu["throttled_by"] or ()} & _FORCED)
        if forced:
            found.append(f"the GPU was throttled by {', '.join(forced)}")
        elif _is_spoiled(part):
            causes = sorted({cause for causes in _throttled_turns(part).values() for cause in causes})
            found.append(f"the machine throttled in half of a round or more ({', '.join(causes)})")
    return list(dict.fromkeys(found))


def _describe_throttled(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    turns = [causes for part in rounds for causes in _throttled_turns(part).values()]
    if not turns:
        return []
    causes = ", ".join(sorted({cause for one in turns for cause in one}))
    count = "1 turn was" if len(turns) == 1 else f"{len(turns)} turns were"
    return [f"{count} timed while the machine throttled ({causes}) and left out"]


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
