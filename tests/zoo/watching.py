"""A worker in a process of its own, watched: how far it came, its memory, and what ended it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["Limits", "Stopped", "Watched", "watch_worker"]

_POLL_SECONDS = 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limits:
    """For one worker: seconds of the clock, and MiB of memory that it and its children hold."""

    seconds: float = 900.0
    mib: int = 8192


class Stopped(Exception):
    """Nobody wants the result any more."""


@dataclass
class Watched:
    """What a worker told, and how it ended.

    Attributes:
        steps: the last event of each step.
        ended_in: the step that ended the process; ``None`` where it came to its own end.
        how, reason: ``crash`` or ``limit``, and what happened.
        peak_mib: most memory that it and its children held.
    """

    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended_in: str | None = None
    how: str = ""
    reason: str = ""
    peak_mib: int = 0


def watch_worker(
    arguments: Sequence[str],
    without: Sequence[str],
    limits: Limits,
    stop: threading.Event,
    command: Sequence[str] = (sys.executable, "-m", "zoo.worker"),
) -> Watched:
    """Run one worker to its end, or to a limit's.

    Args:
        arguments: of ``zoo.worker``.
        without: steps that it leaves out.
        limits: beyond which it is killed.
        stop: once it is set, the worker is killed.
        command: what takes the arguments; another one only in tests.

    Raises:
        Stopped: as ``stop`` wanted it.
    """
    whole = [*command, *arguments, *(f"--without={step}" for step in without)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            whole, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )
        try:
            watched = _follow(process, limits, stop)
        except Stopped:
            _kill(process)
            raise
        if watched.how:
            _kill(process)
        code = process.wait()
        running = [name for name, event in watched.steps.items() if event["state"] == "begun"]
        if watched.how:
            watched.ended_in = running[-1] if running else "start"
        elif code:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1][:300]
            told = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            watched.ended_in, watched.how = (running or ["start"])[-1], "crash"
            watched.reason = f"the process ended with {told}" + (f": {last}" if last else "")
    return watched


def _follow(process: subprocess.Popen[str], limits: Limits, stop: threading.Event) -> Watched:
    """Read its events until it has none, or goes beyond a limit."""
    watched, started = Watched(), time.monotonic()
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while True:
        if stop.is_set():
            raise Stopped
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            line = ""
        if line is None:
            return watched
        if line:
            event = json.loads(line)
            watched.steps[event.pop("step")] = event
        held = sum(_memory_mib(pid) for pid in _family(process.pid))
        watched.peak_mib = max(watched.peak_mib, held)
        seconds = time.monotonic() - started
        if seconds > limits.seconds or held > limits.mib:
            beyond = f"{limits.seconds:g} s" if seconds > limits.seconds else f"{limits.mib} MiB"
            watched.how, watched.reason = "limit", f"it went beyond {beyond}"
            return watched


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill it with its children."""
    for pid in _family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _family(pid: int) -> list[int]:
    """A process and all that it started."""
    family = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in tasks.read_text().split():
                family += _family(int(child))
    return family


def _memory_mib(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE // 2**20
    return 0
