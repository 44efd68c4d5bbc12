"""A measurement in a process of its own, again without the contender at which it died."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edgekiln.pipeline.gpu_suite.contenders import COMPILED
from edgekiln.pipeline.gpu_suite.isolation import Outcome, run_isolated, skip

__all__ = ["bench_with_reruns"]

_RERUNS = 4
"""Contenders that may crash or hang before a measurement is given up."""


def bench_with_reruns(
    function: str,
    arguments: dict[str, Any],
    *,
    limit_s: float,
    step_limit_s: float,
    say: Callable[[str], None],
) -> Outcome:
    """Measure; where the process dies or hangs at one contender, measure the others without it.

    torch.compile's long search is first tried again with its short one. ``limit_s`` is for all tries together.
    """
    arguments = {**arguments, "exclude": dict(arguments["exclude"])}
    began = time.monotonic()
    outcome = skip("not begun")
    for _ in range(_RERUNS):
        left = limit_s - (time.monotonic() - began)
        if left <= 0:
            break
        outcome = run_isolated(
            function,
            arguments,
            limit_s=left,
            step_limit_s=step_limit_s,
            tell=lambda event: _say_step(event, say),
        )
        culprit = (outcome.last or {}).get("contender")
        if outcome.state != "failed" or culprit is None or not _died(outcome):
            break
        doing = (outcome.last or {}).get("doing")
        say(f"  {culprit} ({doing}): {(outcome.reason or '').splitlines()[0][:200]}; again without it")
        if culprit == COMPILED and arguments.get("compile_mode", "default") != "default":
            arguments["compile_mode"] = "default"
            continue
        arguments["exclude"][culprit] = {"state": "failed", "reason": f"during {doing}: {outcome.reason}"}
    return replace(outcome, seconds=time.monotonic() - began)


def _died(outcome: Outcome) -> bool:
    """Whether the process gave no answer, as against one that raised."""
    return (outcome.reason or "").startswith(("the process", "it took longer"))


def _say_step(event: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if event.get("doing") == "open":
        say(f"  {event['contender']}")
