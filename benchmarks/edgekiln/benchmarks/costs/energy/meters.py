"""Meters: what gives the joules since it was opened, from counters or from power readings.

Power readings become energy by the trapezoid sum:

    E = sum over readings of (t[i] - t[i-1]) * (P[i] + P[i-1]) / 2

Where the readings come from is the business of the modules of the sources; what they are used for is not known here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

__all__ = ["CounterMeter", "EnergyMeter", "OpenedMeter", "PowerMeter"]

_SAMPLE_SECONDS = 0.05


class EnergyMeter(Protocol):
    """A source of energy readings."""

    @property
    def samples(self) -> int:
        """Readings taken so far."""

    def read_joules(self) -> float:
        """Energy since the meter was opened, in joules."""

    def describe(self) -> str:
        """What is measured, and by what."""

    def close(self) -> None:
        """Stop reading. Closing twice does nothing."""


class OpenedMeter(NamedTuple):
    """A meter, or ``None`` and why there is none."""

    meter: EnergyMeter | None
    reason: str


class CounterMeter:
    """Counters that only grow, read when asked.

    Args:
        counters: each gives joules, and the value at which it starts again from 0 or ``None``. A counter has to be
            read at least once in that span: RAPL's is some 65 to 262 kJ, minutes of a busy server.
    """

    def __init__(self, counters: Iterable[tuple[Callable[[], float], float | None]], source: str) -> None:
        self._counters, self._source = list(counters), source
        self._last = [read() for read, _ in self._counters]
        self._total, self._samples = 0.0, 0

    @property
    def samples(self) -> int:
        """See EnergyMeter."""
        return self._samples

    def read_joules(self) -> float:
        """See EnergyMeter."""
        for i, (read, span) in enumerate(self._counters):
            now = read()
            passed = now - self._last[i]
            self._total += passed + span if passed < 0 and span is not None else passed
            self._last[i] = now
        self._samples += 1
        return self._total

    def describe(self) -> str:
        """See EnergyMeter."""
        return self._source

    def close(self) -> None:
        """See EnergyMeter."""


class PowerMeter:
    """Power readings, summed by the trapezoid rule; a thread takes them where ``interval`` is given.

    Where readings are pushed by ``add`` (tegrastats), ``read_watts`` is ``None``, and energy is known up to the last.
    """

    def __init__(
        self,
        read_watts: Callable[[], float] | None,
        source: str,
        *,
        interval: float | None = _SAMPLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_watts, self._source, self._clock = read_watts, source, clock
        self._total, self._samples = 0.0, 0
        self._last: tuple[float, float] | None = None
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._on_close: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        if read_watts is not None:
            self._sample()
            if interval is not None:
                self._thread = threading.Thread(target=self._keep_sampling, args=(interval,), daemon=True)
                self._thread.start()

    @property
    def samples(self) -> int:
        """See EnergyMeter."""
        return self._samples

    def add(self, watts: float) -> None:
        """Take a reading of now."""
        with self._lock:
            now = self._clock()
            if self._last is not None:
                self._total += (now - self._last[0]) * (watts + self._last[1]) / 2
            self._last = (now, watts)
            self._samples += 1

    def _sample(self) -> None:
        if self._read_watts is not None:
            self.add(self._read_watts())

    def _keep_sampling(self, interval: float) -> None:
        while not self._stopped.wait(interval):
            with contextlib.suppress(OSError):  # a sensor that is busy once is asked again
                self._sample()

    def read_joules(self) -> float:
        """See EnergyMeter."""
        self._sample()
        return self._total

    def describe(self) -> str:
        """See EnergyMeter."""
        return self._source

    def close_with(self, action: Callable[[], None]) -> None:
        """Have ``action`` done at ``close``."""
        self._on_close = action

    def close(self) -> None:
        """See EnergyMeter."""
        self._stopped.set()
        action, self._on_close = self._on_close, lambda: None
        action()
        if self._thread is not None:
            self._thread.join()
