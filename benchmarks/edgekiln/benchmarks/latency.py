"""Interleaved latency of several contenders, each in fresh processes and at its best configuration.

Contenders take turns in blocks of a twentieth of a second: on shared machines a core's speed wanders by 30 % and
stays for about half a second where it went, so longer blocks would time the neighbours. A contender is named by a
factory, so this module knows neither PyTorch nor any engine library.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load, read_cpu_times
from edgekiln.benchmarks.measurement import Block, Measurement, Ratio, Validity, assess, compare_speed
from edgekiln.runtime.errors import EngineError, GateError
from edgekiln.runtime.spec import Logits

__all__ = [
    "BenchmarkPlan",
    "BenchmarkResult",
    "Contender",
    "engine_contender",
    "run_benchmark",
    "thread_choices",
]

_SEARCH_SECONDS = 0.4
_LOGIT_TOLERANCE = 1e-3  # of the logit range: thread counts change the order of float sums, nothing more


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time.

    Attributes:
        name: shown in tables.
        factory: ``module:function`` that opens a Session from keyword arguments.
        arguments: fixed keyword arguments, JSON values.
        configs: keyword arguments to choose from; the fastest is timed.
        logits: what it must answer for the frames, float32 (N, C).
    """

    name: str
    factory: str
    arguments: Mapping[str, Any]
    configs: Sequence[Mapping[str, Any]]
    logits: Logits


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """How long and how often; see the recipe's ``[benchmark]``."""

    processes: int = 5
    blocks: int = 60
    block_seconds: float = 0.05


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Measurements in the order of contenders, the baseline first; ratios are missing where invalid."""

    measurements: tuple[Measurement, ...]
    ratios: Mapping[str, Ratio]
    validity: Validity
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measurements": [m.to_dict() for m in self.measurements],
            "ratios": {k: {"value": r.value, "low": r.low, "high": r.high} for k, r in self.ratios.items()},
            "validity": {
                "state": self.validity.state,
                "reasons": list(self.validity.reasons),
                "self_ratio": [self.validity.self_ratio.low, self.validity.self_ratio.high],
            },
            "machine": dict(self.machine),
        }


def thread_choices() -> list[int]:
    """1, 2, 4, ... up to the usable cores, and that number itself."""
    cores = len(os.sched_getaffinity(0))
    return sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})


def engine_contender(name: str, paths: Sequence[Path], backend: str, logits: Logits) -> Contender:
    """The engine files of one model under one of the runtime's backends."""
    threads: list[int | None] = [*thread_choices()] if backend.endswith("cpu") else [None]
    return Contender(
        name=name,
        factory="edgekiln.benchmarks.worker:open_engine",
        arguments={"paths": [str(path) for path in paths], "backend": backend},
        configs=[{"threads": count} for count in threads],
        logits=logits,
    )


def run_benchmark(
    contenders: Sequence[Contender],
    frames_file: Path,
    plan: BenchmarkPlan,
    advance: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> BenchmarkResult:
    """Time contenders on real frames.

    Args:
        contenders: the baseline first.
        frames_file: ``.npy`` of uint8 (N, H, W, 3); they rotate.
        plan: processes, blocks and seconds.
        advance: told of progress.

    Raises:
        GateError: a contender answers otherwise than in the accuracy run; its speed would mean nothing.
        EngineError: a worker died.
    """
    total = len(contenders) + plan.processes * plan.blocks
    machine = describe_machine()
    foreign_load = measure_foreign_load()
    before = read_cpu_times()
    searches = []
    for done, contender in enumerate(contenders):
        advance(done, total, f"best configuration of {contender.name}")
        searches.append(_search(contender, frames_file))
    chosen = [min(search, key=lambda entry: entry["median_ms"])["config"] for search in searches]
    blocks = _time_interleaved(contenders, chosen, frames_file, plan, advance)
    advance(total, total, "done")
    measurements = tuple(
        Measurement(c.name, "call", 1, config, search, measured)
        for c, config, search, measured in zip(contenders, chosen, searches, blocks, strict=True)
    )
    steal = (read_cpu_times() - before).steal_share
    validity = assess(measurements, steal=steal, foreign_load=foreign_load)
    return BenchmarkResult(measurements, _ratios(measurements, validity), validity, machine)


def _time_interleaved(
    contenders: Sequence[Contender],
    configs: Sequence[Mapping[str, Any]],
    frames_file: Path,
    plan: BenchmarkPlan,
    advance: Callable[[int, int, str], None],
) -> list[list[Block]]:
    """Blocks of each contender in its chosen configuration; the first contender takes a second turn each round."""
    turns = [*((i, 0) for i in range(len(contenders))), (0, 1)]
    blocks: list[list[Block]] = [[] for _ in contenders]
    total = len(contenders) + plan.processes * plan.blocks
    for process in range(plan.processes):
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(_worker(frames_file, contender.name)) for contender in contenders]
            for worker, contender, config in zip(workers, contenders, configs, strict=True):
                worker.open(contender, config)
                _check_answers(worker, contender)
            for index in range(plan.blocks):
                done = len(contenders) + process * plan.blocks + index
                advance(done, total, f"round {process + 1} of {plan.processes}")
                # Alternate who goes first: the one after another contender finds its caches cold.
                for contender_index, turn in turns if index % 2 == 0 else turns[::-1]:
                    times = workers[contender_index].time_ms(plan.block_seconds)
                    blocks[contender_index].append(Block(process, index, turn, times))
    return blocks


def _ratios(measurements: Sequence[Measurement], validity: Validity) -> dict[str, Ratio]:
    if validity.state == "invalid":
        return {}
    return {m.name: compare_speed(measurements[0], m) for m in measurements[1:]}


def _search(contender: Contender, frames_file: Path) -> list[dict[str, Any]]:
    found = []
    with _worker(frames_file, contender.name) as worker:
        for config in contender.configs:
            worker.open(contender, config)
            median = float(np.median(worker.time_ms(_SEARCH_SECONDS)))
            found.append({"config": dict(config), "median_ms": round(median, 4)})
    return found


def _check_answers(worker: _WorkerProcess, contender: Contender) -> None:
    got = np.asarray(worker.ask("check")["logits"], np.float32)
    difference = float(np.abs(got - contender.logits).max())
    if difference > _LOGIT_TOLERANCE * float(np.ptp(contender.logits)):
        raise GateError(
            f"{contender.name} answers otherwise when timed than when judged: a logit differs by {difference:.3g}.",
            hint="Its speed would be that of another computation.",
        )


class _WorkerProcess:
    """Requests to one worker."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):  # the answer, or its absence, tells more
            self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise EngineError(
                f"The benchmark process of {self._name} ended with {code} during {operation!r}."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self._name}: {answer['error']}")
        return answer

    def open(self, contender: Contender, config: Mapping[str, Any]) -> None:
        """Load the contender in one configuration."""
        self.ask("open", factory=contender.factory, arguments={**contender.arguments, **config})

    def time_ms(self, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Milliseconds of single calls, float64 (calls,)."""
        return np.asarray(self.ask("time", seconds=seconds)["times_ns"], np.float64) / 1e6


@contextlib.contextmanager
def _worker(frames_file: Path, name: str) -> Iterator[_WorkerProcess]:
    # Waiting policies of OpenMP belong to the caller's own work; a contender runs at its library's best.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekiln.benchmarks.worker", str(frames_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the parent; a worker ends when its pipe closes
    )
    try:
        yield _WorkerProcess(process, name)
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        deadline = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            process.wait()
