"""All parts within the budget, each isolated from the others, and one document about them, kept as it grows."""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekiln.pipeline.gpu_suite.context import Run, SuiteOptions
from edgekiln.pipeline.gpu_suite.document import is_bad, without_nan
from edgekiln.pipeline.gpu_suite.goals import judge_goals
from edgekiln.pipeline.gpu_suite.isolation import Outcome, run_isolated, skip
from edgekiln.pipeline.gpu_suite.machine import report_machine
from edgekiln.pipeline.gpu_suite.parts import list_parts
from edgekiln.pipeline.gpu_suite.plan import Part, explain_no_time, make_plan, render_plan
from edgekiln.pipeline.shipping.privacy import remove_private
from edgekiln.runtime.cuda import DriverState
from edgekiln.runtime.errors import ExitCode

__all__ = ["SCHEMA", "run_suite"]

SCHEMA = "edgekiln.gpu-suite/2"
_PACKAGE = "edgekiln.pipeline.gpu_suite"
_ENDED = "the run was ended while this part was running"


def run_suite(
    options: SuiteOptions,
    *,
    say: Callable[[str], None],
    driver: DriverState | None = None,
    save: Callable[[Mapping[str, Any]], None] = lambda document: None,
) -> tuple[dict[str, Any], ExitCode]:
    """Run what fits.

    Args:
        options: what, and for how long.
        say: told one line at a time what is planned, and how far it is.
        driver: what the driver says; asked where ``None``.
        save: given the document as it is after each part, so that a run that is cut short keeps what it has.

    Returns:
        The document, and 0 where nothing failed, 3 where something did, 5 where there is no GPU.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="edgekiln-gpu-") as folder:
        problem: str | None = None

        def keep(run: Run) -> None:
            save(_describe(run, started, problem, complete=False))

        run = Run(options, Path(folder), say, keep)
        problem = _look_at_machine(run, driver)
        try:
            if problem is not None:
                _skip_everything(run, problem)
            else:
                _gather(run)
                _run_parts(run)
        except BaseException:  # Ctrl-C, or the machine is taken away
            if run.current is not None:
                run.add(run.current, Outcome("failed", _ENDED))
            raise
    document = _describe(run, started, problem, complete=True)
    save(document)
    return document, ExitCode(document["exit_code"])


def _look_at_machine(run: Run, driver: DriverState | None) -> str | None:
    """Why there is no GPU, or ``None``."""
    if driver is not None:
        run.add("machine", Outcome("done", None, report_machine(driver)))
        return driver.problem
    limit = run.options.limits_s["machine"]
    outcome = run_isolated(f"{_PACKAGE}.machine:probe_machine", {}, limit_s=limit)
    found = outcome.result or {"problem": f"the driver could not be asked: {outcome.reason}", "report": None}
    run.add("machine", Outcome(outcome.state, outcome.reason, found["report"], outcome.seconds, outcome.last))
    problem: str | None = found["problem"]
    return problem


def _skip_everything(run: Run, problem: str) -> None:
    reason = f"no GPU: {problem}"
    machine = run.parts["machine"]
    if machine.state == "done":
        run.parts["machine"] = skip(reason, machine.result)
    for part in list_parts(run):
        run.add(part.name, skip(reason))


def _gather(run: Run) -> None:
    """Join what was brought along, and let this process and its children see the packages in it, after all others."""
    if run.options.given is None:
        return
    run.begin("inputs")
    target, site = run.work / "given", run.work / "site"
    arguments = {"given": str(run.options.given.resolve()), "target": str(target), "site": str(site)}
    limit = run.options.limits_s["inputs"]
    outcome = run_isolated(f"{_PACKAGE}.inputs:gather_inputs", arguments, limit_s=limit)
    run.given = (outcome.result or {}).get("folder")
    if site.is_dir():
        sys.path.append(str(site))
        importlib.invalidate_caches()
    run.add("inputs", outcome)


def _run_parts(run: Run) -> None:
    parts = list_parts(run)
    run.plan = make_plan(parts, run.left_s)
    for line in render_plan(run.plan, run.left_s):
        run.say(line)
    for part in parts:
        run.begin(part.name)
        run.add(part.name, _run_part(run, part))


def _run_part(run: Run, part: Part) -> Outcome:
    reason = part.unwanted or explain_no_time(part, run.left_s)
    if reason is not None:
        return skip(reason)
    began = time.monotonic()
    try:
        return part.run(min(part.limit_s, run.left_s))
    except Exception as error:  # what runs a part may fail too: a full disk, no more processes
        return Outcome("failed", f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)


# --------------------------------------------------------------------------------------------------------------
# The document


def _describe(run: Run, started: str, problem: str | None, *, complete: bool) -> dict[str, Any]:
    """JSON values; private names are taken out, and NaN, which JSON has not."""
    parts = {name: outcome.to_dict() for name, outcome in run.parts.items()}
    code = ExitCode.ENVIRONMENT if problem else _judge(parts)
    options = run.options
    document = {
        "schema": SCHEMA,
        "edgekiln": _own_version(),
        "started_utc": started,
        "seconds": round(time.monotonic() - run.began, 1),
        "complete": complete,
        "running": run.current,
        "exit_code": int(code),
        "problem": problem,
        "options": {
            "quick": options.is_quick,
            "budget_s": options.budget_s,
            "families": list(options.families),
            "models": list(options.models),
            "batches": list(options.batches),
        },
        "plan": run.plan,
        "goals": judge_goals(parts),
        "parts": parts,
    }
    cleaned: dict[str, Any] = without_nan(remove_private(document))
    return cleaned


def _own_version() -> str | None:
    try:
        return version("edgekiln")
    except PackageNotFoundError:  # it runs from a checkout
        return None


def _judge(parts: Mapping[str, Mapping[str, Any]]) -> ExitCode:
    """Whether any part, or anything in a part, failed; goals that are missed do not fail, they are told."""
    return ExitCode.GATE_FAILED if any(map(is_bad, parts.values())) else ExitCode.OK
