"""Images per second of each contender over batch sizes, and over callers that ask for one image at a time.

Contenders take turns as in a round: fresh processes, each at the configuration that it was timed with. There is no
ratio and no interval here: a figure is a median over turns, beside the lowest and the highest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.worker_process import WorkerProcess, open_worker
from edgekiln.runtime.backends import SLOT_BACKENDS
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["BATCH_SIZES", "caller_counts", "measure_throughput"]

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_TURNS = 3


def caller_counts(cores: int) -> list[int]:
    """Threads that ask at once, beside one alone: 2, 4, and one and two for each core where those are more."""
    return sorted({2, 4, *(count for count in (cores, 2 * cores) if count > 4)})


def measure_throughput(
    contenders: Sequence[tuple[Contender, Mapping[str, Any]]],
    inputs: Path,
    *,
    callers: Sequence[int],
    seconds: float,
    advance: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, dict[str, Any]]:
    """By contender JSON values: ``batches`` and ``callers``, rows of ``images_per_second`` with ``low`` and ``high``.

    ``p50_ms`` beside them is the time of a call under that load. Where calls run in slots on a GPU, each caller has
    one, and with it a stream of its own: the row's ``streams``. A row of what failed, or answered otherwise than one
    image at a time, holds its ``problem`` instead.

    Args:
        contenders: each with its configuration.
        inputs: file of ``save_inputs``; its images rotate.
        callers: numbers of threads.
        seconds: of each of three turns; a call that has begun is ended.
        advance: told of progress.

    Raises:
        EngineError: one cannot be opened.
    """
    wishes = [{"batch": size, "callers": 1} for size in BATCH_SIZES]
    wishes += [{"batch": 1, "callers": count} for count in callers]
    rows = {contender.name: [_Row(wish) for wish in wishes] for contender, _ in contenders}
    with contextlib.ExitStack() as stack:
        workers: list[WorkerProcess] = []
        for contender, config in contenders:
            workers.append(stack.enter_context(open_worker(inputs, contender)))
            workers[-1].open(config)
        steps = [place for _ in range(_TURNS) for place in range(len(wishes))]
        for done, place in enumerate(steps):
            advance(done, len(steps), "throughput")
            for (contender, config), worker in zip(contenders, workers, strict=True):
                rows[contender.name][place].time(worker, seconds, _slotted(contender, config))
    sizes = len(BATCH_SIZES)
    told = {name: [row.to_dict() for row in own] for name, own in rows.items()}
    return {name: {"batches": own[:sizes], "callers": own[sizes:]} for name, own in told.items()}


@dataclass(slots=True)
class _Row:
    """What one contender does at one batch size with so many callers, and why no more where it failed."""

    wish: Mapping[str, int]
    rates: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    streams: int | None = None
    problem: str | None = None

    def time(self, worker: WorkerProcess, seconds: float, slotted: Mapping[str, Any] | None) -> None:
        """With ``slotted``, a configuration, the engine is opened anew with a slot for each caller."""
        callers = self.wish["callers"]
        if self.problem is None:
            try:
                if slotted is not None and callers > 1:
                    worker.open({**slotted, "slots": callers})
                    self.streams = callers
                rate, p50_ms = worker.rate(seconds, batch=self.wish["batch"], callers=callers)
                self.rates.append(rate)
                self.medians.append(p50_ms)
            except EdgekilnError as error:
                self.problem = str(error)

    def to_dict(self) -> dict[str, Any]:
        if self.problem is not None:
            return {**self.wish, "problem": self.problem}
        return {
            **self.wish,
            "images_per_second": round(float(np.median(self.rates)), 2),
            "low": round(min(self.rates), 2),
            "high": round(max(self.rates), 2),
            "p50_ms": round(float(np.median(self.medians)), 4),
            **({} if self.streams is None else {"streams": self.streams}),
        }


def _slotted(contender: Contender, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The configuration of an engine whose calls run in slots, else ``None``."""
    return config if contender.arguments.get("backend") in SLOT_BACKENDS else None
