"""Who takes part in a benchmark, what each is given, and the process that each runs in.

A contender is named by a factory, so this module knows neither PyTorch nor any engine library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.timing.measurement import Boundary
from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.errors import EngineError, GateError
from edgekiln.runtime.spec import Frames, Logits

__all__ = [
    "LOGIT_TOLERANCE",
    "Contender",
    "WorkerProcess",
    "choose_images",
    "engine_contender",
    "open_worker",
    "peer_contender",
    "save_inputs",
    "thread_choices",
]

Times: TypeAlias = NDArray[np.int64]

LOGIT_TOLERANCE = 1e-3
"""Of the logit range: thread counts change the order of float sums, nothing more."""
_CLOSING_SECONDS = 5.0
_LIBRARIES = {
    "onnxruntime-cpu": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time.

    Attributes:
        name: shown in tables.
        factory: ``module:function`` that opens a Session from keyword arguments.
        arguments: fixed keyword arguments, JSON values.
        configs: keyword arguments to choose from; the fastest is timed.
        logits: what it must answer for the frames, float32 (N, C).
        imports: modules that the factory would import first; their time is told apart from loading.
        tolerance: how far its answers may be from ``logits``, a share of their range.
        optional: one that cannot run, or answers otherwise, is left out and named instead of ending the benchmark.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any]
    configs: Sequence[Mapping[str, Any]]
    logits: Logits
    imports: tuple[str, ...] = ()
    tolerance: float = LOGIT_TOLERANCE
    optional: bool = False

    def identity(self) -> dict[str, Any]:
        """What makes it this contender, as JSON values; the digest of its answers stands for its files."""
        return {
            "name": self.name,
            "factory": self.factory,
            "arguments": dict(self.arguments),
            "configs": [dict(config) for config in self.configs],
            "logits": hashlib.sha256(np.ascontiguousarray(self.logits).tobytes()).hexdigest(),
        }


def choose_images(total: int, wanted: int) -> NDArray[np.int64]:
    """Up to ``wanted`` of ``total`` indices, int64, evenly spaced: splits are sorted by class, and all must rotate."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64))


def thread_choices() -> list[int]:
    """1, 2, 4, ... up to the usable cores, and that number itself."""
    cores = len(os.sched_getaffinity(0))
    return sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})


def engine_contender(name: str, paths: Sequence[Path], backend: str, logits: Logits) -> Contender:
    """The engine files of one model under one of the runtime's backends."""
    threads: list[int | None] = [*thread_choices()] if backend in CPU_BACKENDS else [None]
    return Contender(
        name=name,
        factory="edgekiln.benchmarks.timing.worker:open_engine",
        arguments={"paths": [str(path) for path in paths], "backend": backend},
        configs=[{"threads": count} for count in threads],
        logits=logits,
        imports=(_LIBRARIES[backend],),
    )


def peer_contender(library: str, variant: str, path: Path, logits: Logits, *, tolerance: float) -> Contender:
    """Another library on the file of one of our variants, as ``onnxruntime:int8``.

    Args:
        library: ``onnxruntime``, bare and at its default options, or ``openvino``.
        variant: whose file it is.
        path: the ONNX file.
        logits: what our engine answers.
        tolerance: how far the library's kernels may be from that.
    """
    if library == "onnxruntime":
        # None is the library's own choice, which also pins threads to cores; a number is not the same.
        threads: list[int | None] = [None, *thread_choices()]
        factory, arguments = "edgekiln.benchmarks.timing.peers:open_onnxruntime", {"path": str(path)}
    else:
        threads = [*thread_choices()]
        factory = "edgekiln.benchmarks.timing.worker:open_engine"
        arguments = {"paths": [str(path)], "backend": library}  # type: ignore[dict-item] # two kinds of arguments
    return Contender(
        name=f"{library}:{variant}",
        factory=factory,
        arguments=arguments,
        configs=[{"threads": count} for count in threads],
        logits=logits,
        imports=(library,),
        tolerance=tolerance,
        optional=True,
    )


def save_inputs(
    path: Path, frames: Frames, pictures: Sequence[bytes] = (), contract: str | None = None
) -> None:
    """Write what the contenders are given; the same inputs give the same bytes.

    Args:
        path: ``.npz`` to write.
        frames: uint8 (N, H, W, 3); they rotate.
        pictures: encoded pictures, for the boundary ``image``; none leaves it out.
        contract: JSON of the contract that prepares them.
    """
    joined = np.frombuffer(b"".join(pictures), np.uint8)
    sizes = np.array([len(picture) for picture in pictures], np.int64)
    np.savez(path, frames=frames, pictures=joined, picture_sizes=sizes, contract=np.array(contract or ""))


class WorkerProcess:
    """Requests to one worker."""

    def __init__(self, process: subprocess.Popen[str], contender: Contender) -> None:
        self._process, self._contender, self._name = process, contender, contender.name
        self.failed = False  # whether it died, refused or answered wrongly

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request, one answer."""
        self.failed = True  # until the answer is there
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
        self.failed = False
        return answer

    def open(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Load the contender in one configuration.

        Returns:
            ``import_ms`` (from the start of the process on), ``load_ms``, ``first_result_ms`` and ``device``.
        """
        arguments = {**self._contender.arguments, **config}
        imports = list(self._contender.imports)
        return self.ask("open", factory=self._contender.factory, arguments=arguments, imports=imports)

    def check_all(self) -> None:
        """Compare every answer with the accuracy run's.

        Raises:
            GateError: one differs by more than the contender's tolerance.
        """
        self._compare(np.asarray(self.ask("check")["logits"], np.float32), self._contender.logits)

    def time_ns(self, seconds: float, *, boundary: Boundary = "call", repeat: bool = False) -> list[int]:
        """Nanoseconds of single calls; empty where it has no such boundary.

        One answer out of every block is compared with the accuracy run's, as MLPerf's TEST01 does.
        """
        answer = self.ask("time", seconds=seconds, boundary=boundary, repeat=repeat)
        sample = answer.get("sample")
        if sample:
            logits = np.asarray([sample["logits"]], np.float32)
            self._compare(logits, self._contender.logits[sample["index"]][None])
        times: list[int] = answer["times_ns"]
        return times

    def _compare(self, got: Logits, wanted: Logits) -> None:
        difference = float(np.abs(got - wanted).max())
        # Not <=: NaN must not pass.
        if not difference <= self._contender.tolerance * float(np.ptp(self._contender.logits)):
            self.failed = True
            raise GateError(
                f"{self._name} answers otherwise when timed than when judged: a logit differs by {difference:.3g}.",
                hint="Its speed would be that of another computation.",
            )


@contextlib.contextmanager
def open_worker(inputs: Path, contender: Contender) -> Iterator[WorkerProcess]:
    """A fresh process of one contender. It ends with the block; at once where that ends with an exception."""
    # Waiting policies of OpenMP belong to the caller's own work; a contender runs at its library's best.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekiln.benchmarks.timing.worker", str(inputs), str(time.perf_counter_ns())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the parent; a worker ends when its pipe closes
    )
    patience = 0.0
    try:
        yield WorkerProcess(process, contender)
        patience = _CLOSING_SECONDS
    finally:
        _end(process, patience)


def _end(process: subprocess.Popen[str], patience: float) -> None:
    """Close the pipes, which ends an idle worker, and kill one that is not gone after ``patience`` seconds."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    deadline = time.monotonic() + patience
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            # With what it started: a compiler, for example. Its session has the number of its process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
