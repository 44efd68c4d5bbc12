"""One round: the blocks of all contenders, interleaved, those of the baseline twice; then the other boundaries.

Contenders take turns in blocks of a twentieth of a second: on shared machines a core's speed wanders by 30 % and
stays for about half a second where it went, so longer blocks would time the neighbours.

A round is JSON values, as the journal keeps it. What is made of several rounds is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.measurement import Block, Boundary
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.benchmarks.timing.worker_process import WorkerProcess
from edgekiln.runtime.errors import EdgekilnError

__all__ = [
    "SIDES",
    "OptionalFailed",
    "blame_optional",
    "read_block",
    "select_contenders",
    "time_in_turns",
    "time_sides",
]

SIDES: tuple[Boundary, ...] = ("engine", "image")
"""Boundaries besides ``call``: the bare library call, and encoded picture to label."""


def time_in_turns(
    workers: Sequence[WorkerProcess],
    plan: BenchmarkPlan,
    tell: Callable[[int], None],
    look: Callable[[], list[str]] = list,
) -> list[list[dict[str, Any]]]:
    """Blocks of each worker as JSON values; the first one takes a second turn each time, to be compared with itself.

    ``look`` tells after the blocks of an index what throttled the machine meanwhile: then they are ``throttled``, and
    do not count for whether a round may stop.
    """
    turns = [*((i, 0) for i in range(len(workers))), (0, 1)]
    raw: list[list[dict[str, Any]]] = [[] for _ in workers]
    blocks: list[list[Block]] = [[] for _ in workers]
    for index in range(plan.blocks):
        tell(index)
        # Alternate who goes first: the one after another contender finds its caches cold.
        made: list[tuple[int, dict[str, Any]]] = []
        for number, turn in turns if index % 2 == 0 else turns[::-1]:
            times = workers[number].time_ns(plan.block_seconds)
            made.append((number, {"index": index, "turn": turn, "times_ns": times}))
        throttled = look()
        for number, block in made:
            raw[number].append({**block, "throttled": throttled} if throttled else block)
            if not throttled:
                blocks[number].append(read_block(0, block))
        if not throttled and plan.is_enough(blocks):
            break
    return raw


def time_sides(workers: Sequence[WorkerProcess], plan: BenchmarkPlan) -> dict[str, Any]:
    """``sides``, the other boundaries, and ``repeated``, one image again and again; interleaved likewise."""
    sides: dict[str, list[list[dict[str, Any]]]] = {boundary: [[] for _ in workers] for boundary in SIDES}
    repeated: list[list[float]] = [[] for _ in workers]
    for index in range(plan.side_blocks):
        for number, worker in enumerate(workers):
            for boundary in SIDES:
                times = worker.time_ns(plan.block_seconds, boundary=boundary)
                if times:
                    sides[boundary][number].append({"index": index, "turn": 0, "times_ns": times})
            # Beside each other, since the machine's speed wanders.
            varying = worker.time_ns(plan.block_seconds)
            same = worker.time_ns(plan.block_seconds, repeat=True)
            repeated[number].append(float(np.median(same) / np.median(varying)))
    return {"sides": sides, "repeated": repeated}


def read_block(process: int, raw: Mapping[str, Any]) -> Block:
    """A block of JSON values, nanoseconds, as a ``Block`` of round ``process``, milliseconds."""
    return Block(process, raw["index"], raw["turn"], np.asarray(raw["times_ns"], np.float64) / 1e6)


def select_contenders(part: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A round of these contenders alone."""
    places = [part["names"].index(name) for name in names]
    return {
        **part,
        **{key: [part[key][i] for i in places] for key in ("opened", "blocks", "repeated")},
        "sides": {boundary: [raw[i] for i in places] for boundary, raw in part["sides"].items()},
    }


class OptionalFailed(Exception):
    """An optional contender died or answered wrongly in a round."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


@contextlib.contextmanager
def blame_optional(contenders: Sequence[Contender], workers: Sequence[WorkerProcess]) -> Iterator[None]:
    """Turn the failure of an optional contender into ``OptionalFailed``; ``workers`` are its process and others'."""
    try:
        yield
    except EdgekilnError as error:
        for place, (contender, worker) in enumerate(zip(contenders, workers, strict=False)):
            if worker.failed and contender.optional:
                raise OptionalFailed(place, str(error)) from error
        raise
