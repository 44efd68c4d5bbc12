"""Reads the summary that LoadGen writes of its run. What it is compared with is not known here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgekiln.runtime.errors import EngineError

__all__ = ["Summary", "parse_summary"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What ``mlperf_log_summary.txt`` says; milliseconds.

    Attributes:
        result: ``VALID`` or ``INVALID``.
        reasons: what was not satisfied and what LoadGen recommends.
        percentiles_ms: 50, 90 and 99; offline they count from the start of the one query.
        early_stopping_p90_ms: the figure that MLPerf publishes for SingleStream: p90 with its own error on top.
        samples_per_second: with LoadGen's own overhead.
    """

    result: str
    reasons: tuple[str, ...]
    percentiles_ms: Mapping[str, float]
    early_stopping_p90_ms: float | None
    samples_per_second: float

    @property
    def valid(self) -> bool:
        """Whether LoadGen accepts its own run."""
        return self.result == "VALID"


def parse_summary(text: str) -> Summary:
    """Read LoadGen's summary; raises EngineError where it lacks what every release has written."""
    result = _find(r"Result is : (\w+)", text)
    rate = _find(r"(?:Samples per second|QPS w/ loadgen overhead)\s*: ([\d.e+]+)", text)
    percentiles = {
        q: _find(rf"^{q}\.00 percentile latency \(ns\)\s*: (\d+)", text) for q in ("50", "90", "99")
    }
    if result is None or rate is None or None in percentiles.values():
        raise EngineError(f"LoadGen's summary cannot be read: {text[:200]!r}.")
    early = _find(r"Early stopping 90\.0th percentile estimate: (\d+)", text)
    return Summary(
        result=result,
        reasons=tuple(_parse_reasons(text)),
        percentiles_ms={f"p{q}_ms": float(value or 0) / 1e6 for q, value in percentiles.items()},
        early_stopping_p90_ms=None if early is None else float(early) / 1e6,
        samples_per_second=float(rate),
    )


def _find(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def _parse_reasons(text: str) -> Iterator[str]:
    for name in re.findall(r"^\s+(.+?)\s*: NO$", text, re.MULTILINE):
        yield f"{name}: no"
    advice = re.search(r"^Recommendations:\n((?: .*\n)+)", text, re.MULTILINE)
    for item in re.split(r"^ \* ", advice[1], flags=re.MULTILINE)[1:] if advice else ():
        yield " ".join(item.split())
