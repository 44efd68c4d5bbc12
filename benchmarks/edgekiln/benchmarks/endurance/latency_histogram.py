"""Percentiles of latencies in constant memory."""

from __future__ import annotations

import numpy as np

__all__ = ["LatencyHistogram"]


class LatencyHistogram:
    """Latencies in bins that are a hundredth wider each, from 1 microsecond to about 8 minutes. Constant memory."""

    _RATIO, _BINS = 1.01, 2010

    def __init__(self) -> None:
        self._counts = np.zeros(self._BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Count one latency; what is shorter or longer than the bins goes into the first or the last."""
        place = int(np.log(max(seconds, 1e-6) * 1e6) / np.log(self._RATIO))
        self._counts[min(place, self._BINS - 1)] += 1

    def percentile_ms(self, percent: float) -> float:
        """Upper edge of the bin that holds it; 0 where nothing was added."""
        total = int(self._counts.sum())
        if total == 0:
            return 0.0
        place = int(np.searchsorted(self._counts.cumsum(), total * percent / 100))
        return float(self._RATIO ** (place + 1) / 1000)
