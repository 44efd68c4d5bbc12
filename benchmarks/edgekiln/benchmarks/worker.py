"""One contender in a process of its own, driven over a pipe by ``latency``. Run as a module, never imported.

Each request and each answer is one line of JSON. The answers have a pipe to themselves: what a library prints
goes to stderr. An idle worker blocks in a read and uses no CPU.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

_WARM_UP_CALLS = 1  # per block; the search before and the answer check have warmed everything else


def open_engine(*, paths: list[str], backend: Any, threads: int | None) -> Session:
    """The factory of engine files."""
    return open_session(backend, [Path(path).read_bytes() for path in paths], threads=threads)


class Worker:
    """Holds one session and the frames that rotate through it."""

    def __init__(self, frames: Frames) -> None:
        # Separate arrays of batch 1: slicing is not part of what is timed.
        self._inputs = [np.ascontiguousarray(frames[i : i + 1]) for i in range(len(frames))]
        self._session: Session | None = None

    def open(self, factory: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Load the engine, closing an earlier one."""
        if self._session is not None:
            self._session.close()
        module, _, name = factory.partition(":")
        self._session = getattr(importlib.import_module(module), name)(**arguments)
        return {}

    def check(self) -> dict[str, Any]:
        """Logits of every frame, to be compared with those of the accuracy run."""
        assert self._session is not None
        return {"logits": [self._session.run(frame)[0].tolist() for frame in self._inputs]}

    def time(self, seconds: float) -> dict[str, Any]:
        """Time single calls for about ``seconds``, after a warm-up that is not counted."""
        assert self._session is not None
        run, inputs, count = self._session.run, self._inputs, len(self._inputs)
        for i in range(_WARM_UP_CALLS):
            run(inputs[i % count])
        times: list[int] = []
        gc.disable()
        try:
            end = perf_counter_ns() + int(seconds * 1e9)
            now = 0
            while now < end:
                frame = inputs[len(times) % count]
                start = perf_counter_ns()
                run(frame)
                now = perf_counter_ns()
                times.append(now - start)
        finally:
            gc.enable()
        return {"times_ns": times}


def serve(requests: TextIO, answers: TextIO, frames: Frames) -> None:
    """Answer requests until the pipe closes."""
    worker = Worker(frames)
    for line in requests:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            answer = getattr(worker, operation)(**request)
        except EdgekilnError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.worker FRAMES.npy``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers, np.load(sys.argv[1], allow_pickle=False))


if __name__ == "__main__":
    main()
