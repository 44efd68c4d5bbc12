"""Hours of mixed good and bad input from several threads, through every door: does anything leak, drift or mix up?

Each input is run once beforehand, alone; whatever it gave then, an answer or a typed error, it has to give for ever.
Where a bundle is named, the classifier is reloaded from it in every minute, under that traffic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgekiln.benchmarks.endurance.process_status import read_rss_mb
from edgekiln.benchmarks.endurance.soak_inputs import make_inputs
from edgekiln.benchmarks.endurance.soak_result import Minute, SoakResult
from edgekiln.benchmarks.endurance.soak_traffic import SoakInput, SoakTraffic, run_alone
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.pictures.image import Picture
from edgekiln.runtime.serving.classifier import Classifier

__all__ = ["run_soak"]

MIN_MINUTES = 3
"""One to warm up, and two to compare."""
_LOOKS = 30
_WARM_UP_RELOADS = 9
"""In the first minute. Two models are in memory during a reload, and it takes some until an allocator needs no more."""


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
    inputs = [SoakInput(picture, run_alone(classifier, picture)) for picture in (*make_inputs(), *pictures)]
    traffic = SoakTraffic(classifier, inputs, callers)
    done: list[Minute] = []
    try:
        traffic.start()
        for number in range(1, minutes + 1):
            done.append(_spend_minute(traffic, number, reload_from, seconds_per_minute))
            on_minute(done[-1])
    finally:
        traffic.stop()
    tally = traffic.tally
    return SoakResult(classifier.variant.name, tuple(done), tuple(tally.faults), tally.fault_count)


def _spend_minute(traffic: SoakTraffic, number: int, reload_from: Path | None, seconds: float) -> Minute:
    """Reload in the first half, look at memory in the second."""
    bundles = [] if reload_from is None else [reload_from] * (_WARM_UP_RELOADS if number == 1 else 1)
    for bundle in bundles:
        traffic.stopped.wait(seconds / 2 / len(bundles))
        traffic.reload(bundle)
    if not bundles:
        traffic.stopped.wait(seconds / 2)
    return traffic.tally.end_minute(number, min(_look(traffic.stopped, seconds / 2)))


def _look(stopped: threading.Event, seconds: float) -> Iterator[float]:
    """Resident memory in MB, again and again for so long."""
    for _ in range(_LOOKS):
        stopped.wait(seconds / _LOOKS)
        yield read_rss_mb()
