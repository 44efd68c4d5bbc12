"""Hours of mixed good and bad input from several threads, through every door: does anything leak, drift or mix up?

Each input is run once beforehand, alone; whatever it gave then, an answer or a typed error, it has to give for ever.
Where a bundle is named, the classifier is reloaded from it in every minute, under that traffic. Memory of this module
stays constant: latencies go into a histogram, faults are counted and the first ones kept.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from edgekiln.benchmarks.endurance.soak_inputs import make_inputs
from edgekiln.runtime.errors import EnvironmentProblem, ImageError, UsageError
from edgekiln.runtime.pictures.image import Picture
from edgekiln.runtime.serving.batching import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Prediction

__all__ = [
    "MAX_P99_DRIFT",
    "MAX_RSS_GROWTH_MB",
    "Minute",
    "SoakResult",
    "read_descriptors",
    "read_rss_mb",
    "run_soak",
]

MAX_RSS_GROWTH_MB = 10.0
MAX_P99_DRIFT = 0.2
MIN_MINUTES = 3
"""One to warm up, and two to compare."""

_KEPT_FAULTS = 10
_BATCH, _WAIT_US = 4, 500
_TOGETHER = 3
_LOOKS = 30
_WARM_UP_RELOADS = 9
"""In the first minute. Two models are in memory during a reload, and it takes some until an allocator needs no more."""


@dataclass(frozen=True, slots=True)
class Minute:
    """What one minute was like. MB are 1e6 bytes.

    Attributes:
        answered: good pictures that got their answer; ``refused``: bad ones that got their error.
        p50_ms, p99_ms: of ``Classifier.predict`` on good pictures, decoding included; to a hundredth of themselves,
            and 0 where none was answered.
        rss_mb: of this process, the least of many looks in the second half of the minute, as work comes and goes.
        descriptors: of this process, at the end of the minute.
    """

    number: int
    answered: int
    refused: int
    p50_ms: float
    p99_ms: float
    rss_mb: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class SoakResult:
    """All minutes, the first of which was the warm-up, and the first faults of all that were found."""

    variant: str
    minutes: tuple[Minute, ...]
    faults: tuple[str, ...] = ()
    fault_count: int = 0

    @property
    def rss_growth_mb(self) -> float:
        """From the end of the warm-up to the end."""
        return self.minutes[-1].rss_mb - self.minutes[0].rss_mb

    @property
    def descriptor_growth(self) -> int:
        """From the end of the warm-up to the end."""
        return self.minutes[-1].descriptors - self.minutes[0].descriptors

    @property
    def p99_drift(self) -> float:
        """Median p99 of the last third of the minutes after the warm-up, over that of the first third, less 1.

        0 where a minute has none: that is a problem of its own.
        """
        p99 = [minute.p99_ms for minute in self.minutes[1:]]
        if 0 in p99:
            return 0.0
        third = max(1, len(p99) // 3)
        return statistics.median(p99[-third:]) / statistics.median(p99[:third]) - 1

    @property
    def problems(self) -> list[str]:
        """What speaks against the runtime, each in a sentence; none where all is well."""
        found = []
        if self.fault_count:
            found.append(f"{self.fault_count} calls went wrong, the first: {self.faults[0]}")
        if silent := [str(minute.number) for minute in self.minutes if minute.p99_ms == 0]:
            found.append(f"no good picture was answered by predict in minute {', '.join(silent)}")
        if self.rss_growth_mb > MAX_RSS_GROWTH_MB:
            found.append(f"memory grew by {self.rss_growth_mb:.1f} MB after the warm-up")
        if self.descriptor_growth > 0:
            found.append(f"{self.descriptor_growth} more file descriptors are open than after the warm-up")
        if self.p99_drift > MAX_P99_DRIFT:
            found.append(f"p99 drifted by {self.p99_drift:+.0%}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values, units in the keys."""
        return {
            "variant": self.variant,
            "minutes": [asdict(minute) for minute in self.minutes],
            "rss_growth_mb": self.rss_growth_mb,
            "descriptor_growth": self.descriptor_growth,
            "p99_drift": self.p99_drift,
            "faults": list(self.faults),
            "fault_count": self.fault_count,
            "problems": self.problems,
        }


def run_soak(
    classifier: Classifier,
    *,
    minutes: int,
    callers: int = 4,
    pictures: Sequence[Picture] = (),
    reload_from: Path | None = None,
    seconds_per_minute: float = 60.0,
    on_minute: Callable[[Minute], None] = lambda minute: None,
) -> SoakResult:
    """Use a classifier for so many minutes from ``callers`` threads, one stream and one event loop.

    Args:
        classifier: stays open.
        minutes: three or more; the first is the warm-up.
        callers: threads, half of whose calls go through a batcher.
        pictures: run beside the made-up ones; what cannot be read has to go on being refused.
        reload_from: the classifier's own bundle, to reload it from in each minute, and several times in the first one.
        seconds_per_minute: 60, but for tests.
        on_minute: called at the end of each minute, in the calling thread.

    Raises:
        UsageError: too few minutes or callers.
        EnvironmentProblem: there is no /proc to read memory and descriptors from.
    """
    if minutes < MIN_MINUTES or callers < 1:
        raise UsageError(
            f"A soak takes {MIN_MINUTES} or more minutes and 1 or more callers, got {minutes} and {callers}."
        )
    read_rss_mb()  # where that is impossible, it is said before anything begins
    inputs = [_Input(picture, _run(classifier, picture)) for picture in (*make_inputs(), *pictures)]
    traffic = _Traffic(classifier, inputs, callers)
    done: list[Minute] = []
    try:
        traffic.start()
        for number in range(1, minutes + 1):
            bundles = [] if reload_from is None else [reload_from] * (_WARM_UP_RELOADS if number == 1 else 1)
            for bundle in bundles:
                traffic.stopped.wait(seconds_per_minute / 2 / len(bundles))
                traffic.reload(bundle)
            if not bundles:
                traffic.stopped.wait(seconds_per_minute / 2)
            rss_mb = min(_look(traffic.stopped, seconds_per_minute / 2))
            done.append(traffic.tally.end_minute(number, rss_mb))
            on_minute(done[-1])
    finally:
        traffic.stop()
    tally = traffic.tally
    return SoakResult(classifier.variant.name, tuple(done), tuple(tally.faults), tally.fault_count)


def _look(stopped: threading.Event, seconds: float) -> Iterator[float]:
    """Resident memory in MB, again and again for so long."""
    for _ in range(_LOOKS):
        stopped.wait(seconds / _LOOKS)
        yield read_rss_mb()


@dataclass(frozen=True, slots=True)
class _Input:
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


def _run(classifier: Classifier, picture: Picture) -> Prediction | ImageError:
    try:
        return classifier.predict(picture)
    except ImageError as error:
        return error.with_traceback(None)  # which would keep frames, and so pictures, alive


class _Histogram:
    """Latencies in bins that are a hundredth wider each, from 1 microsecond to about 8 minutes. Constant memory."""

    _RATIO, _BINS = 1.01, 2010

    def __init__(self) -> None:
        self._counts = np.zeros(self._BINS, np.int64)

    def add(self, seconds: float) -> None:
        place = int(np.log(max(seconds, 1e-6) * 1e6) / np.log(self._RATIO))
        self._counts[min(place, self._BINS - 1)] += 1

    def percentile_ms(self, percent: float) -> float:
        """Upper edge of the bin that holds it; 0 where nothing was added."""
        total = int(self._counts.sum())
        if total == 0:
            return 0.0
        place = int(np.searchsorted(self._counts.cumsum(), total * percent / 100))
        return float(self._RATIO ** (place + 1) / 1000)


@dataclass(slots=True)
class _Tally:
    """What the threads of a soak count together."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    latencies: _Histogram = field(default_factory=_Histogram)
    answered: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def add(self, given: _Input, got: Prediction | Exception, seconds: float | None) -> None:
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
            self.answered, self.refused, self.latencies = 0, 0, _Histogram()
        return Minute(
            number=number,
            answered=answered,
            refused=refused,
            p50_ms=latencies.percentile_ms(50),
            p99_ms=latencies.percentile_ms(99),
            rss_mb=rss_mb,
            descriptors=read_descriptors(),
        )


class _Traffic:
    """The threads: callers of ``predict`` and of a batcher, one that reads a stream, and one with an event loop."""

    def __init__(self, classifier: Classifier, inputs: Sequence[_Input], callers: int) -> None:
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
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            if thread.ident is not None:  # Ctrl-C may have come before it was started
                thread.join()
        self._batcher.close()

    def reload(self, bundle: Path) -> None:
        try:
            self._classifier.reload(bundle)
        except Exception as error:  # the bundle is the one that serves
            self.tally.add_fault(f"a reload ended with {type(error).__name__}: {error}")

    def _guard(self, work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except Exception as error:  # what is raised outside of a call to the runtime is no less a finding
            self.tally.add_fault(f"a thread ended with {type(error).__name__}: {error}")

    def _shuffled(self, seed: int) -> Iterator[_Input]:
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
        asked: list[_Input] = []  # read and not yet answered: a few, since the stream reads only so far ahead

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


def read_rss_mb(status: Path = Path("/proc/self/status")) -> float:
    """Resident memory of this process in MB of 1e6 bytes; raises EnvironmentProblem where there is no /proc."""
    try:
        lines = status.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) * 1024 / 1e6
    except (OSError, StopIteration) as error:
        raise EnvironmentProblem(f"Memory cannot be read: there is no VmRSS in {status}.") from error


def read_descriptors(looks: int = 50, pause_s: float = 0.002) -> int:
    """Open file descriptors of this process: the fewest of several looks, as threads that read files hold some."""
    counts = []
    for _ in range(looks):
        counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 # a plain count; no paths are needed
        sleep(pause_s)
    return min(counts)
