"""What a variant's calls took, by kind of machine.

The figure is one: the median of the bare library call (boundary *engine*) at batch 1, with the 95 % interval that a
benchmark gave it. An entry comes from a benchmark that is valid or noisy; an invalid one leaves none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgekiln.runtime.bundles.machine_kind import MachineKind

__all__ = ["TIMES", "MeasuredTime", "add_time", "parse_times"]

TIMES = "times"
"""Among a variant's figures: a list of ``MeasuredTime``, one for each kind of machine."""

Quality = Literal["valid", "noisy"]
"""Of the benchmark that a time comes from. An invalid one supports no figure and leaves none."""


@dataclass(frozen=True, slots=True)
class MeasuredTime:
    """What one call took on one kind of machine.

    Attributes:
        kind: of the machine; the time holds where all of it is the same.
        p50_ms: median in milliseconds of the library's call on one picture.
        low_ms, high_ms: its 95 % interval.
        threads: that it was measured with; ``None`` where the library chose, or on a GPU.
        validity: of the benchmark.
        when: date and time in UTC, as ISO 8601 has it.
    """

    kind: MachineKind
    p50_ms: float
    low_ms: float
    high_ms: float
    threads: int | None
    validity: Quality
    when: str

    def __str__(self) -> str:
        """``1.9 ms, 2 threads``."""
        if self.threads is None:
            return f"{self.p50_ms:.3g} ms"
        return f"{self.p50_ms:.3g} ms, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values; they name the boundary and the batch size too."""
        return {**asdict(self), "kind": self.kind.to_dict(), "boundary": "engine", "batch": 1}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MeasuredTime:
        """What ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        numbers = [values[name] for name in ("low_ms", "p50_ms", "high_ms")]
        if not all(type(ms) in {int, float} and math.isfinite(ms) for ms in numbers) or not (
            0 < numbers[0] <= numbers[1] <= numbers[2]
        ):
            raise ValueError(f"a time has no median within its interval: {numbers}")
        threads, validity = values["threads"], values["validity"]
        if threads is not None and not (type(threads) is int and threads > 0):
            raise ValueError(f"a time was measured with {threads!r} threads")
        if not _is_known(values):
            raise ValueError(
                f"a time is {validity!r}, of {values['boundary']!r} at batch {values['batch']!r}"
            )
        low, middle, high = numbers
        kind = MachineKind.from_dict(values["kind"])
        return cls(kind, middle, low, high, threads, validity, str(values["when"]))


def _is_known(values: Mapping[str, Any]) -> bool:
    measured = (values["boundary"], values["batch"]) == ("engine", 1)
    return measured and values["validity"] in get_args(Quality)


def parse_times(entries: Sequence[Mapping[str, Any]]) -> tuple[MeasuredTime, ...]:
    """Those of a variant's figures that may decide; what is invalid, or of another boundary or batch size, may not.

    Raises:
        KeyError, TypeError, ValueError: they are no entries.
    """
    return tuple(MeasuredTime.from_dict(entry) for entry in entries if _is_known(entry))


def add_time(entries: Sequence[Mapping[str, Any]], time: MeasuredTime) -> list[dict[str, Any]]:
    """``entries`` of a variant's figures with one more, which takes the place of one of the same kind of machine.

    Only a noisy one does not take the place of a valid one.
    """
    others: list[dict[str, Any]] = []
    same: list[dict[str, Any]] = []
    for entry in entries:
        known = _is_known(entry) and MachineKind.from_dict(entry["kind"]) == time.kind
        (same if known else others).append(dict(entry))
    keep = time.validity == "noisy" and any(entry["validity"] == "valid" for entry in same)
    return [*others, *(same if keep else [time.to_dict()])]
