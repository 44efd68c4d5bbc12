"""A minute of calls from several threads: does an engine leak, drift or mix answers up? Without one, a CUDA layer.

Hours are for ``edgekiln soak`` with a bundle; this one finds what breaks at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekiln.benchmarks.endurance.latency_histogram import LatencyHistogram
from edgekiln.benchmarks.endurance.process_status import read_rss_mb
from edgekiln.pipeline.gpu_suite.contenders import list_sessions
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.layers import list_layers
from edgekiln.pipeline.gpu_suite.networks import MODELS, make_frames
from edgekiln.pipeline.gpu_suite.reference import POOL
from edgekiln.runtime.cuda import CudaApi, open_cuda
from edgekiln.runtime.cuda.driver import free_memory
from edgekiln.runtime.errors import EdgekilnError, MissingExtraError
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["SECONDS", "soak", "soak_calls", "soak_layer"]

SECONDS = 60.0
THREADS = 4
MAX_DRIFT = 1e-3
"""Of the logits' range, between two answers to the same batch: the same kernels give the same numbers."""
_MAX_LOST_BYTES = 64 << 20  # what a library takes at first use; a leak of a minute is far more
_TOLD = 10
_BYTES = 1 << 20


@dataclass(slots=True)
class _Tally:
    calls: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float, right: bool) -> None:
        """Count one call."""
        with self.lock:
            self.calls += 1
            self.wrong += not right
            self.latency.add(seconds)

    def fail(self, error: Exception) -> None:
        """Keep what a call raised."""
        with self.lock:
            self.errors.append(f"{type(error).__name__}: {error}"[:500])


def soak(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Soak the first of edgekiln's backends that opens, or else the first CUDA layer.

    Args:
        arguments: ``model``, ``batch``, ``device``, ``folders``, ``families`` and ``seconds``.
        tell: told of what is soaked.

    Returns:
        Calls, latencies and growth of memory, with ``failures``: what raised, what was answered otherwise.

    Raises:
        SkippedPart: there is neither a backend nor a layer.
    """
    reasons: list[str] = []
    for contender in list_sessions(arguments):
        tell({"soaked": contender.name, "doing": "open"})
        try:
            caller = contender.open()
        except (SkippedPart, EdgekilnError) as error:
            reasons.append(f"{contender.name}: {error}")
            continue
        with contextlib.closing(caller):
            pool = make_frames(POOL, MODELS[arguments["model"]].size)
            tell({"soaked": contender.name, "doing": "calls"})
            on_gpu = arguments["device"] == "cuda"
            found = soak_calls(
                caller.run,
                pool,
                arguments["batch"],
                arguments["seconds"],
                free_bytes=free_memory if on_gpu else lambda: 0,
            )
        return _judge({"soaked": contender.name, **found})
    for layer in list_layers():
        tell({"soaked": layer, "doing": "open"})
        chosen: Any = layer
        try:
            with contextlib.closing(open_cuda(chosen)) as cuda:
                found = soak_layer(cuda, arguments["seconds"])
        except MissingExtraError as error:
            reasons.append(f"{layer}: {error}")
            continue
        return _judge({"soaked": f"CUDA layer {layer}", "no_engine": reasons, **found})
    raise SkippedPart(f"there is nothing to soak: {'; '.join(reasons)}")


def soak_calls(
    run: Callable[[Frames], Logits],
    pool: Frames,
    batch: int,
    seconds: float,
    threads: int = THREADS,
    *,
    free_bytes: Callable[[], int] = lambda: 0,
) -> dict[str, Any]:
    """Call from several threads, and hold each answer against the first one to the same batch.

    Args:
        free_bytes: tells how much device memory is free.
    """
    batches = [pool[(np.arange(batch) + start) % len(pool)] for start in range(0, len(pool), max(1, batch))]
    first = [run(frames) for frames in batches]
    extent = float(np.ptp(np.concatenate(first))) or 1.0

    def step(turn: int) -> bool:
        place = turn % len(batches)
        got = run(batches[place])
        return bool(np.abs(got - first[place]).max() <= MAX_DRIFT * extent)

    free = free_bytes()
    found = _spend(seconds, threads, step)
    return {**found, "lost_device_bytes": free - free_bytes()}


def soak_layer(cuda: CudaApi, seconds: float, threads: int = THREADS) -> dict[str, Any]:
    """Allocate, copy there and back, capture, launch and free, from several threads."""
    free, _ = cuda.memory()

    def step(turn: int) -> bool:
        source, device, target = (
            cuda.allocate_pinned(_BYTES),
            cuda.allocate_device(_BYTES),
            cuda.allocate_pinned(_BYTES),
        )
        stream = cuda.create_stream()
        source.array[:] = turn % 256

        def enqueue() -> None:
            cuda.copy_to_device(device, source, _BYTES, stream)
            cuda.copy_to_host(target, device, _BYTES, stream)

        graph = cuda.capture(stream, enqueue)
        graph.launch(stream)
        stream.synchronize()
        right = bool((target.array == turn % 256).all())
        graph.close()
        stream.close()
        for block in (source, device, target):
            block.free()
        return right

    found = _spend(seconds, threads, step)
    return {**found, "lost_device_bytes": free - cuda.memory()[0]}


def _spend(seconds: float, threads: int, step: Callable[[int], bool]) -> dict[str, Any]:
    tally, end = _Tally(), time.monotonic() + seconds

    def work(number: int) -> None:
        turn = number
        while time.monotonic() < end and len(tally.errors) < _TOLD:
            began = time.perf_counter()
            try:
                right = step(turn)
            except Exception as error:  # whatever a call raises is told, and the other threads go on
                tally.fail(error)
            else:
                tally.add(time.perf_counter() - began, right)
            turn += threads

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    before = read_rss_mb()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "seconds": seconds,
        "threads": threads,
        "calls": tally.calls,
        "wrong_answers": tally.wrong,
        "errors": tally.errors[:_TOLD],
        "p50_ms": tally.latency.percentile_ms(50),
        "p99_ms": tally.latency.percentile_ms(99),
        "rss_growth_mb": round(read_rss_mb() - before, 1),
    }


def _judge(found: dict[str, Any]) -> dict[str, Any]:
    """The figures with ``failures``: calls that raised, answers that differ, memory that is lost."""
    problems = (
        [f"{found['wrong_answers']} answers differ from the first ones"] if found["wrong_answers"] else []
    )
    problems += found["errors"]
    if found.get("lost_device_bytes", 0) > _MAX_LOST_BYTES:
        problems.append(f"{found['lost_device_bytes']} bytes of device memory are lost")
    if not found["calls"]:
        problems.append("no call ended")
    return {**found, "failures": [{"test": "soak", "reason": problem} for problem in problems]}
