"""Reads the one-line files in which Linux shows sensors and counters. What they mean is not known here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["micro_reader", "read_text"]


def read_text(path: Path) -> str | None:
    """The text of a file without the spaces around it, or ``None`` where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def micro_reader(path: Path) -> Callable[[], float]:
    """Microjoules or microwatts of a file, in joules or watts."""
    return lambda: int(path.read_text()) / 1e6
