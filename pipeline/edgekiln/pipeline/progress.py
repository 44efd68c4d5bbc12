"""Tells a person on stderr how far a stage is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
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
    """A line every ten seconds, with the time left; for logs and pipes.

    A thread says it, since a step of another library may take minutes without a word.
    """

    def __init__(self) -> None:
        self._name, self._started, self._note = "", 0.0, ""
        self._first: int | None = None
        self._done = self._total = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._name, self._started, self._note = name, time.monotonic(), ""
        self._first, self._done, self._total = None, 0, 0
        over = threading.Event()
        teller = threading.Thread(target=self._tell_until, args=(over,), name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()

    def advance(self, done: int, total: int, note: str = "") -> None:
        if self._first is None:
            self._first = done  # what an earlier attempt did says nothing about the speed of this one
        self._done, self._total, self._note = done, total, note

    def _tell_until(self, over: threading.Event) -> None:
        while not over.wait(_LINE_EVERY_SECONDS):
            self.message(self._line(time.monotonic() - self._started))

    def _line(self, seconds: float) -> str:
        worked = self._done - (self._first or 0)
        counted = f"{self._done} of {self._total}" if self._total else "working"
        left = f"about {seconds * (self._total - self._done) / worked:.0f} s left" if worked > 0 else ""
        timing = left or f"{seconds:.0f} s so far"
        return f"{self._name}: {counted}, {timing}{f' ({self._note})' if self._note else ''}"

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
