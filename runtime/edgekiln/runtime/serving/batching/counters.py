"""What a batcher counts: how requests ended, how large batches were, how long answers took.

Knows no request and no lock: whoever counts holds the lock that guards a tally.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["BatcherCounters", "Tally"]

_WINDOW = 2048  # answers: enough for a p99 of 20 samples, and 16 KiB
_ENDS = ("answered", "failed", "cancelled", "expired", "refused")


@dataclass(frozen=True, slots=True)
class BatcherCounters:
    """What a batcher has done since it was made.

    Attributes:
        waiting: requests that are being prepared or wait for the engine, now.
        answered, failed, cancelled, expired, refused: requests that ended so. Refused ones were never taken.
        batches: how often the engine ran a batch of each size.
        latency_ms: ``p50``, ``p90`` and ``p99`` from the call to the answer, over the last 2,048 answers; empty
            before the first.
    """

    waiting: int
    answered: int
    failed: int
    cancelled: int
    expired: int
    refused: int
    batches: Mapping[int, int]
    latency_ms: Mapping[str, float]


@dataclass(eq=False, slots=True)
class Tally:
    """The counts as they are made.

    Attributes:
        ended: how many requests ended in each way; the ways are fields of ``BatcherCounters``.
        batches: how often the engine ran a batch of each size.
        latencies_ms: from the call to the answer, of the last answers.
    """

    ended: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def copy(self) -> Tally:
        """As it is now, to be summarized without the lock."""
        return Tally(self.ended.copy(), self.batches.copy(), self.latencies_ms.copy())

    def summarize(self, waiting: int) -> BatcherCounters:
        """The counters, beside ``waiting`` requests."""
        latencies = list(self.latencies_ms)
        percentiles = np.percentile(latencies, (50, 90, 99)).tolist() if latencies else []
        return BatcherCounters(
            waiting=waiting,
            batches=dict(sorted(self.batches.items())),
            latency_ms=dict(zip(("p50", "p90", "p99"), percentiles, strict=False)),
            **{end: self.ended.get(end, 0) for end in _ENDS},
        )
