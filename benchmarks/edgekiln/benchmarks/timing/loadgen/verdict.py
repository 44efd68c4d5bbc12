"""Puts LoadGen's stopwatch beside ours and says what the run may be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.timing.loadgen.rules import Scenario, find_shortfalls
from edgekiln.benchmarks.timing.loadgen.summary import Summary

__all__ = ["judge_run"]


def judge_run(
    summary: Summary, answer: dict[str, Any], scenario: Scenario, min_seconds: float, library: int
) -> dict[str, Any]:
    """Both stopwatches side by side, and what the run may be called."""
    ours = answer["ours"]
    shortfalls = find_shortfalls(scenario, min_seconds, ours["samples"], library)
    theirs = {
        **summary.percentiles_ms,
        "early_stopping_p90_ms": summary.early_stopping_p90_ms,
        "samples_per_second": summary.samples_per_second,
    }
    compared = ("samples_per_second",) if scenario == "Offline" else ("p50", "p90")
    ratios = {
        f"ours_over_loadgen_{key}": _ratio(ours, theirs, key if key in ours else f"{key}_ms")
        for key in compared
    }
    return {
        **answer,
        "result": summary.result,
        "valid": summary.valid,
        "reasons": list(summary.reasons),
        "compliant": summary.valid and not shortfalls,
        "shortfalls": shortfalls,
        "loadgen": theirs,
        **ratios,
    }


def _ratio(ours: Mapping[str, float], theirs: Mapping[str, float | None], key: str) -> float:
    return round(ours[key] / (theirs[key] or float("nan")), 4)
