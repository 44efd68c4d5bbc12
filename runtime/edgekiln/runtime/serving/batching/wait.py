"""How long a batch that is not full waits for more requests: a limit, less what its answers lose to late sleeps.

It reads no clock and does not sleep: the batcher's thread does both, and tells how late a sleep ended.
"""

from __future__ import annotations

import math

__all__ = ["BatchWait"]

# Sleeps end late: by Linux's timer slack (50 us, PR_SET_TIMERSLACK in prctl(2)) and by what it takes to wake a core.
# How late is learned from the sleeps themselves, since max_wait_us is meant as an upper bound.
_FIRST_LATENESS_S, _MOST_LATENESS_S, _LEARNING_RATE = 50e-6, 300e-6, 0.1
# An answer ends with waking its caller, which cannot be seen from here; measured on the cores that the figures are of.
_HANDOVER_S = 40e-6


class BatchWait:
    """The waiting of one batcher. Times are seconds of the monotonic clock.

    Attributes:
        lateness_s: how late sleeps end here, as learned so far.
        wakes_at: when the engine's thread stops waiting for more.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self.lateness_s = _FIRST_LATENESS_S
        self.wakes_at = math.inf

    def end_for(self, queued: float) -> float:
        """When to stop waiting for others, for a first request that waits since ``queued``."""
        early = min(self.lateness_s + _HANDOVER_S, self._max_wait_s / 2)
        return queued + self._max_wait_s - early

    def learn(self, late_s: float) -> None:
        """Take into account that a sleep ended ``late_s`` after its time."""
        self.lateness_s += _LEARNING_RATE * (min(late_s, _MOST_LATENESS_S) - self.lateness_s)
