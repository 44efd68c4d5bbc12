"""Tells how far a stage is: a bar on a terminal and in a notebook, a line on stderr every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import html
import importlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from edgekiln.runtime.errors import as_printable

__all__ = ["Pace", "Progress", "SilentProgress", "TerminalProgress", "format_seconds", "make_progress"]

_LINE_EVERY_SECONDS = 10.0
_BAR_EVERY_SECONDS = 1.0  # in a notebook, where one place is written again
_WINDOW_SECONDS = 60.0  # of work that tells how fast it goes


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
        self._pace = Pace()
        self._done = self._total = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._name, self._started, self._note = name, time.monotonic(), ""
        self._pace, self._done, self._total = Pace(), 0, 0
        over = threading.Event()
        teller = threading.Thread(target=self._tell_until, args=(over,), name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()

    def advance(self, done: int, total: int, note: str = "") -> None:
        self._pace.add(done, time.monotonic())
        self._done, self._total, self._note = done, total, note

    def _tell_until(self, over: threading.Event) -> None:
        while not over.wait(_LINE_EVERY_SECONDS):
            self.message(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        counted = f"{self._done} of {self._total}" if self._total else "working"
        seconds = self._pace.seconds_for(self._total - self._done, now)
        if seconds is None:
            timing = f"{format_seconds(now - self._started)} so far"
        else:
            timing = f"about {format_seconds(seconds)} left"
        return f"{self._name}: {counted}, {timing}{f' ({self._note})' if self._note else ''}"

    def message(self, text: str) -> None:
        print(as_printable(text), file=sys.stderr, flush=True)


class NotebookProgress(LineProgress):
    """One bar below the cell, and the lines that stay in a box below it. Both are written again in place."""

    def __init__(self) -> None:
        super().__init__()
        self._place: Any = None
        self._line_of_bar, self._lines = "", list[str]()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            self._show(f"{name}: begun")
            yield
        self._done = self._total = 1  # whole: a bar without an end would go on moving in a stored notebook
        self._show(f"{name}: {format_seconds(time.monotonic() - self._started)}")

    def message(self, text: str) -> None:
        self._lines.append(text)
        self._show(self._line_of_bar)

    def _tell_until(self, over: threading.Event) -> None:
        while not over.wait(_BAR_EVERY_SECONDS):
            self._show(self._line(time.monotonic()))

    def _show(self, line: str) -> None:
        self._line_of_bar = line
        share = f' value="{self._done}" max="{self._total}"' if self._total else ""
        box = html.escape("\n".join(self._lines))
        picture = {
            "text/plain": "\n".join([*self._lines, line]),
            "text/html": f"<progress{share}></progress> {html.escape(line)}"
            f'<pre style="max-height:12em;overflow:auto">{box}</pre>',
        }
        if self._place is None:
            display = importlib.import_module("IPython.display").display  # there, since this is its kernel
            self._place = display(picture, raw=True, display_id=True)
        else:
            self._place.update(picture, raw=True)


def _is_notebook() -> bool:
    """Whether this process is a notebook's kernel: IPython has a shell, and the shell has a kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class Pace:
    """How fast units are done, by those of the last minute, or the last two where they take longer.

    What an earlier attempt did says nothing about this one, and neither does what came before the counted work, as the
    linear probe does before the steps; so the time since the stage began would not do.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int, now: float) -> None:
        """``done`` units were finished at ``now``, in seconds."""
        if self._seen and self._seen[-1][1] >= done:
            if len(self._seen) == 1:
                self._seen[0] = now, done  # still before the first unit
            return
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()

    def seconds_for(self, units: int, now: float) -> float | None:
        """How long so many more take; ``None`` before the first one was seen being done."""
        if len(self._seen) < 2:
            return None
        began, first = self._seen[0]
        return (now - began) * units / (self._seen[-1][1] - first)


def format_seconds(seconds: float) -> str:
    """``95 s``, ``12 min``, ``3 h 05 min``: no finer than anybody can know it."""
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


class TerminalProgress:
    """A live bar (rich)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar: Any = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
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
        self._console.print(as_printable(text), highlight=False, markup=False, soft_wrap=True)


def make_progress(quiet: bool) -> Progress:
    """The kind that fits where stderr leads."""
    if quiet:
        return SilentProgress()
    if _is_notebook():
        return NotebookProgress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()
