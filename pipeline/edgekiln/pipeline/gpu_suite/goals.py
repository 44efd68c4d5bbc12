"""What was promised, and what the figures say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.pipeline.gpu_suite.contenders import BASELINE, GRAPHED

__all__ = ["MODEL", "judge_goals"]

MODEL, BATCH = "resnet50", 1
_TIMES_EAGER = 4.0
_WALL_OVER_DEVICE = 1.15


def judge_goals(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal with its figure and whether it is met; ``None`` where the figures do not decide.

    A ratio decides with its whole 95 % interval: on both sides of the target is neither met nor missed.

    Args:
        parts: the document's ``parts``.
    """
    name = f"bench.{MODEL}.b{BATCH}"
    part = parts.get(name, {"reason": f"{name} was not run: --model {MODEL}"})
    result = part.get("result") or {}
    fastest = result.get("fastest_edgekiln")
    missing = None
    if fastest is None:
        missing = part.get("reason") or "none of edgekiln's GPU backends was measured"
    entry = result["contenders"][fastest] if fastest is not None else {}
    unrated = missing or _explain_no_ratio(result)
    ratios = entry.get("times_faster_than", {})
    goals = [
        _ratio_goal(f"at least {_TIMES_EAGER:g}x {BASELINE}", ratios.get(BASELINE), _TIMES_EAGER, unrated),
        _ratio_goal(f"no slower than {GRAPHED}", ratios.get(GRAPHED), 1.0, unrated),
        _wall_goal(entry, missing),
    ]
    where = f"{MODEL}, batch {BATCH}, the fastest of edgekiln's backends here"
    return [{**goal, "goal": f"{where}: {goal['goal']}", "backend": fastest} for goal in goals]


def _explain_no_ratio(result: Mapping[str, Any]) -> str:
    validity = result["validity"]
    if validity["state"] == "invalid":
        return f"the measurement is invalid: {'; '.join(validity['reasons'])}"
    return "what it is to be compared with was not measured"


def _ratio_goal(goal: str, ratio: Mapping[str, float] | None, target: float, reason: str) -> dict[str, Any]:
    if ratio is None:
        return {"goal": goal, "target": target, "figure": None, "met": None, "reason": reason}
    met = True if ratio["low95"] >= target else False if ratio["high95"] < target else None
    told = f"95 % interval {ratio['low95']:.3f} .. {ratio['high95']:.3f}"
    return {"goal": goal, "target": target, "figure": ratio["value"], "met": met, "reason": told}


def _wall_goal(entry: Mapping[str, Any], missing: str | None) -> dict[str, Any]:
    goal = f"wall time at most {_WALL_OVER_DEVICE:g} of the time between GPU events"
    figure = entry.get("wall_over_device")
    reason = missing or ("this backend tells no GPU time" if figure is None else None)
    met = None if figure is None else figure <= _WALL_OVER_DEVICE
    return {"goal": goal, "target": _WALL_OVER_DEVICE, "figure": figure, "met": met, "reason": reason}
