"""How often one address may ask: a bucket of tokens for each, refilled at a steady rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from edgekiln.pipeline.shipping.server.refusals import RequestError

__all__ = ["Rates"]

_BURST_SECONDS = 2.0
_MAX_ADDRESSES = 4096


class Rates:
    """Counts requests by address. What is kept is bounded: the address that was quiet for longest is forgotten."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``per_second`` of one address in the long run; 0 lets any number pass."""
        self._rate, self._clock = per_second, clock
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._left: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # requests that may come, as of when

    def check(self, address: str) -> None:
        """Count one request; raises RequestError, 429, where there were too many."""
        if not self._rate:
            return
        now = self._clock()
        left, then = self._left.pop(address, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        self._left[address] = (max(0.0, left - 1), now) if left >= 1 else (left, now)
        if len(self._left) > _MAX_ADDRESSES:
            self._left.popitem(last=False)
        if left < 1:
            raise RequestError(
                f"Over {self._rate:g} requests a second came from {address}.",
                status=429,
                reason="rate",
                hint="Ask more slowly, send several pictures in one request, or start the server with --max-rate.",
            )
