"""Asks a question in a child process: what crashes, hangs or prints there is an answer here.

Engine libraries end the process when a driver does not fit, and some write into the home folder when they are
imported. So the child has a temporary home, and telemetry that can be switched off is.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekiln.runtime.processes import child_environment, module_command
from edgekiln.runtime.telemetry import OPT_OUTS

__all__ = ["Answer", "ask_child"]

SECONDS = 60.0
_LOG_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        values: what the probe found; empty where it did not come that far.
        problem: why there is no answer, in a clause; ``None`` where there is one.
        log: the end of what the libraries printed.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    log: str = ""


def ask_child(task: str, *arguments: str, seconds: float = SECONDS) -> Answer:
    """Run one of the tasks of ``probes.py``; nothing that goes wrong in it raises here."""
    command = module_command("edgekiln.pipeline.doctor.probes", task, *arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekiln-doctor-") as home:
            done = subprocess.run(
                command,
                env=_environment(home),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return Answer(problem=f"it did not answer within {seconds:.0f} s")
    except OSError as error:  # also where there is no temporary folder, which has a row of its own
        return Answer(problem=f"no process could be started: {error.strerror}")
    return _read_answer(done)


def _environment(home: str) -> dict[str, str]:
    """This process's own, with the same import path and another home."""
    private = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), home)
    return {**child_environment(), **private, **OPT_OUTS}


def _read_answer(done: subprocess.CompletedProcess[bytes]) -> Answer:
    log = done.stderr.decode(errors="replace").strip()[-_LOG_CHARACTERS:]
    if done.returncode < 0:
        return Answer(problem=f"the library ended the process with {_signal_name(-done.returncode)}", log=log)
    try:
        values = json.loads(done.stdout)
    except ValueError:
        return Answer(problem=f"the process ended with exit code {done.returncode} and no answer", log=log)
    problem = values.pop("problem", None)
    return Answer(values, problem, log)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
