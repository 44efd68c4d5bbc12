"""One line of ``edgekiln doctor``: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Row", "State", "fail", "ok", "warn"]

State = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer of one check.

    Attributes:
        name: what was looked at; stable, for who reads the JSON.
        state: ``OK``; ``WARN`` where something works worse than it could; ``FAIL`` where something does not work.
        found: in a sentence or less.
        fix: what to do; never ``None`` for ``FAIL``.
    """

    name: str
    state: State
    found: str
    fix: str | None = None


def ok(name: str, found: str) -> Row:
    """A row with nothing to mend."""
    return Row(name, "OK", found)


def warn(name: str, found: str, fix: str) -> Row:
    """A row about something that works worse than it could."""
    return Row(name, "WARN", found, fix)


def fail(name: str, found: str, fix: str) -> Row:
    """A row about something that does not work."""
    return Row(name, "FAIL", found, fix)
