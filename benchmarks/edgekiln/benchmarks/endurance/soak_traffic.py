"""The traffic of a soak: threads that use a classifier through every door, and compare each outcome with the first.

Memory of this module stays constant: latencies go into a histogram, faults are counted and the first ones kept. How
long the traffic lasts, and what its counts mean, is not known here.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np

from edgekiln.benchmarks.endurance.latency_histogram import LatencyHistogram
from edgekiln.benchmarks.endurance.process_status import read_descriptors
from edgekiln.benchmarks.endurance.soak_result import Minute
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.image import Picture
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Prediction

__all__ = ["SoakInput", "SoakTraffic", "run_alone"]

_KEPT_FAULTS = 10
_BATCH, _WAIT_US = 4, 500
_TOGETHER = 3


@dataclass(frozen=True, slots=True)
class SoakInput:
    """A picture, and what it gave when it was run alone."""

    picture: Picture
    wanted: Prediction | ImageError

    def find_fault(self, got: Prediction | Exception) -> str | None:
        """What is wrong with an outcome, or ``None``."""
        if isinstance(self.wanted, ImageError):
            if isinstance(got, ImageError) and got.reason == self.wanted.reason:
                return None
            return f"an input that is refused as {self.wanted.reason} gave {got!r}"
        if isinstance(got, Exception):
            return f"a good picture gave {type(got).__name__}: {got}"
        # Other batch sizes may run other kernels, which round otherwise: by far less than pictures differ.
        scale = float(np.abs(self.wanted.logits).max())
        if np.allclose(got.logits, self.wanted.logits, rtol=0, atol=1e-3 * scale):
            return None
        return f"a picture of class {self.wanted.label} got another one's answer ({got.label})"


def run_alone(classifier: Classifier, picture: Picture) -> Prediction | ImageError:
    """The outcome of a picture before there is any traffic: an answer, or the error that refuses it."""
    try:
        return classifier.predict(picture)
    except ImageError as error:
        return error.with_traceback(None)  # which would keep frames, and so pictures, alive


@dataclass(slots=True)
class _Tally:
    """What the threads of a soak count together."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)
    answered: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def add(self, given: SoakInput, got: Prediction | Exception, seconds: float | None) -> None:
        fault = given.find_fault(got)
        with self.lock:
            if fault is not None:
                self._count_fault(fault)
            elif isinstance(got, Exception):
                self.refused += 1
            else:
                self.answered += 1
                if seconds is not None:
                    self.latencies.add(seconds)

    def add_fault(self, fault: str) -> None:
        with self.lock:
            self._count_fault(fault)

    def _count_fault(self, fault: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _KEPT_FAULTS:
            self.faults.append(fault)

    def end_minute(self, number: int, rss_mb: float) -> Minute:
        with self.lock:
            answered, refused, latencies = self.answered, self.refused, self.latencies
            self.answered, self.refused, self.latencies = 0, 0, LatencyHistogram()
        return Minute(
            number=number,
            answered=answered,
            refused=refused,
            p50_ms=latencies.percentile_ms(50),
            p99_ms=latencies.percentile_ms(99),
            rss_mb=rss_mb,
            descriptors=read_descriptors(),
        )


class SoakTraffic:
    """The threads: callers of ``predict`` and of a batcher, one that reads a stream, and one with an event loop."""

    def __init__(self, classifier: Classifier, inputs: Sequence[SoakInput], callers: int) -> None:
        self.tally, self.stopped = _Tally(), threading.Event()
        self._classifier, self._inputs = classifier, inputs
        self._batcher = Batcher(
            classifier, max_batch=_BATCH, max_wait_us=_WAIT_US, max_queue=max(64, 2 * callers + _TOGETHER)
        )
        works = [
            *((self._call, seed) for seed in range(callers)),
            (self._stream, callers),
            (self._loop, callers + 1),
        ]
        self._threads = [threading.Thread(target=self._guard, args=work) for work in works]

    def start(self) -> None:
        """Begin; ``stop`` has to follow."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads and the batcher, and wait for them."""
        self.stopped.set()
        for thread in self._threads:
            if thread.ident is not None:  # Ctrl-C may have come before it was started
                thread.join()
        self._batcher.close()

    def reload(self, bundle: Path) -> None:
        """Reload the classifier under the traffic; a failure is counted as a fault."""
        try:
            self._classifier.reload(bundle)
        except Exception as error:  # the bundle is the one that serves
            self.tally.add_fault(f"a reload ended with {type(error).__name__}: {error}")

    def _guard(self, work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except Exception as error:  # what is raised outside of a call to the runtime is no less a finding
            self.tally.add_fault(f"a thread ended with {type(error).__name__}: {error}")

    def _shuffled(self, seed: int) -> Iterator[SoakInput]:
        """Inputs in random order until the end."""
        generator = np.random.default_rng(seed)
        while not self.stopped.is_set():
            yield self._inputs[int(generator.integers(len(self._inputs)))]

    def _call(self, seed: int) -> None:
        for given, batched in zip(self._shuffled(seed), itertools.cycle((False, True)), strict=False):
            begun = monotonic()
            got = _catch(self._ask_batcher if batched else self._classifier.predict, given.picture)
            self.tally.add(given, got, None if batched else monotonic() - begun)

    def _ask_batcher(self, picture: Picture) -> Prediction:
        return self._batcher.submit(picture).result()

    def _stream(self, seed: int) -> None:
        asked: list[
            SoakInput
        ] = []  # read and not yet answered: a few, since the stream reads only so far ahead

        def source() -> Iterator[Picture]:
            for given in self._shuffled(seed):
                asked.append(given)
                yield given.picture

        for got in self._classifier.predict_stream(source(), max_batch=_BATCH):
            self.tally.add(asked.pop(0), got, None)

    def _loop(self, seed: int) -> None:
        asyncio.run(self._ask_together(seed))

    async def _ask_together(self, seed: int) -> None:
        """Several requests at once, of which every tenth is cancelled and may so end either way."""
        cancelled = itertools.cycle([True, *[False] * 9])
        inputs = self._shuffled(seed)
        while group := list(itertools.islice(inputs, _TOGETHER)):
            tasks = [asyncio.create_task(self._batcher.predict_async(given.picture)) for given in group]
            await asyncio.sleep(0)  # each has begun
            for task in tasks:
                if next(cancelled):
                    task.cancel()
            for given, got in zip(group, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                if isinstance(got, Prediction | Exception):  # a cancellation is neither
                    self.tally.add(given, got, None)


def _catch(call: Callable[[Picture], Prediction], picture: Picture) -> Prediction | Exception:
    try:
        return call(picture)
    except Exception as error:  # whatever leaves the runtime is an outcome
        return error
