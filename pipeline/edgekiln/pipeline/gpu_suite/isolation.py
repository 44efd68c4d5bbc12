"""Runs a function in a process of its own, with a time limit: what crashes or hangs there costs only itself.

The function is named ``module:function``, takes JSON values and ``tell``, and returns JSON values. What it tells is
kept in a file, so that a process that died has said what it was at.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekiln.runtime.errors import BuildError, DeviceLostError, EnvironmentProblem
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["Outcome", "SkippedPart", "State", "Tell", "run_isolated", "skip", "state_after"]

_CUDA_FAILED = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS)\w* (?:failure|error)", re.IGNORECASE)
"""What libraries say of a call that failed; a library that is missing is told in other words."""

State = Literal["done", "skipped", "failed"]
Tell = Callable[[Mapping[str, Any]], None]

_POLL_SECONDS = 0.1
_TAIL_CHARACTERS = 2000


class SkippedPart(Exception):
    """Raised by a part that cannot be tried here; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part.

    Attributes:
        reason: why it was skipped or failed; ``None`` where it is done.
        result: JSON values; may also be there where the part failed.
        seconds: wall-clock time.
        last: what the part told last: what it was at when it failed.
    """

    state: State
    reason: str | None = None
    result: Any = None
    seconds: float = 0.0
    last: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "state": self.state,
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
            "result": self.result,
        }


def skip(reason: str, result: Any = None) -> Outcome:
    """A part that was not tried."""
    return Outcome("skipped", reason, result)


def run_isolated(
    function: str,
    arguments: Mapping[str, Any],
    *,
    limit_s: float,
    step_limit_s: float | None = None,
    tell: Tell = lambda event: None,
) -> Outcome:
    """Call ``function`` in a child.

    Args:
        function: ``module:function``.
        arguments: JSON values, its first argument.
        limit_s: seconds after which the child is ended.
        step_limit_s: most seconds between two things that it tells.
        tell: hears what the child tells, in this process.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgekiln-gpu-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps({"function": function, "arguments": arguments}))
        problem, last = _watch(folder, limit_s, step_limit_s, tell)
        answer_file = folder / "answer.json"
        if answer_file.exists():  # a child that crashed while ending has answered before
            answer = json.loads(answer_file.read_text("utf-8"))
        else:
            answer = {"state": "failed", "reason": problem, "result": None}
    return Outcome(answer["state"], answer["reason"], answer["result"], time.monotonic() - started, last)


def _watch(
    folder: Path, limit_s: float, step_limit_s: float | None, tell: Tell
) -> tuple[str, Mapping[str, Any] | None]:
    """Run the child to its end, or end it; returns what is wrong if it did not answer, and what it told last."""
    (folder / "events").touch()
    with (folder / "output").open("wb") as output, (folder / "events").open() as events:
        child = subprocess.Popen(
            module_command("edgekiln.pipeline.gpu_suite.isolation", str(folder)),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=child_environment() | {"PYTHONFAULTHANDLER": "1"},
            start_new_session=True,  # its own children end with it
        )
        try:
            problem, last = _follow(child, events, limit_s, step_limit_s, tell)
        finally:
            _end(child)
    if problem is None:
        text = (folder / "output").read_text("utf-8", errors="replace").strip()[-_TAIL_CHARACTERS:]
        problem = f"{_describe_exit(child.returncode)}: {text or 'it said nothing'}"
    return problem, last


def _follow(
    child: subprocess.Popen[bytes], events: Any, limit_s: float, step_limit_s: float | None, tell: Tell
) -> tuple[str | None, Mapping[str, Any] | None]:
    began = stepped = time.monotonic()
    last: Mapping[str, Any] | None = None
    pending = ""
    while True:
        ended = child.poll() is not None
        pending += events.read()
        *lines, pending = pending.split("\n")
        for line in lines:
            last, stepped = json.loads(line), time.monotonic()
            tell(last or {})
        now = time.monotonic()
        if ended:
            return None, last
        if now - began > limit_s:
            return f"it took longer than {limit_s:g} s", last
        if step_limit_s is not None and now - stepped > step_limit_s:
            return f"it took longer than {step_limit_s:g} s for one step", last
        time.sleep(_POLL_SECONDS)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started; a group without members is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"the process crashed ({signal.Signals(-code).name})"
    return f"the process ended with exit code {code} and without an answer"


# --------------------------------------------------------------------------------------------------------------
# The child


def _serve(folder: Path) -> None:
    """Do what ``folder`` asks for and leave the answer there."""
    request = json.loads((folder / "request.json").read_text("utf-8"))
    with (folder / "events").open("a", buffering=1) as events:
        answer = _call(request, lambda event: print(json.dumps(event), file=events))
    partial = folder / "answer.partial"
    partial.write_text(json.dumps(answer), "utf-8")
    partial.replace(folder / "answer.json")


def state_after(error: Exception) -> State:
    """``skipped`` where something is missing here, ``failed`` where something was tried and went wrong.

    A build that failed and a failure of CUDA itself are problems of the environment too, and no reasons to skip.
    """
    tried = isinstance(error, BuildError | DeviceLostError) or _CUDA_FAILED.search(str(error))
    missing = isinstance(error, SkippedPart) or (isinstance(error, EnvironmentProblem) and not tried)
    return "skipped" if missing else "failed"


def _call(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(request["arguments"], tell)
    except Exception as error:  # a part may fail in any way; the others go on
        if state_after(error) == "skipped":
            return {"state": "skipped", "reason": str(error), "result": None}
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return {"state": "failed", "reason": f"{type(error).__name__}: {error} ({place})", "result": None}
    return {"state": "done", "reason": None, "result": result}


if __name__ == "__main__":
    # Under its own name, so that a part's SkippedPart is the one that is caught here.
    from edgekiln.pipeline.gpu_suite import isolation

    isolation._serve(Path(sys.argv[1]))
    sys.stdout.flush()
    # Not by the interpreter's way out: there libraries' objects die in any order, and some crash.
    os._exit(0)
