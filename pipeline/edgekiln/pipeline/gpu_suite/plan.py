"""What is run, in the order of its value, within a budget of seconds. Knows no part by its name, and runs none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekiln.pipeline.gpu_suite.isolation import Outcome

__all__ = ["DEFAULT_BUDGET_S", "Part", "explain_no_time", "make_plan", "render_plan"]

DEFAULT_BUDGET_S = 800.0
"""Fits into fifteen minutes, with what it takes to bring files there and back."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is run in a process of its own.

    Attributes:
        expected_s: seconds that it is expected to take: an estimate, made without a GPU.
        limit_s: seconds after which it is ended.
        unwanted: why it is not run, known beforehand; ``None`` where it is.
        run: runs it within so many seconds.
    """

    name: str
    expected_s: float
    limit_s: float
    unwanted: str | None
    run: Callable[[float], Outcome]


def explain_no_time(part: Part, left_s: float) -> str | None:
    """Why a part is not begun with so much of the budget left; ``None`` where it is."""
    if part.expected_s <= left_s:
        return None
    return (
        f"it is expected to take {part.expected_s:.0f} s, and {max(0.0, left_s):.0f} s of the budget are left"
    )


def make_plan(parts: Sequence[Part], budget_s: float) -> list[dict[str, Any]]:
    """For each part ``part``, ``runs``, ``expected_s``, ``begins_s`` and ``reason``, in the order of ``parts``.

    A part that does not fit is left out, and a shorter one behind it may still fit. While it runs, the same is asked
    again with what is really left: parts that were faster than expected make room.
    """
    rows, begins = [], 0.0
    for part in parts:
        reason = part.unwanted or explain_no_time(part, budget_s - begins)
        rows.append(
            {
                "part": part.name,
                "runs": reason is None,
                "expected_s": round(part.expected_s, 1),
                "begins_s": round(begins, 1) if reason is None else None,
                "reason": reason,
            }
        )
        begins += part.expected_s if reason is None else 0.0
    return rows


def render_plan(rows: Sequence[Mapping[str, Any]], budget_s: float) -> Iterator[str]:
    """Lines for a person."""
    total = sum(row["expected_s"] for row in rows if row["runs"])
    yield f"plan: about {total:.0f} s of a budget of {budget_s:.0f} s; what turns out faster makes room for more"
    for row in rows:
        if row["runs"]:
            yield f"  {row['part']:34} at {row['begins_s']:5.0f} s, about {row['expected_s']:4.0f} s"
        else:
            yield f"  {row['part']:34} skipped: {row['reason']}"
