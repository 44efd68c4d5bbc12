"""What the batcher costs: its share of the engine's best throughput, and the time that it adds to a lone request.

Both are told beside what they are compared with, measured in the same process in turns: a machine's speed wanders.
Pictures are arrays that already have the engine's size, so that preparing them is a copy and not a decode.

Run as a module: ``python -m edgekiln.benchmarks.costs.batching_cost BUNDLE``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.benchmarks.timing.entry import run_entry
from edgekiln.runtime.pictures.image import Frame
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.serving.prediction import Prediction

__all__ = ["measure_batching_cost"]

_ROUNDS = 21
_PAUSE_S = 0.002


def measure_batching_cost(
    bundle: Path,
    *,
    max_batch: int = 8,
    max_wait_us: float = 1000,
    seconds: float = 0.5,
    device: Any = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """JSON values, units in the keys.

    ``saturated``: pictures per second of ``Session.run`` on full batches back to back; of the batcher with always twice
    a batch's requests under way; and their ratio, the goal for which is 0.9. ``lone``: median microseconds of
    ``Classifier.predict`` after a pause, of a lone request through the batcher, and what is added over ``max_wait_us``,
    the goal for which is 100. Each is a median over 21 rounds in turns, with the smallest and the largest.
    """
    foreign = measure_foreign_load()
    with (
        load(bundle, device=device, threads=threads) as classifier,
        Batcher(classifier, max_batch=max_batch, max_wait_us=max_wait_us, max_queue=4 * max_batch) as batcher,
    ):
        frames = _random_frames(classifier, max_batch)
        classifier.warm_up()
        saturated = _measure_saturated(classifier, batcher, frames, seconds)
        lone = _measure_lone(classifier, batcher, frames[0], max_wait_us, seconds)
        variant = classifier.variant.name
    machine = describe_machine()
    return {
        "variant": variant,
        "max_batch": max_batch,
        "max_wait_us": max_wait_us,
        "saturated": saturated,
        "lone": lone,
        "foreign_load_cores": round(foreign, 2),
        "cpu": f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
    }


def _random_frames(classifier: Classifier, count: int) -> list[Frame]:
    shape = (count, *classifier.session.frame_shape, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def _spread(values: Sequence[float]) -> list[float]:
    """Median, smallest, largest."""
    return [round(float(value), 4) for value in (np.median(values), min(values), max(values))]


def _measure_saturated(
    classifier: Classifier, batcher: Batcher, frames: Sequence[Frame], seconds: float
) -> dict[str, list[float]]:
    batch = np.stack(frames)
    bare, batched = [], []
    for _ in range(_ROUNDS):
        bare.append(len(batch) * _rate(lambda: classifier.session.run(batch), seconds))
        batched.append(_batched_rate(batcher, frames, seconds))
    return {
        "back_to_back_per_s": _spread(bare),
        "batcher_per_s": _spread(batched),
        "ratio": _spread([ours / best for ours, best in zip(batched, bare, strict=True)]),
    }


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    begun, calls = perf_counter(), 0
    while (elapsed := perf_counter() - begun) < seconds:
        call()
        calls += 1
    return calls / elapsed


def _batched_rate(batcher: Batcher, frames: Sequence[Frame], seconds: float) -> float:
    """Pictures per second with two batches' requests under way, from one thread: no client competes for cores.

    It asks again for each answer that comes, through a queue that is not written in Python: what the client costs is
    not the batcher's.
    """
    ended: SimpleQueue[Future[Prediction]] = SimpleQueue()

    def ask(frame: Frame) -> None:
        batcher.submit(frame).add_done_callback(ended.put)

    begun, before = perf_counter(), batcher.read_counters().answered
    for frame in (*frames, *frames):
        ask(frame)
    asked = 0
    while perf_counter() - begun < seconds:
        ended.get()
        ask(frames[asked % len(frames)])
        asked += 1
    elapsed = perf_counter() - begun
    answered = batcher.read_counters().answered - before
    for _ in range(2 * len(frames)):  # let the last ones end before the next turn
        ended.get()
    return answered / elapsed


def _measure_lone(
    classifier: Classifier, batcher: Batcher, frame: Frame, max_wait_us: float, seconds: float
) -> dict[str, list[float]]:
    """Requests with pauses between, by turns. An engine that stood idle is slower, by up to twice: what is compared
    has therefore been idle for as long, and the batcher is not charged for what its wait lets cool down."""
    predict, batched, added = [], [], []
    for _ in range(_ROUNDS):
        direct, grouped = [], []
        end = perf_counter() + seconds
        while perf_counter() < end:
            direct.append(_time_after(_PAUSE_S + max_wait_us / 1e6, lambda: classifier.predict(frame)))
            grouped.append(_time_after(_PAUSE_S, lambda: batcher.submit(frame).result()))
        predict.append(1e6 * float(np.median(direct)))
        batched.append(1e6 * float(np.median(grouped)))
        added.append(batched[-1] - predict[-1] - max_wait_us)
    return {
        "predict_us": _spread(predict),
        "batcher_us": _spread(batched),
        "added_over_max_wait_us": _spread(added),
    }


def _time_after(pause: float, call: Callable[[], object]) -> float:
    """Seconds of a call that follows ``pause`` seconds of nothing."""
    sleep(pause)
    begun = perf_counter()
    call()
    return perf_counter() - begun


def main() -> None:
    """Entry point: print one JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m edgekiln.benchmarks.costs.batching_cost", description=__doc__
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--max-wait-us", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each of 63 turns")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int)
    print(json.dumps(measure_batching_cost(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    run_entry(main)
