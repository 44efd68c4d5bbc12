"""The HTML page, the model card and the summary of a report. The page is one file: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.gate import format_confidence
from edgekiln.benchmarks.report.drawings import (
    MOST_LOSSES,
    confusion_matrix,
    draw_accuracy_latency,
    draw_confusion,
    draw_distributions,
    draw_precisions,
    draw_recall_losses,
    draw_series,
)
from edgekiln.benchmarks.report.table import (
    describe_audit,
    describe_config,
    describe_limits,
    describe_simulation,
    format_markdown,
    table_headings,
    table_rows,
)
from edgekiln.runtime.extras import import_extra

__all__ = ["render_card", "render_page", "render_summary"]

_TEMPLATES = Path(__file__).parent
_MATRIX_CLASSES = 20
"""Up to this many classes a confusion matrix can be read on a phone."""
_MAX_LISTED = 200
"""Changed answers listed by name, of each engine; report.json has all."""


def render_page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page; every value is escaped, so a class may be called ``<script>``."""
    markupsafe = import_extra("markupsafe", "build")
    timed = bool(report.get("benchmark"))
    drawings = {
        "pareto": draw_accuracy_latency(report),
        "latency": draw_distributions(report) if timed else "",
        "series": draw_series(report) if timed else "",
        "precision": draw_precisions(report),
    }
    return _render(
        "page.html",
        report,
        drawings={name: markupsafe.Markup(text) for name, text in drawings.items()},
        confusions=[{**part, "drawing": markupsafe.Markup(part["drawing"])} for part in _confusions(report)],
        headline=_headline(report),
        boundaries=_boundaries(report),
        floors=_floors(report),
        matrix_classes=_MATRIX_CLASSES,
        max_listed=_MAX_LISTED,
    )


def render_card(report: Mapping[str, Any]) -> str:
    """The report as a Markdown model card."""
    return _render(
        "card.md", report, markdown_table=format_markdown(table_rows(report), table_headings(report))
    )


def render_summary(report: Mapping[str, Any]) -> str:
    """The report as a short Markdown summary for a pull request: verdicts, table, notices; no links."""
    return _render(
        "summary.md",
        report,
        markdown_table=format_markdown(table_rows(report), table_headings(report)),
        headline=_headline(report),
    )


def _render(template: str, report: Mapping[str, Any], **extra: Any) -> str:
    jinja2 = import_extra("jinja2", "build")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "config": describe_config,
        "confidence": format_confidence,
        "limits": describe_limits,
        "audit": describe_audit,
        "simulation": describe_simulation,
        # Markdown lets HTML through, and a reason may quote a name of the user's.
        "plain": lambda text: str(text).replace("&", "&amp;").replace("<", "&lt;"),
    }
    text: str = environment.get_template(template).render(
        report=report, headings=table_headings(report), rows=table_rows(report), **extra
    )
    return text


def _headline(report: Mapping[str, Any]) -> str:
    """The verdict of the whole run, in a sentence."""
    required = [v for v in report["variants"] if v.get("required", True)]
    passing = [v for v in required if v["verdict"] == "pass"]
    others = sum(v["verdict"] == "pass" for v in report["variants"]) - len(passing)
    beside = f" Of those not required, {others} pass." if len(required) < len(report["variants"]) else ""
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


def _confusions(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One drawing per judged engine of what it confuses otherwise than PyTorch: which classes did it lose?"""
    baseline, classes = report["baseline"].get("accuracy"), report["data"]["classes"]
    judged = [v for v in report["variants"] if v.get("accuracy")] if baseline else []
    parts = []
    for number, variant in enumerate(judged):
        losses = _recall_losses(baseline, variant["accuracy"], classes)
        if len(classes) <= _MATRIX_CLASSES:
            before, now = confusion_matrix(baseline), confusion_matrix(variant["accuracy"])
            drawing = draw_confusion(before, now, classes, f"confusion{number}")
        else:
            drawing = draw_recall_losses(losses[:MOST_LOSSES], f"confusion{number}")
        parts.append({"name": variant["name"], "drawing": drawing, "lost": len(losses), "losses": losses[:3]})
    return parts


def _recall_losses(
    before: Mapping[str, Any], now: Mapping[str, Any], classes: Sequence[str]
) -> list[tuple[str, float]]:
    """The classes whose recall fell and by how much, worst first."""
    pairs = zip(classes, before["recall"], now["recall"], strict=False)
    changes = [(name, b - a) for name, a, b in pairs if a is not None and b is not None and b < a]
    return sorted(changes, key=lambda change: change[1])


def _boundaries(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, bare library call, Session.run, picture to label, loading, first answer, repeated image."""
    benchmark = report.get("benchmark") or {}
    sides = {(m["boundary"], m["name"]): m["p50_ms"] for m in benchmark.get("sides", ())}
    rows = []
    for number, measurement in enumerate(benchmark.get("measurements", ())):
        name = measurement["name"]
        cold = benchmark.get("cold_start", {}).get(name, {})
        repeated = benchmark.get("repeated_image", {}).get(name)
        times = (
            sides.get(("engine", name)), measurement["p50_ms"], sides.get(("image", name)),
            cold.get("load_ms"), cold.get("first_result_ms"),
        )  # fmt: skip
        figures = ["-" if time is None else f"{time:.2f}" for time in times]
        rows.append(
            ["PyTorch" if number == 0 else name, *figures, "-" if repeated is None else f"{repeated:.2f}x"]
        )
    return rows


def _floors(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, median, floor, share of it; of the engines whose floor is known."""
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"]]
    known = [(e["name"], e["latency"]) for e in engines if (e.get("latency") or {}).get("share_of_floor")]
    return [
        [name, f"{t['p50_ms']:.3g}", f"{t['floor_ms']:.3g}", f"{t['share_of_floor']:.0%}"]
        for name, t in known
    ]
