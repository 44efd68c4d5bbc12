"""One contender in a process of its own, driven over a pipe by ``worker_process``. Run as a module.

Each request and each answer is one line of JSON. The answers have a pipe to themselves: what a library prints
goes to stderr. An idle worker blocks in a read and uses no CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ROTATING_BATCHES = 4  # all images of a batch differ; of each batch size few are kept in memory
_WARM_UP_CALLS = 1  # per block; the search before and the answer check have warmed everything else


def open_engine(
    *, paths: list[str], backend: Any, threads: int | None = None, slots: int | None = None
) -> Session:
    """The factory of engine files; ``slots`` are calls that may run at once, for backends that have such."""
    engines = [Path(path).read_bytes() for path in paths]
    return open_session(backend, engines, threads=threads, slots=slots)


class Worker:
    """Holds one session and the inputs that rotate through it."""

    def __init__(
        self, frames: Frames, pictures: Sequence[bytes], contract: str | None, started_ms: float
    ) -> None:
        # Separate arrays of batch 1: slicing is not part of what is timed.
        self._inputs = [np.ascontiguousarray(frames[i : i + 1]) for i in range(len(frames))]
        self._pictures, self._contract = pictures, contract
        self._started_ms = started_ms
        self._session: Session | None = None
        self._warm_batch: int | None = None  # of the calls that the session had last
        self._made: dict[str, list[Callable[[], Any]] | None] = {}  # what is timed, by boundary
        self._next: dict[str, int] = {}  # the input that is next, by boundary

    def open(self, factory: str, arguments: dict[str, Any], imports: list[str]) -> dict[str, Any]:
        """Load the engine, closing an earlier one.

        Returns:
            What it took: ``import_ms`` from the start of the process on (interpreter, numpy, edgekiln.runtime, the
            engine's library), ``load_ms`` and ``first_result_ms``; and ``device``, where the session says it runs.
        """
        if self._session is not None:
            self._session.close()
        self._made.clear()
        self._warm_batch = None
        begin = perf_counter_ns()
        module, _, name = factory.partition(":")
        make = getattr(importlib.import_module(module), name)
        for library in imports:
            with contextlib.suppress(ImportError):  # the factory says it better
                importlib.import_module(library)
        start = perf_counter_ns()
        session: Session = make(**arguments)
        loaded = perf_counter_ns()
        session.run(self._inputs[0])
        answered = perf_counter_ns()
        self._session = session
        return {
            "import_ms": self._started_ms + (start - begin) / 1e6,
            "load_ms": (loaded - start) / 1e6,
            "first_result_ms": (answered - loaded) / 1e6,
            "device": getattr(session, "device", None),
        }

    def check(self) -> dict[str, Any]:
        """Logits of every frame, to be compared with those of the accuracy run."""
        assert self._session is not None
        return {"logits": [self._session.run(frame)[0].tolist() for frame in self._inputs]}

    def time(self, seconds: float, boundary: str = "call", repeat: bool = False) -> dict[str, Any]:
        """Time single calls for about ``seconds``, after a warm-up that is not counted.

        ``repeat`` gives the same input every time. An empty list of times: this contender has no such boundary.
        """
        if boundary not in self._made:
            self._made[boundary] = self._calls(boundary)
        calls = self._made[boundary]
        if calls is None:
            return {"times_ns": []}
        self._warm_batch = 1
        # A block goes on where the one before ended: a slow contender has a few calls in each.
        first = 0 if repeat else self._next.get(boundary, 0)
        times: list[int] = []
        gc.disable()
        try:
            for _ in range(_WARM_UP_CALLS):
                calls[first]()
            answer = _time_calls(calls[:1] if repeat else calls, seconds, times, first)
        finally:
            gc.enable()
        last = 0 if repeat else (first + len(times) - 1) % len(calls)
        if not repeat:
            self._next[boundary] = (last + 1) % len(calls)
        sample = {"index": last, "logits": answer[0].tolist()} if boundary == "call" else None
        return {"times_ns": times, "sample": sample}

    def phases(self, calls: int) -> dict[str, Any]:
        """Where the time of single calls goes, as the session tells; ``None`` where it cannot."""
        measure = getattr(self._session, "measure_phases", None)
        if measure is None:
            return {"phases": None}
        measure(self._inputs[0], _WARM_UP_CALLS)
        return {"phases": [asdict(phases) for phases in measure(self._inputs[0], calls)]}

    def rate(self, seconds: float, batch: int, callers: int) -> dict[str, Any]:
        """Images per second of ``callers`` threads, each with ``batch`` images a call, and the last call's answers.

        ``p50_ms`` is the median time of a call under that load.
        """
        assert self._session is not None
        run = self._session.run
        count = len(self._inputs)
        starts = range(0, count, max(1, count // _ROTATING_BATCHES))
        turns = [(np.arange(batch) + start) % count for start in starts]
        batches = [np.concatenate([self._inputs[i] for i in turn]) for turn in turns]
        if batch != self._warm_batch:  # a shape that is new to the library
            run(batches[0])
            self._warm_batch = batch
        with ThreadPoolExecutor(callers) as pool:
            begun = perf_counter_ns()
            end = begun + int(seconds * 1e9)

            def ask_again(caller: int) -> tuple[list[int], int, Any]:
                times: list[int] = []
                while True:
                    place = (caller + len(times)) % len(batches)
                    asked = perf_counter_ns()
                    answer = run(batches[place])
                    now = perf_counter_ns()
                    times.append(now - asked)
                    if now >= end:
                        return times, place, answer

            done = list(pool.map(ask_again, range(callers)))
            passed = (perf_counter_ns() - begun) / 1e9
        _, place, answer = done[0]
        times = np.concatenate([own for own, _, _ in done])
        sample = {"indices": turns[place].tolist(), "logits": answer.tolist()}
        p50_ms = float(np.median(times)) / 1e6
        return {"images_per_second": batch * len(times) / passed, "p50_ms": p50_ms, "sample": sample}

    def _calls(self, boundary: str) -> list[Callable[[], Any]] | None:
        """What is timed, one callable for each input."""
        session: Any = self._session
        if boundary == "call":
            return [partial(session.run, frame) for frame in self._inputs]
        if boundary == "engine":
            bare = getattr(session, "bare_call", None)
            return None if bare is None else [bare(frame) for frame in self._inputs]
        # A peer has no way of its own from a picture to a label.
        if self._contract is None or not self._pictures or not hasattr(session, "frame_shape"):
            return None
        classifier = Classifier(session, Contract.from_json(self._contract), Selection("", "", "", ""))
        return [partial(classifier.predict, picture) for picture in self._pictures]


def _time_calls(calls: Sequence[Callable[[], Any]], seconds: float, times: list[int], first: int) -> Any:
    """Append the nanoseconds of every call, from the ``first`` on in turn; returns the last answer."""
    count, answer = len(calls), None
    end = perf_counter_ns() + int(seconds * 1e9)
    now = 0
    while now < end:
        call = calls[(first + len(times)) % count]
        start = perf_counter_ns()
        answer = call()
        now = perf_counter_ns()
        times.append(now - start)
    return answer


def serve(requests: TextIO, answers: TextIO, worker: Worker) -> None:
    """Answer requests until the pipe closes."""
    for line in requests:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            answer = getattr(worker, operation)(**request)
        except EdgekilnError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _die_with_parent() -> None:
    """Linux: be killed when the parent is, however it ends; elsewhere a worker ends at its next read."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.timing.worker INPUTS.npz STARTED_NS``.

    The inputs are as ``inputs.save_inputs`` wrote them; the other is the parent's ``perf_counter_ns``, a clock of
    the whole system, when it started this process.
    """
    started_ms = (perf_counter_ns() - int(sys.argv[2])) / 1e6
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with np.load(sys.argv[1], allow_pickle=False) as inputs:
        ends = np.cumsum(inputs["picture_sizes"])
        pictures = [part.tobytes() for part in np.split(inputs["pictures"], ends[:-1])] if len(ends) else []
        worker = Worker(inputs["frames"], pictures, str(inputs["contract"]) or None, started_ms)
    serve(sys.stdin, answers, worker)


if __name__ == "__main__":
    main()
