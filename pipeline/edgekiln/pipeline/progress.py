"""Tells a person on stderr how far a stage is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["Progress", "SilentProgress", "TerminalProgress", "make_progress"]

_LINE_EVERY_SECONDS = 10.0


class Progress(Protocol):
    """What stages report to."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Everything reported inside belongs to ``name``."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` units of the stage are finished."""

    def message(self, text: str) -> None:
        """One line that stays."""


class SilentProgress:
    """Says nothing; for ``-q``, for tests and for callers that are programs."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def advance(self, done: int, total: int, note: str = "") -> None:
        pass

    def message(self, text: str) -> None:
        pass


class LineProgress:
    """A line every ten seconds, with the time left; for logs and pipes."""

    def __init__(self) -> None:
        self._name, self._started, self._said = "", 0.0, 0.0
        self._first: int | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._name, self._started = name, time.monotonic()
        self._said = self._started
        self._first = None
        yield

    def advance(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done  # what an earlier attempt did says nothing about the speed of this one
        if now - self._said < _LINE_EVERY_SECONDS:
            return
        self._said = now
        worked = done - self._first
        left = (now - self._started) * (total - done) / worked if worked else None
        timing = "" if left is None else f", about {left:.0f} s left"
        self.message(f"{self._name}: {done} of {total}{timing}{f' ({note})' if note else ''}")

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class TerminalProgress:
    """A live bar (rich)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar: Any = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._bar:
            self._task = self._bar.add_task(name, total=None, note="")
            try:
                yield
            finally:
                self._bar.remove_task(self._task)
                self._task = None

    def advance(self, done: int, total: int, note: str = "") -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def make_progress(quiet: bool) -> Progress:
    """The kind that fits where stderr leads."""
    if quiet:
        return SilentProgress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()
