"""Contenders on the CPU at several batch sizes and thread counts, interleaved: cells, as (batch 8, 1 thread).

For each thread count there are fresh processes, and in each the batch sizes one after the other; blocks of all
contenders take turns. A ratio of two contenders comes from blocks that ran side by side, as in ``measurement``. A
process that is finished is kept in the journal, so a benchmark that was interrupted goes on with the next one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.journal import Journal, plan_digest
from edgekiln.benchmarks.timing.measurement import Block, Measurement, compare_speed
from edgekiln.benchmarks.timing.worker_process import WorkerProcess, open_worker
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.limits import usable_threads

__all__ = ["CellPlan", "configuration_at", "measure_cells"]

_THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Fresh processes for each thread count, blocks in each for every batch size, and the seconds of a block."""

    batches: tuple[int, ...]
    processes: int = 3
    blocks: int = 4
    seconds: float = 0.1

    @property
    def threads(self) -> list[int]:
        """One and two, as far as there are cores."""
        return [count for count in _THREADS if count <= usable_threads()]


def configuration_at(search: Sequence[Mapping[str, Any]], threads: int) -> dict[str, Any] | None:
    """Of the configurations that were tried, the fastest with so many threads; ``None`` where none has so many.

    A library's own choice, ``None`` threads, takes all cores.
    """
    cores = usable_threads()
    offered = [entry for entry in search if (entry["config"].get("threads", 0) or cores) == threads]
    best = min(offered, key=lambda entry: float(entry["median_ms"]), default=None)
    return None if best is None else dict(best["config"])


def measure_cells(
    contenders: Sequence[tuple[Contender, Sequence[Mapping[str, Any]]]],
    inputs: Path,
    plan: CellPlan,
    pairs: Sequence[tuple[str, str]],
    *,
    folder: Path | None = None,
    advance: Callable[[int, int, str], None] = lambda done, total, note: None,
    message: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """JSON values of each cell: ``batch``, ``threads``, ``rates`` by contender, and the ``ratios`` of the pairs' times.

    A rate is the median of images per second over blocks with the lowest and the highest, and the configuration; or the
    ``problem`` of a contender that failed or answered otherwise than one image at a time.

    Args:
        contenders: each with the search of its configurations.
        inputs: file of ``save_inputs``.
        plan: how often and how long.
        pairs: names whose times are compared, the first's over the second's.
        folder: where finished processes are kept.
        advance: told of progress.
        message: told when parts of another benchmark are thrown away.
    """
    identity = [
        asdict(plan), [contender.identity() for contender, _ in contenders], [list(search) for _, search in contenders]
    ]  # fmt: skip
    journal = Journal(folder, plan_digest({"cells": identity}, inputs), message)
    steps = list(itertools.product(plan.threads, range(plan.processes)))
    parts: dict[int, list[dict[str, Any]]] = {threads: [] for threads in plan.threads}
    for done, (threads, process) in enumerate(steps):
        advance(done, len(steps), f"batches {', '.join(map(str, plan.batches))} with {threads} thread(s)")
        name = f"{threads}-threads-{process + 1}"
        part = journal.read(name) or journal.write(name, _time_process(contenders, inputs, plan, threads))
        parts[threads].append(part)
    return [
        _summarize(
            batch, threads, [part["batches"][str(batch)] for part in parts[threads]], parts[threads], pairs
        )
        for threads in plan.threads
        for batch in plan.batches
    ]


def _time_process(
    contenders: Sequence[tuple[Contender, Sequence[Mapping[str, Any]]]],
    inputs: Path,
    plan: CellPlan,
    threads: int,
) -> dict[str, Any]:
    """``configs`` by contender, and by batch size for each contender its ``rates`` by block or its problem."""
    able = [
        (c, config) for c, search in contenders if (config := configuration_at(search, threads)) is not None
    ]
    found: dict[str, dict[str, Any]] = {str(batch): {} for batch in plan.batches}
    with contextlib.ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        for contender, config in able:
            worker = stack.enter_context(open_worker(inputs, contender))
            try:
                worker.open(config)
                workers[contender.name] = worker
            except EdgekilnError as error:
                for own in found.values():
                    own[contender.name] = {"problem": str(error)}
        for batch in plan.batches:
            found[str(batch)] |= _time_batch(workers, batch, plan)
    return {"configs": {contender.name: config for contender, config in able}, "batches": found}


def _time_batch(
    workers: Mapping[str, WorkerProcess], batch: int, plan: CellPlan
) -> dict[str, dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in workers}
    problems: dict[str, str] = {}
    for index in range(plan.blocks):
        # Whoever goes after another finds its caches cold: the order alternates.
        for name in list(workers) if index % 2 == 0 else list(workers)[::-1]:
            if name in problems:
                continue
            try:
                rates[name].append(workers[name].rate(plan.seconds, batch=batch, callers=1)[0])
            except EdgekilnError as error:
                problems[name] = str(error)
    return {
        name: {"problem": problems[name]} if name in problems else {"rates": own}
        for name, own in rates.items()
    }


def _summarize(
    batch: int,
    threads: int,
    processes: Sequence[Mapping[str, Mapping[str, Any]]],
    parts: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    configs = parts[0]["configs"]
    rates: dict[str, dict[str, Any]] = {}
    measured: dict[str, Measurement] = {}
    for name in processes[0]:
        problem = next((own[name]["problem"] for own in processes if "problem" in own[name]), None)
        if problem is not None:
            rates[name] = {"config": configs[name], "problem": problem}
            continue
        every = np.concatenate([own[name]["rates"] for own in processes])
        told = {"images_per_second": np.median(every), "low": every.min(), "high": every.max()}
        rates[name] = {
            "config": configs[name],
            **{key: round(float(value), 2) for key, value in told.items()},
        }
        blocks = [
            Block(process, index, 0, np.array([1000 / rate]))
            for process, own in enumerate(processes)
            for index, rate in enumerate(own[name]["rates"])
        ]
        measured[name] = Measurement(name, "call", batch, configs[name], (), blocks)
    ratios: dict[str, dict[str, Any]] = {}
    for name, other in pairs:
        if name in measured and other in measured:
            ratios.setdefault(name, {})[other] = asdict(compare_speed(measured[name], measured[other]))
    return {"batch": batch, "threads": threads, "rates": rates, "ratios": ratios}
