"""Finds the configuration at which a contender is timed: threads, for an engine on a CPU.

Turns with other contenders are not known here: a search has the machine for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.worker_process import open_worker
from edgekiln.runtime.limits import count_affinity

__all__ = ["best_configuration", "search_configurations"]

_SEARCH_SECONDS = 0.4
_LEAST_GAIN = 0.8


def search_configurations(contender: Contender, inputs: Path) -> list[dict[str, Any]]:
    """Median milliseconds of every configuration, one after the other in one process."""
    found: list[dict[str, Any]] = []
    with open_worker(inputs, contender) as worker:
        for config in contender.configs:
            worker.open(config)
            if not found:
                worker.check_all()
            median = float(np.median(worker.time_ns(_SEARCH_SECONDS))) / 1e6
            found.append({"config": dict(config), "median_ms": round(median, 4)})
    return found


def best_configuration(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest configuration of those with the fewest threads that come within a fifth of the very fastest.

    A search has the machine for itself. In turns with others, threads that gained little there lose more than that
    where one of them must wait: measured, PyTorch on two cores went from 5.5 ms to 7.5, block to block by half.
    """
    fastest = min(float(entry["median_ms"]) for entry in entries)
    near = [entry for entry in entries if float(entry["median_ms"]) <= fastest / _LEAST_GAIN]
    cores = count_affinity()

    def threads(entry: Mapping[str, Any]) -> int:
        count = entry["config"].get("threads", 0)  # a GPU's configurations have none
        return cores if count is None else int(count)  # None leaves it to the library, which takes all

    return dict(min(near, key=lambda entry: (threads(entry), float(entry["median_ms"])))["config"])
