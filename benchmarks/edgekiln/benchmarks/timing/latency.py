"""Interleaved latency of several contenders, each in fresh processes and at its best configuration.

A benchmark is a search for each contender, then rounds. A round has one fresh process for each contender, and all that
is compared is compared within a round; so one that was interrupted may go on with the next round, later and under other
conditions, and stays sound. What the conditions were is kept for every stretch of work, and the worst is judged.

How a round is timed stands in ``rounds``, what is made of the times in ``result``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from edgekiln.benchmarks.clocks import ThrottleWatch, read_conditions
from edgekiln.benchmarks.environment import (
    CpuTimes,
    describe_machine,
    measure_foreign_load,
    read_cpu_mhz,
    read_cpu_times,
)
from edgekiln.benchmarks.timing.configurations import best_configuration, search_configurations
from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.journal import Journal, plan_digest
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.benchmarks.timing.result import BenchmarkResult, summarize
from edgekiln.benchmarks.timing.rounds import (
    OptionalFailed,
    blame_optional,
    select_contenders,
    time_in_turns,
    time_sides,
)
from edgekiln.benchmarks.timing.worker_process import WorkerProcess, open_worker
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["run_benchmark"]

Advance: TypeAlias = Callable[[int, int, str], None]


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
    return summarize(
        [(c.name, searches[c.name]) for c in timed],
        rounds,
        work.sessions(),
        left_out,
        after=work.read_conditions(),
    )


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
        machine = describe_machine()
        self._has_gpu = bool(machine["gpus"])
        self._session = {
            "number": 1 + max(earlier, default=0),
            "foreign_load": measure_foreign_load(),
            "machine": machine,
            "conditions": self.read_conditions(),
        }
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
            return {"entries": search_configurations(contender, self._inputs)}
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
            chosen = [best_configuration(searches[c.name]["entries"]) for c in able]
            try:
                rounds.append(self._find_round(able, chosen, len(rounds)))
            except OptionalFailed as failed:
                rounds = self._leave_out(able[failed.place], failed, searches)
        self._tell(self._plan.count_units(len(self._contenders)), "done")
        # One that was left out late still stands in the rounds before.
        names = [c.name for c in self._contenders if "left_out" not in searches[c.name]]
        return [select_contenders(part, names) for part in rounds]

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
        now = self.read_conditions()
        clocks = {"cpu_mhz": read_cpu_mhz()["current"], "gpu_state": now["gpus"], "conditions": now}
        return self._keep(
            name, {"round": number, "ticks": ticks, "names": [c.name for c in able], **clocks, **values}
        )

    def _leave_out(
        self, contender: Contender, failed: OptionalFailed, searches: dict[str, dict[str, Any]]
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
        with blame_optional(contenders, workers), contextlib.ExitStack() as stack:
            opened = []
            for contender, config in zip(contenders, configs, strict=True):
                self._tell(begin + len(workers), f"{note}: {contender.name} starts")
                # One after the other: those that run already are idle, so each start has the machine for itself.
                workers.append(stack.enter_context(open_worker(self._inputs, contender)))
                opened.append(workers[-1].open(config))
                workers[-1].check_all()
            first = begin + len(self._contenders)
            watch = ThrottleWatch()
            blocks = time_in_turns(
                workers, self._plan, lambda index: self._tell(first + index, note), watch.look
            )
            self._tell(first + self._plan.blocks, f"{note}: other boundaries")
            return {"opened": opened, "blocks": blocks, **time_sides(workers, self._plan)}

    def read_conditions(self) -> dict[str, Any]:
        """Clocks, temperatures, power mode and throttling now."""
        return read_conditions(gpus=self._has_gpu)

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
