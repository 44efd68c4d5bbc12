"""From the raw times of all rounds to measurements, ratios and their validity: what a benchmark says.

Works on JSON values alone. No process and no clock is known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.conditions import judge_conditions, keep_sound_turns
from edgekiln.benchmarks.timing.configurations import best_configuration
from edgekiln.benchmarks.timing.measurement import (
    Boundary,
    Measurement,
    Ratio,
    Validity,
    compare_speed,
    widen_ratio,
)
from edgekiln.benchmarks.timing.rounds import SIDES, read_block

__all__ = ["BenchmarkResult", "summarize"]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Measurements in the order of contenders, the baseline first; ratios are missing where invalid.

    Attributes:
        measurements: of the boundary ``call``.
        ratios: of those, to the baseline.
        sides: the other boundaries, ``engine`` and ``image``, of the contenders that have them.
        side_ratios: by boundary and contender.
        cold: milliseconds by contender that importing, loading and the first answer took, a median over fresh
            processes whose files the system had read before.
        repeated: by contender, time of one repeated image over that of varying ones.
        left_out: why, by optional contender that was not timed.
        sessions: the stretches of work: rounds, foreign load, share of CPU time stolen, state of the machine.
        conditions: clocks, temperatures, power mode and throttling before, at the end of each round, and after.
    """

    measurements: tuple[Measurement, ...]
    ratios: Mapping[str, Ratio]
    sides: tuple[Measurement, ...]
    side_ratios: Mapping[str, Mapping[str, Ratio]]
    cold: Mapping[str, Mapping[str, float]]
    repeated: Mapping[str, float]
    left_out: Mapping[str, str]
    validity: Validity
    sessions: Sequence[Mapping[str, Any]]
    machine: Mapping[str, Any]
    conditions: Sequence[Mapping[str, Any]] = ()

    def time_ratio(self, name: str, other: str) -> Ratio | None:
        """One contender's time over another's, of the boundary ``call``; ``None`` where the run is invalid."""
        if self.validity.state == "invalid":
            return None
        by_name = {m.name: m for m in self.measurements}
        return widen_ratio(compare_speed(by_name[name], by_name[other]), self.validity.self_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measurements": [m.to_dict() for m in self.measurements],
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios.items()},
            "sides": [m.to_dict() for m in self.sides],
            "side_ratios": {
                boundary: {name: asdict(ratio) for name, ratio in ratios.items()}
                for boundary, ratios in self.side_ratios.items()
            },
            "cold_start": {name: dict(values) for name, values in self.cold.items()},
            "repeated_image": dict(self.repeated),
            "left_out": dict(self.left_out),
            "validity": {
                "state": self.validity.state,
                "reasons": list(self.validity.reasons),
                "self_ratio": [self.validity.self_ratio.low, self.validity.self_ratio.high],
            },
            "sessions": [dict(session) for session in self.sessions],
            "machine": dict(self.machine),
            "conditions": [dict(read) for read in self.conditions],
        }


def summarize(
    searches: Sequence[tuple[str, Mapping[str, Any]]],
    rounds: Sequence[Mapping[str, Any]],
    sessions: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
    *,
    after: Mapping[str, Any],
) -> BenchmarkResult:
    """The result of all rounds.

    Args:
        searches: name and search of every contender that was timed, the baseline first.
        rounds: as ``_Work.time_rounds`` of ``latency`` gives them, of these contenders.
        sessions: stretches of work; the last one's machine is told.
        left_out: why, by optional contender that was not timed.
        after: the conditions when all was timed.
    """
    names = [name for name, _ in searches]
    devices = [opened["device"] for opened in rounds[0]["opened"]]
    called = _collect("call", [keep_sound_turns(part) for part in rounds], searches, devices)
    sides = tuple(
        m for b in SIDES for m in _collect(b, [part["sides"][b] for part in rounds], searches, devices)
    )
    repeated = {
        name: float(np.median([ratio for part in rounds for ratio in part["repeated"][place]]))
        for place, name in enumerate(names)
    }
    validity = judge_conditions(called, sessions, repeated, rounds)
    return BenchmarkResult(
        measurements=called,
        ratios=_ratios(called, names[0], validity),
        sides=sides,
        side_ratios={b: _ratios([m for m in sides if m.boundary == b], names[0], validity) for b in SIDES},
        cold={name: _median_cold([part["opened"][i] for part in rounds]) for i, name in enumerate(names)},
        repeated=repeated,
        left_out=left_out,
        validity=validity,
        sessions=[
            {k: v for k, v in s.items() if k not in {"machine", "conditions"}} | _state(s) for s in sessions
        ],
        machine=sessions[-1]["machine"],
        conditions=_tell_conditions(sessions, rounds, after),
    )


def _tell_conditions(
    sessions: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]], after: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """In the order of time, but for one that was interrupted: then there are several that were read before."""
    before = [{"when": "before", **session["conditions"]} for session in sessions]
    during = [{"when": f"round {part['round'] + 1}", **part["conditions"]} for part in rounds]
    return [*before, *during, {"when": "after", **after}]


def _collect(
    boundary: Boundary,
    rounds: Sequence[Sequence[Sequence[Any]]],
    searches: Sequence[tuple[str, Mapping[str, Any]]],
    devices: Sequence[str | None],
) -> tuple[Measurement, ...]:
    """Measurements of the contenders that have this boundary; ``rounds`` hold blocks by contender."""
    found = []
    for place, ((name, search), device) in enumerate(zip(searches, devices, strict=True)):
        blocks = [read_block(process, raw) for process, part in enumerate(rounds) for raw in part[place]]
        if blocks:
            config = best_configuration(search["entries"])
            found.append(Measurement(name, boundary, 1, config, search["entries"], blocks, device))
    return tuple(found)


def _state(session: Mapping[str, Any]) -> dict[str, Any]:
    """What of the machine may change from one stretch of work to the next."""
    return {key: session["machine"][key] for key in ("load_1min", "cpu_mhz", "gpu_state", "governor")}


def _median_cold(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("import_ms", "load_ms", "first_result_ms")
    return {key: round(float(np.median([run[key] for run in runs])), 3) for key in keys}


def _ratios(measurements: Sequence[Measurement], baseline: str, validity: Validity) -> dict[str, Ratio]:
    """By contender; none where the run is invalid or the baseline has no such boundary."""
    if validity.state == "invalid" or not measurements or measurements[0].name != baseline:
        return {}
    return {
        m.name: widen_ratio(compare_speed(measurements[0], m), validity.self_ratio) for m in measurements[1:]
    }
