"""The process that one contender runs in, seen from outside; its answers are compared before and while it is timed.

``worker`` is what runs inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.measurement import Boundary
from edgekiln.runtime.errors import EngineError, GateError
from edgekiln.runtime.processes import child_environment, module_command
from edgekiln.runtime.spec import Logits

__all__ = ["WorkerProcess", "open_worker"]

_CLOSING_SECONDS = 5.0


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

    def phases(self, calls: int) -> list[dict[str, float | None]] | None:
        """Fields of ``CallPhases`` of single calls; ``None`` where the session cannot tell them apart."""
        phases: list[dict[str, float | None]] | None = self.ask("phases", calls=calls)["phases"]
        return phases

    def rate(self, seconds: float, *, batch: int, callers: int) -> tuple[float, float]:
        """So many threads that each run ``batch`` images again and again: images per second, and a call's median in ms.

        Raises:
            EngineError: the process died, or the engine refused.
            GateError: an answer in a batch is not the one for that image alone.
        """
        answer = self.ask("rate", seconds=seconds, batch=batch, callers=callers)
        rows = self._contender.logits[answer["sample"]["indices"]]
        self._compare(np.asarray(answer["sample"]["logits"], np.float32), rows)
        return float(answer["images_per_second"]), float(answer["p50_ms"])

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
    environment = child_environment(without=["OMP_WAIT_POLICY"])
    process = subprocess.Popen(
        module_command("edgekiln.benchmarks.timing.worker", str(inputs), str(time.perf_counter_ns())),
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
