"""What a reader wants first: pass or not, how much faster, how much was lost, how sure that is, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.judging.floor import warn_of_guessing
from edgekiln.benchmarks.judging.gate import format_confidence
from edgekiln.benchmarks.report.charts.accuracy import budget_of, drop_of
from edgekiln.benchmarks.report.timings import find_reference

__all__ = ["answer_first", "engine_lines", "tell_headline"]

_STATES = {
    "pass": ("✓", "Passed"), "fail": ("✗", "Failed"), "inconclusive": ("?", "Inconclusive"),
    "not-run": ("-", "Not run"), "none": ("-", "Nothing required"),
}  # fmt: skip


def tell_headline(report: Mapping[str, Any]) -> str:
    """The verdict of the whole run, in a sentence; and that the network guesses, where it does."""
    engines, gate = [report["baseline"], *report["variants"]], report["recipe"]["gate"]
    guesses = warn_of_guessing(engines, report["data"]["classes"], gate["confidence"])
    return f"{_tell_verdict(report)}{' Its answers are no better than guessing.' if guesses else ''}"


def _tell_verdict(report: Mapping[str, Any]) -> str:
    required = [v for v in report["variants"] if v.get("required", True)]
    passing = [v for v in required if v["verdict"] == "pass"]
    others = sum(v["verdict"] == "pass" for v in report["variants"]) - len(passing)
    beside = f" Of those not required, {others} pass." if others else ""
    if not required:
        return f"No engine is required.{beside}"
    if len(passing) == len(required):
        count = (
            "The required engine passes"
            if len(required) == 1
            else f"All {len(required)} required engines pass"
        )
        return f"{count}.{beside}"
    return f"{len(required) - len(passing)} of {len(required)} required engines do not pass.{beside}"


def answer_first(report: Mapping[str, Any]) -> dict[str, Any]:
    """State of the run with its mark and word, and four answers: a question, a figure, its unit, what stands below."""
    state = _state_of(report)
    mark, word = _STATES[state]
    engine = _choose_engine(report)
    return {
        "state": state,
        "mark": mark,
        "word": word,
        "engine": engine and engine["name"],
        "why": engine and _tell_choice(report, engine),
        "answers": [
            ("How much faster", *_tell_speed(report, engine)),
            ("How much was lost", *_tell_loss(report, engine)),
            ("How sure", *_tell_certainty(report)),
            ("On what", *_tell_ground(report)),
        ],
    }


def _state_of(report: Mapping[str, Any]) -> str:
    """The worst verdict of the required engines."""
    verdicts = {v["verdict"] for v in report["variants"] if v.get("required", True)}
    return next((s for s in ("fail", "inconclusive", "not-run", "pass") if s in verdicts), "none")


def _choose_engine(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest engine that passes, the smallest where no speed-up is known; of those judged where none passes."""
    judged: list[Mapping[str, Any]] = [v for v in report["variants"] if drop_of(v)]
    offered = [v for v in judged if v["verdict"] == "pass"] or judged
    fast = [v for v in offered if v.get("speedup")]
    if fast:
        return max(fast, key=lambda v: float(v["speedup"]["value"]))
    return min(offered, key=lambda v: float(v.get("size") or float("inf")), default=None)


def _tell_choice(report: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    quality = "fastest" if engine.get("speedup") else "smallest"
    if engine["verdict"] == "pass":
        return f"the {quality} engine that passes"
    return f"the {quality} engine that was judged; it did not pass"


def _tell_speed(report: Mapping[str, Any], engine: Mapping[str, Any] | None) -> tuple[str, str, str]:
    speedup = engine.get("speedup") if engine else None
    if speedup:
        than = find_reference(report) or "PyTorch"
        return (
            f"{speedup['value']:.2f}x",
            "",
            f"{speedup['low']:.2f} to {speedup['high']:.2f} times as fast as {than}",
        )
    if not report.get("benchmark"):
        return "-", "", "Not measured"
    if report["benchmark"]["validity"]["state"] == "invalid":
        return "-", "", "Not told: the timings of this run are invalid"
    return "-", "", "No speed-up is known"


def _tell_loss(report: Mapping[str, Any], engine: Mapping[str, Any] | None) -> tuple[str, str, str]:
    drop = drop_of(engine) if engine else None
    if engine is None or drop is None:
        return "-", "", "No engine was judged"
    budget = budget_of(engine, report)
    value, low, high = (100 * drop[key] for key in ("value", "low", "high"))
    metric = "balanced accuracy" if engine.get("metric") == "balanced" else "top-1"
    unit = "points gained" if value < 0 else "points"
    return (
        f"{abs(value):.2f}",
        unit,
        f"of {metric}; {low:+.2f} to {high:+.2f}, {100 * budget:.2f} allowed",
    )


def _tell_certainty(report: Mapping[str, Any]) -> tuple[str, str, str]:
    confidence = format_confidence(report["recipe"]["gate"]["confidence"])
    benchmark = report.get("benchmark")
    told = f"timings {benchmark['validity']['state']}" if benchmark else "no timings"
    return confidence, "", f"confidence of the interval of what was lost; {told}"


def _tell_ground(report: Mapping[str, Any]) -> tuple[str, str, str]:
    machine, classes = report["machine"], len(report["data"]["classes"])
    return (
        f"{report['data']['counts']['test']}",
        "pictures",
        f"held out, {classes} classes; {machine['cpu']}, {machine['cores']} cores",
    )


def engine_lines(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """One short line an engine: name, verdict, speed-up, points lost, and for wide pages the median and the size."""
    return [
        {
            "name": v["name"],
            "verdict": v["verdict"],
            "mark": _STATES[v["verdict"]][0],
            "speed": f"{v['speedup']['value']:.2f}x" if v.get("speedup") else "-",
            "lost": f"{100 * drop['value']:+.2f}" if (drop := drop_of(v)) else "-",
            "median": f"{v['latency']['p50_ms']:.2f} ms" if v.get("latency") else "-",
            "size": f"{v['size'] / 1e6:.1f} MB" if v.get("size") else "-",
        }
        for v in report["variants"]
    ]
