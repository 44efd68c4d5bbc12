"""What a soak found, minute by minute, and what speaks against the runtime. How it was driven is not known here."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MAX_P99_DRIFT", "MAX_RSS_GROWTH_MB", "Minute", "SoakResult"]

MAX_RSS_GROWTH_MB = 10.0
MAX_P99_DRIFT = 0.2


@dataclass(frozen=True, slots=True)
class Minute:
    """What one minute was like. MB are 1e6 bytes.

    Attributes:
        answered: good pictures that got their answer; ``refused``: bad ones that got their error.
        p50_ms, p99_ms: of ``Classifier.predict`` on good pictures, decoding included; to a hundredth of themselves,
            and 0 where none was answered.
        rss_mb: of this process, the least of many looks in the second half of the minute, as work comes and goes.
        descriptors: of this process, at the end of the minute.
    """

    number: int
    answered: int
    refused: int
    p50_ms: float
    p99_ms: float
    rss_mb: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class SoakResult:
    """All minutes, the first of which was the warm-up, and the first faults of all that were found."""

    variant: str
    minutes: tuple[Minute, ...]
    faults: tuple[str, ...] = ()
    fault_count: int = 0

    @property
    def rss_growth_mb(self) -> float:
        """From the end of the warm-up to the end."""
        return self.minutes[-1].rss_mb - self.minutes[0].rss_mb

    @property
    def descriptor_growth(self) -> int:
        """From the end of the warm-up to the end."""
        return self.minutes[-1].descriptors - self.minutes[0].descriptors

    @property
    def p99_drift(self) -> float:
        """Median p99 of the last third of the minutes after the warm-up, over that of the first third, less 1.

        0 where a minute has none: that is a problem of its own.
        """
        p99 = [minute.p99_ms for minute in self.minutes[1:]]
        if 0 in p99:
            return 0.0
        third = max(1, len(p99) // 3)
        return statistics.median(p99[-third:]) / statistics.median(p99[:third]) - 1

    @property
    def problems(self) -> list[str]:
        """What speaks against the runtime, each in a sentence; none where all is well."""
        found = []
        if self.fault_count:
            found.append(f"{self.fault_count} calls went wrong, the first: {self.faults[0]}")
        if silent := [str(minute.number) for minute in self.minutes if minute.p99_ms == 0]:
            found.append(f"no good picture was answered by predict in minute {', '.join(silent)}")
        if self.rss_growth_mb > MAX_RSS_GROWTH_MB:
            found.append(f"memory grew by {self.rss_growth_mb:.1f} MB after the warm-up")
        if self.descriptor_growth > 0:
            found.append(f"{self.descriptor_growth} more file descriptors are open than after the warm-up")
        if self.p99_drift > MAX_P99_DRIFT:
            found.append(f"p99 drifted by {self.p99_drift:+.0%}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values, units in the keys."""
        return {
            "variant": self.variant,
            "minutes": [asdict(minute) for minute in self.minutes],
            "rss_growth_mb": self.rss_growth_mb,
            "descriptor_growth": self.descriptor_growth,
            "p99_drift": self.p99_drift,
            "faults": list(self.faults),
            "fault_count": self.fault_count,
            "problems": self.problems,
        }
