"""The system under test: a session behind the calls that LoadGen makes, each call of it timed on our side too."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.loadgen.answer import write_error
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

__all__ = ["SystemUnderTest"]


class SystemUnderTest:
    """LoadGen's queries in, answers out, each call of ``Session.run`` timed here too."""

    def __init__(self, loadgen: Any, session: Session, frames: Frames, batch: int, folder: Path) -> None:
        self._loadgen, self._session, self._all, self._folder = loadgen, session, frames, folder
        self._loaded: dict[int, Frames] = {}
        self._batch = batch
        self.times_ns, self.samples = array("q"), 0

    def load(self, indices: Sequence[int]) -> None:
        """Into memory, before LoadGen's clock starts; separate arrays, as slicing is not what is timed."""
        self._loaded = {i: np.ascontiguousarray(self._all[i : i + 1]) for i in indices}

    def unload(self, indices: Sequence[int]) -> None:
        """Called after the last answer."""
        self._loaded = {}

    def issue(self, queries: Sequence[Any]) -> None:
        """Answer all samples of a query, in batches."""
        try:
            for start in range(0, len(queries), self._batch):
                self._answer(queries[start : start + self._batch])
        except Exception as error:
            # An exception cannot pass through LoadGen's threads, and it would wait for the answers forever.
            write_error(self._folder, error)
            os._exit(1)

    def flush(self) -> None:
        """Nothing is held back."""

    def describe_times(self) -> dict[str, Any]:
        """Counts, percentiles and rate of the calls so far; milliseconds."""
        times_ms = np.frombuffer(self.times_ns, np.int64) / 1e6
        # LoadGen takes a value that occurred, as does this; between neighbours of few calls lies more than 5 %.
        p50, p90, p99 = np.percentile(times_ms, [50, 90, 99], method="higher").tolist()
        return {
            "calls": len(times_ms),
            "samples": self.samples,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "samples_per_second": 1000 * self.samples / float(times_ms.sum()),
        }

    def _answer(self, queries: Sequence[Any]) -> None:
        parts = [self._loaded[query.index] for query in queries]
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        start = perf_counter_ns()
        logits = self._session.run(frames)
        self.times_ns.append(perf_counter_ns() - start)
        self.samples += len(queries)
        # LoadGen copies the bytes of an answer, or drops them, before this returns: ``logits`` lives long enough.
        response = self._loadgen.QuerySampleResponse
        address, size = logits.ctypes.data, logits.strides[0]
        self._loadgen.QuerySamplesComplete(
            [response(query.id, address + i * size, size) for i, query in enumerate(queries)]
        )
