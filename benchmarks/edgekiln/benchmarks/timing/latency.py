"""Interleaved latency of several contenders, each in fresh processes and at its best configuration.

Contenders take turns in blocks of a twentieth of a second: on shared machines a core's speed wanders by 30 % and
stays for about half a second where it went, so longer blocks would time the neighbours.

A benchmark is a search for each contender, then rounds. A round has one fresh process for each contender, and all that
is compared is compared within a round; so one that was interrupted may go on with the next round, later and under other
conditions, and stays sound. What the conditions were is kept for every stretch of work, and the worst is judged.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgekiln.benchmarks.environment import (
    CpuTimes,
    describe_machine,
    measure_foreign_load,
    read_cpu_mhz,
    read_cpu_times,
    read_gpu_state,
)
from edgekiln.benchmarks.timing.contender import Contender, WorkerProcess, open_worker
from edgekiln.benchmarks.timing.journal import Journal, plan_digest
from edgekiln.benchmarks.timing.measurement import (
    P99_FROM_CALLS,
    Block,
    Boundary,
    Measurement,
    Ratio,
    Validity,
    assess,
    compare_speed,
    is_narrow,
)
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["BenchmarkPlan", "BenchmarkResult", "run_benchmark"]

Advance: TypeAlias = Callable[[int, int, str], None]

SIDES: tuple[Boundary, ...] = ("engine", "image")
"""Boundaries besides ``call``: the bare library call, and encoded picture to label."""
_SEARCH_SECONDS = 0.4
_LEAST_CLOCK = 0.9
_LEAST_GAIN = 0.8
_LOOK_EVERY_BLOCKS = 4  # even, so that whoever went first went last as often
_CONDITIONS = ("cpu", "cores", "governor", "thread_settings", "cpu_quota_cores", "gpus", "versions")


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """How long and how often; see the recipe's ``[benchmark]``.

    A round ends after ``blocks`` blocks of each contender, or from ``min_blocks`` on as soon as they tell every ratio
    to ``target_width`` and every contender has its share of the calls that a 99th percentile needs.
    ``side_blocks`` are those of the other boundaries, and of one repeated image, per process.
    """

    processes: int = 5
    blocks: int = 60
    block_seconds: float = 0.05
    side_blocks: int = 4
    min_blocks: int = 20
    target_width: float = 0.05

    def count_units(self, contenders: int) -> int:
        """Units of progress: searches, and per round the starts, blocks and other boundaries."""
        return self.units_before(self.processes, contenders)

    def units_before(self, number: int, contenders: int) -> int:
        """Units that are done when round ``number``, counted from 0, begins."""
        return contenders + number * (contenders + self.blocks + self.side_blocks)

    def is_enough(self, blocks: Sequence[Sequence[Block]]) -> bool:
        """Whether a round may stop here; looks at widths and counts only."""
        count = len(blocks[-1])
        if count < self.min_blocks or count % _LOOK_EVERY_BLOCKS:
            return False
        share = math.ceil(P99_FROM_CALLS / self.processes)
        calls = min(sum(len(block.times_ms) for block in own) for own in blocks)
        return calls >= share and is_narrow(blocks, self.target_width)


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
        }


def run_benchmark(
    contenders: Sequence[Contender],
    inputs: Path,
    *,
    plan: BenchmarkPlan,
    folder: Path | None = None,
    advance: Advance = lambda done, total, note: None,
    message: Callable[[str], None] = lambda text: None,
) -> BenchmarkResult:
    """Time contenders on real frames.

    Args:
        contenders: the baseline first.
        inputs: file of ``save_inputs``.
        plan: processes, blocks and seconds.
        folder: where finished searches and rounds are kept, and found again by the same benchmark.
        advance: told of progress.
        message: told, a line each, what a person should know.

    Raises:
        GateError: a contender answers otherwise than in the accuracy run; its speed would mean nothing.
        EngineError: a worker died.
    """
    work = _Work(contenders, inputs, plan=plan, folder=folder, advance=advance, message=message)
    searches = work.search_all()
    rounds = work.time_rounds(searches)
    timed = [c for c in contenders if "left_out" not in searches[c.name]]
    left_out = {name: found["left_out"] for name, found in searches.items() if "left_out" in found}
    return _summarize([(c.name, searches[c.name]) for c in timed], rounds, work.sessions(), left_out)


class _Work:
    """One benchmark in the making: does what its journal does not hold yet."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        inputs: Path,
        *,
        plan: BenchmarkPlan,
        folder: Path | None,
        advance: Advance,
        message: Callable[[str], None],
    ) -> None:
        self._contenders, self._inputs, self._plan = contenders, inputs, plan
        digest = plan_digest({"plan": asdict(plan), "contenders": [c.identity() for c in contenders]}, inputs)
        self._journal = Journal(folder, digest, message)
        self._advance, self._message = advance, message
        earlier = [part["session"]["number"] for part in self._journal.values()]
        self._session = {
            "number": 1 + max(earlier, default=0),
            "foreign_load": measure_foreign_load(),
            "machine": describe_machine(),
        }
        self._has_gpu = bool(self._session["machine"]["gpus"])  # type: ignore[index] # a plain dict of JSON values
        rounds = sum("round" in part for part in self._journal.values())
        if rounds:
            message(f"  goes on after round {rounds} of {plan.processes}")

    def search_all(self) -> dict[str, dict[str, Any]]:
        """By contender: ``entries`` of every configuration, or why an optional one was ``left_out``."""
        found = {}
        for done, contender in enumerate(self._contenders):
            self._tell(done, f"best configuration of {contender.name}")
            name = f"search-{done}"
            found[contender.name] = self._journal.read(name) or self._keep(name, self._search(contender))
        return found

    def _search(self, contender: Contender) -> dict[str, Any]:
        try:
            return {"entries": _search(contender, self._inputs)}
        except EdgekilnError as error:
            if not contender.optional:
                raise
            self._message(f"  {contender.name} is left out: {error}")
            return {"left_out": str(error)}

    def time_rounds(self, searches: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """The rounds, those of earlier stretches as they were. ``searches`` is told who was left out on the way."""
        rounds: list[dict[str, Any]] = []
        while len(rounds) < self._plan.processes:
            able = [c for c in self._contenders if "left_out" not in searches[c.name]]
            chosen = [_best(searches[c.name]["entries"]) for c in able]
            try:
                rounds.append(self._find_round(able, chosen, len(rounds)))
            except _OptionalFailed as failed:
                rounds = self._leave_out(able[failed.place], failed, searches)
        self._tell(self._plan.count_units(len(self._contenders)), "done")
        # One that was left out late still stands in the rounds before.
        names = [c.name for c in self._contenders if "left_out" not in searches[c.name]]
        return [_select(part, names) for part in rounds]

    def _find_round(
        self, able: Sequence[Contender], chosen: Sequence[Mapping[str, Any]], number: int
    ) -> dict[str, Any]:
        name = f"round-{number + 1}"
        found = self._journal.read(name)
        if found is not None:
            return found
        before = read_cpu_times()
        values = self._time_round(able, chosen, number)
        ticks = asdict(read_cpu_times() - before)
        # Clocks fall and GPUs throttle under load, so they are read while the machine is still warm from it.
        clocks = {
            "cpu_mhz": read_cpu_mhz()["current"],
            "gpu_state": read_gpu_state() if self._has_gpu else [],
        }
        return self._keep(
            name, {"round": number, "ticks": ticks, "names": [c.name for c in able], **clocks, **values}
        )

    def _leave_out(
        self, contender: Contender, failed: _OptionalFailed, searches: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Go on without a peer that failed; the rounds that are finished are kept."""
        self._message(f"  {contender.name} is left out: {failed}")
        place = next(i for i, c in enumerate(self._contenders) if c.name == contender.name)
        searches[contender.name] = self._keep(f"search-{place}", {"left_out": str(failed)})
        names = (f"round-{number + 1}" for number in range(self._plan.processes))
        return [part for name in names if (part := self._journal.read(name)) is not None]

    def _time_round(
        self, contenders: Sequence[Contender], configs: Sequence[Mapping[str, Any]], number: int
    ) -> dict[str, Any]:
        """One fresh process each; blocks in turn, those of the first contender twice; then the other boundaries."""
        note = f"round {number + 1} of {self._plan.processes}"
        begin = self._plan.units_before(number, len(self._contenders))
        workers: list[WorkerProcess] = []
        with _blame_optional(contenders, workers), contextlib.ExitStack() as stack:
            opened = []
            for contender, config in zip(contenders, configs, strict=True):
                self._tell(begin + len(workers), f"{note}: {contender.name} starts")
                # One after the other: those that run already are idle, so each start has the machine for itself.
                workers.append(stack.enter_context(open_worker(self._inputs, contender)))
                opened.append(workers[-1].open(config))
                workers[-1].check_all()
            first = begin + len(self._contenders)
            blocks = _time_in_turns(workers, self._plan, lambda index: self._tell(first + index, note))
            self._tell(first + self._plan.blocks, f"{note}: other boundaries")
            return {"opened": opened, "blocks": blocks, **_time_sides(workers, self._plan)}

    def sessions(self) -> list[dict[str, Any]]:
        """Stretches of work, as ``BenchmarkResult.sessions`` has them; those that finished no round have no steal."""
        found: dict[int, dict[str, Any]] = {}
        ticks: dict[int, list[CpuTimes]] = {}
        for part in self._journal.values():
            number = part["session"]["number"]
            session = found.setdefault(number, {**part["session"], "rounds": []})
            if "round" in part:
                session["rounds"].append(part["round"] + 1)
                ticks.setdefault(number, []).append(CpuTimes(**part["ticks"]))
        for number, parts in ticks.items():
            stolen, total = sum(p.stolen for p in parts), sum(p.total for p in parts)
            found[number]["steal"] = CpuTimes(stolen=stolen, total=total).steal_share
        return [found[number] for number in sorted(found)]

    def _keep(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return self._journal.write(name, {**values, "session": self._session})

    def _tell(self, done: int, note: str) -> None:
        self._advance(done, self._plan.count_units(len(self._contenders)), note)


class _OptionalFailed(Exception):
    """An optional contender died or answered wrongly in a round."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


@contextlib.contextmanager
def _blame_optional(contenders: Sequence[Contender], workers: Sequence[WorkerProcess]) -> Iterator[None]:
    """Turn the failure of an optional contender into ``_OptionalFailed``; ``workers`` are its process and others'."""
    try:
        yield
    except EdgekilnError as error:
        for place, (contender, worker) in enumerate(zip(contenders, workers, strict=False)):
            if worker.failed and contender.optional:
                raise _OptionalFailed(place, str(error)) from error
        raise


def _select(part: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A round of these contenders alone."""
    places = [part["names"].index(name) for name in names]
    return {
        **part,
        **{key: [part[key][i] for i in places] for key in ("opened", "blocks", "repeated")},
        "sides": {boundary: [raw[i] for i in places] for boundary, raw in part["sides"].items()},
    }


def _search(contender: Contender, inputs: Path) -> list[dict[str, Any]]:
    """Median milliseconds of every configuration, one after the other in one process."""
    found: list[dict[str, Any]] = []
    with open_worker(inputs, contender) as worker:
        for config in contender.configs:
            worker.open(config)
            if not found:
                worker.check_all()
            median = float(np.median(worker.time_ns(_SEARCH_SECONDS))) / 1e6
            found.append({"config": dict(config), "median_ms": round(median, 4)})
    return found


def _best(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest configuration of those with the fewest threads that come within a fifth of the very fastest.

    A search has the machine for itself. In turns with others, threads that gained little there lose more than that
    where one of them must wait: measured, PyTorch on two cores went from 5.5 ms to 7.5, block to block by half.
    """
    fastest = min(float(entry["median_ms"]) for entry in entries)
    near = [entry for entry in entries if float(entry["median_ms"]) <= fastest / _LEAST_GAIN]
    cores = len(os.sched_getaffinity(0))

    def threads(entry: Mapping[str, Any]) -> int:
        count = entry["config"].get("threads", 0)  # a GPU's configurations have none
        return cores if count is None else int(count)  # None leaves it to the library, which takes all

    return dict(min(near, key=lambda entry: (threads(entry), float(entry["median_ms"])))["config"])


def _time_in_turns(
    workers: Sequence[WorkerProcess], plan: BenchmarkPlan, tell: Callable[[int], None]
) -> list[list[dict[str, Any]]]:
    """Blocks of each worker as JSON values; the first one takes a second turn each time, to be compared with itself."""
    turns = [*((i, 0) for i in range(len(workers))), (0, 1)]
    raw: list[list[dict[str, Any]]] = [[] for _ in workers]
    blocks: list[list[Block]] = [[] for _ in workers]
    for index in range(plan.blocks):
        tell(index)
        # Alternate who goes first: the one after another contender finds its caches cold.
        for number, turn in turns if index % 2 == 0 else turns[::-1]:
            times = workers[number].time_ns(plan.block_seconds)
            raw[number].append({"index": index, "turn": turn, "times_ns": times})
            blocks[number].append(_block(0, raw[number][-1]))
        if plan.is_enough(blocks):
            break
    return raw


def _time_sides(workers: Sequence[WorkerProcess], plan: BenchmarkPlan) -> dict[str, Any]:
    """``sides``, the other boundaries, and ``repeated``, one image again and again; interleaved likewise."""
    sides: dict[str, list[list[dict[str, Any]]]] = {boundary: [[] for _ in workers] for boundary in SIDES}
    repeated: list[list[float]] = [[] for _ in workers]
    for index in range(plan.side_blocks):
        for number, worker in enumerate(workers):
            for boundary in SIDES:
                times = worker.time_ns(plan.block_seconds, boundary=boundary)
                if times:
                    sides[boundary][number].append({"index": index, "turn": 0, "times_ns": times})
            # Beside each other, since the machine's speed wanders.
            varying = worker.time_ns(plan.block_seconds)
            same = worker.time_ns(plan.block_seconds, repeat=True)
            repeated[number].append(float(np.median(same) / np.median(varying)))
    return {"sides": sides, "repeated": repeated}


# --------------------------------------------------------------------------------------------------------------
# From raw times to a result


def _summarize(
    searches: Sequence[tuple[str, Mapping[str, Any]]],
    rounds: Sequence[Mapping[str, Any]],
    sessions: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
) -> BenchmarkResult:
    names = [name for name, _ in searches]

    def measurements(boundary: Boundary, parts: Sequence[Sequence[Sequence[Any]]]) -> tuple[Measurement, ...]:
        blocks = [
            [_block(process, raw) for process, part in enumerate(parts) for raw in part[place]]
            for place in range(len(names))
        ]
        devices = [opened["device"] for opened in rounds[0]["opened"]]
        return tuple(
            Measurement(name, boundary, 1, _best(search["entries"]), search["entries"], measured, device)
            for (name, search), measured, device in zip(searches, blocks, devices, strict=True)
            if measured
        )

    called = measurements("call", [part["blocks"] for part in rounds])
    sides = tuple(m for b in SIDES for m in measurements(b, [part["sides"][b] for part in rounds]))
    repeated = {
        name: float(np.median([ratio for part in rounds for ratio in part["repeated"][place]]))
        for place, name in enumerate(names)
    }
    validity = _judge(called, sessions, repeated, rounds)
    return BenchmarkResult(
        measurements=called,
        ratios=_ratios(called, names[0], validity),
        sides=sides,
        side_ratios={b: _ratios([m for m in sides if m.boundary == b], names[0], validity) for b in SIDES},
        cold={name: _median_cold([part["opened"][i] for part in rounds]) for i, name in enumerate(names)},
        repeated=repeated,
        left_out=left_out,
        validity=validity,
        sessions=[{k: v for k, v in s.items() if k != "machine"} | _state(s) for s in sessions],
        machine=sessions[-1]["machine"],
    )


def _block(process: int, raw: Mapping[str, Any]) -> Block:
    return Block(process, raw["index"], raw["turn"], np.asarray(raw["times_ns"], np.float64) / 1e6)


def _state(session: Mapping[str, Any]) -> dict[str, Any]:
    """What of the machine may change from one stretch of work to the next."""
    return {key: session["machine"][key] for key in ("load_1min", "cpu_mhz", "gpu_state", "governor")}


def _judge(
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


def _median_cold(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("import_ms", "load_ms", "first_result_ms")
    return {key: round(float(np.median([run[key] for run in runs])), 3) for key in keys}


def _ratios(measurements: Sequence[Measurement], baseline: str, validity: Validity) -> dict[str, Ratio]:
    """By contender; none where the run is invalid or the baseline has no such boundary."""
    if validity.state == "invalid" or not measurements or measurements[0].name != baseline:
        return {}
    return {m.name: compare_speed(measurements[0], m) for m in measurements[1:]}
