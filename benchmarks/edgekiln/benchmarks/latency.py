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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load, read_cpu_times
from edgekiln.benchmarks.measurement import (
    Block,
    Boundary,
    Measurement,
    Ratio,
    Validity,
    assess,
    compare_speed,
)
from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.errors import EngineError, GateError
from edgekiln.runtime.spec import Frames, Logits

__all__ = [
    "BenchmarkPlan",
    "BenchmarkResult",
    "Contender",
    "engine_contender",
    "run_benchmark",
    "save_inputs",
    "thread_choices",
]

Times: TypeAlias = NDArray[np.float64]

SIDES: tuple[Boundary, ...] = ("engine", "image")
"""Boundaries besides ``call``: the bare library call, and encoded picture to label."""
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
    """How long and how often; see the recipe's ``[benchmark]``.

    ``side_blocks`` are those of the other boundaries, and of one repeated image, per process.
    """

    processes: int = 5
    blocks: int = 60
    block_seconds: float = 0.05
    side_blocks: int = 4


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Measurements in the order of contenders, the baseline first; ratios are missing where invalid.

    Attributes:
        measurements: of the boundary ``call``.
        ratios: of those, to the baseline.
        sides: the other boundaries, ``engine`` and ``image``, of the contenders that have them.
        side_ratios: by boundary and contender.
        cold: milliseconds by contender that loading and the first answer took, a median over fresh processes.
        repeated: by contender, time of one repeated image over that of varying ones.
    """

    measurements: tuple[Measurement, ...]
    ratios: Mapping[str, Ratio]
    sides: tuple[Measurement, ...]
    side_ratios: Mapping[str, Mapping[str, Ratio]]
    cold: Mapping[str, Mapping[str, float]]
    repeated: Mapping[str, float]
    validity: Validity
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
    threads: list[int | None] = [*thread_choices()] if backend in CPU_BACKENDS else [None]
    return Contender(
        name=name,
        factory="edgekiln.benchmarks.worker:open_engine",
        arguments={"paths": [str(path) for path in paths], "backend": backend},
        configs=[{"threads": count} for count in threads],
        logits=logits,
    )


def save_inputs(
    path: Path, frames: Frames, pictures: Sequence[bytes] = (), contract: str | None = None
) -> None:
    """Write what the contenders are given.

    Args:
        path: ``.npz`` to write.
        frames: uint8 (N, H, W, 3); they rotate.
        pictures: encoded pictures, for the boundary ``image``; none leaves it out.
        contract: JSON of the contract that prepares them.
    """
    joined = np.frombuffer(b"".join(pictures), np.uint8)
    sizes = np.array([len(picture) for picture in pictures], np.int64)
    np.savez(path, frames=frames, pictures=joined, picture_sizes=sizes, contract=np.array(contract or ""))


def run_benchmark(
    contenders: Sequence[Contender],
    inputs: Path,
    plan: BenchmarkPlan,
    advance: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> BenchmarkResult:
    """Time contenders on real frames.

    Args:
        contenders: the baseline first.
        inputs: file of ``save_inputs``.
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
        searches.append(_search(contender, inputs))
    chosen = [min(search, key=lambda entry: entry["median_ms"])["config"] for search in searches]
    timed = _time_interleaved(contenders, chosen, inputs, plan, advance)
    advance(total, total, "done")

    def measurements(boundary: Boundary, blocks: Sequence[Sequence[Block]]) -> tuple[Measurement, ...]:
        return tuple(
            Measurement(c.name, boundary, 1, config, search, measured)
            for c, config, search, measured in zip(contenders, chosen, searches, blocks, strict=True)
            if measured
        )

    called = measurements("call", timed.blocks)
    steal = (read_cpu_times() - before).steal_share
    repeated = _compare_repeated(called, timed.repeated)
    validity = assess(called, steal=steal, foreign_load=foreign_load, repeated=repeated)
    sides = tuple(m for boundary in SIDES for m in measurements(boundary, timed.sides[boundary]))
    return BenchmarkResult(
        measurements=called,
        ratios=_ratios(called, validity),
        sides=sides,
        side_ratios={b: _ratios([m for m in sides if m.boundary == b], validity) for b in SIDES},
        cold={c.name: _median_cold(cold) for c, cold in zip(contenders, timed.cold, strict=True)},
        repeated=repeated,
        validity=validity,
        machine=machine,
    )


@dataclass(slots=True)
class _Timed:
    """What the workers measured, a list for each contender."""

    blocks: list[list[Block]]
    sides: dict[Boundary, list[list[Block]]]
    repeated: list[list[float]]
    cold: list[list[Mapping[str, float]]]


def _time_interleaved(
    contenders: Sequence[Contender],
    configs: Sequence[Mapping[str, Any]],
    inputs: Path,
    plan: BenchmarkPlan,
    advance: Callable[[int, int, str], None],
) -> _Timed:
    """Blocks of each contender in its chosen configuration; the first contender takes a second turn each round."""
    empty: Callable[[], list[list[Any]]] = lambda: [[] for _ in contenders]  # noqa: E731 # four of them below
    timed = _Timed(empty(), {boundary: empty() for boundary in SIDES}, empty(), empty())
    turns = [*((i, 0) for i in range(len(contenders))), (0, 1)]
    total = len(contenders) + plan.processes * plan.blocks
    for process in range(plan.processes):
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(_worker(inputs, contender)) for contender in contenders]
            for number, (worker, config) in enumerate(zip(workers, configs, strict=True)):
                timed.cold[number].append(worker.open(config))
                worker.check_all()
            for index in range(plan.blocks):
                done = len(contenders) + process * plan.blocks + index
                advance(done, total, f"round {process + 1} of {plan.processes}")
                # Alternate who goes first: the one after another contender finds its caches cold.
                for number, turn in turns if index % 2 == 0 else turns[::-1]:
                    times = workers[number].time_ms(plan.block_seconds)
                    timed.blocks[number].append(Block(process, index, turn, times))
            _time_sides(workers, process, plan, timed)
    return timed


def _time_sides(workers: Sequence[_WorkerProcess], process: int, plan: BenchmarkPlan, timed: _Timed) -> None:
    """The other boundaries, and one image again and again, interleaved likewise."""
    for index in range(plan.side_blocks):
        for number, worker in enumerate(workers):
            for boundary in SIDES:
                times = worker.time_ms(plan.block_seconds, boundary=boundary)
                if len(times):
                    timed.sides[boundary][number].append(Block(process, index, 0, times))
            # Beside each other, since the machine's speed wanders.
            varying = worker.time_ms(plan.block_seconds)
            same = worker.time_ms(plan.block_seconds, repeat=True)
            timed.repeated[number].append(float(np.median(same) / np.median(varying)))


def _compare_repeated(
    measurements: Sequence[Measurement], ratios: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Median over blocks of (one repeated image / varying images), by contender."""
    return {m.name: float(np.median(r)) for m, r in zip(measurements, ratios, strict=True) if r}


def _median_cold(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(float(np.median([run[key] for run in runs])), 3) for key in runs[0]}


def _ratios(measurements: Sequence[Measurement], validity: Validity) -> dict[str, Ratio]:
    if validity.state == "invalid" or not measurements:
        return {}
    return {m.name: compare_speed(measurements[0], m) for m in measurements[1:]}


def _search(contender: Contender, inputs: Path) -> list[dict[str, Any]]:
    found = []
    with _worker(inputs, contender) as worker:
        for config in contender.configs:
            worker.open(config)
            median = float(np.median(worker.time_ms(_SEARCH_SECONDS)))
            found.append({"config": dict(config), "median_ms": round(median, 4)})
    return found


class _WorkerProcess:
    """Requests to one worker."""

    def __init__(self, process: subprocess.Popen[str], contender: Contender) -> None:
        self._process, self._contender, self._name = process, contender, contender.name

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

    def open(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Load the contender in one configuration; milliseconds of loading and of the first answer."""
        arguments = {**self._contender.arguments, **config}
        return self.ask("open", factory=self._contender.factory, arguments=arguments)

    def check_all(self) -> None:
        """Compare every answer with the accuracy run's."""
        self._compare(np.asarray(self.ask("check")["logits"], np.float32), self._contender.logits)

    def time_ms(self, seconds: float, *, boundary: Boundary = "call", repeat: bool = False) -> Times:
        """Milliseconds of single calls, float64 (calls,); empty where it has no such boundary.

        One answer out of every block is compared with the accuracy run's, as MLPerf's TEST01 does.
        """
        answer = self.ask("time", seconds=seconds, boundary=boundary, repeat=repeat)
        sample = answer.get("sample")
        if sample:
            logits = np.asarray([sample["logits"]], np.float32)
            self._compare(logits, self._contender.logits[sample["index"]][None])
        return np.asarray(answer["times_ns"], np.float64) / 1e6

    def _compare(self, got: Logits, wanted: Logits) -> None:
        difference = float(np.abs(got - wanted).max())
        # Not <=: NaN must not pass.
        if not difference <= _LOGIT_TOLERANCE * float(np.ptp(self._contender.logits)):
            raise GateError(
                f"{self._name} answers otherwise when timed than when judged: a logit differs by {difference:.3g}.",
                hint="Its speed would be that of another computation.",
            )


@contextlib.contextmanager
def _worker(inputs: Path, contender: Contender) -> Iterator[_WorkerProcess]:
    # Waiting policies of OpenMP belong to the caller's own work; a contender runs at its library's best.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekiln.benchmarks.worker", str(inputs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the parent; a worker ends when its pipe closes
    )
    try:
        yield _WorkerProcess(process, contender)
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
