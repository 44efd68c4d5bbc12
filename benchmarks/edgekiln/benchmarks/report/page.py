"""The HTML page and the model card of a report. One self-contained file: no script, no network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.gate import format_confidence
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

__all__ = ["render_card", "render_page"]

_TEMPLATES = Path(__file__).parent


def render_page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page; every value is escaped, so a class may be called ``<script>``."""
    markupsafe = import_extra("markupsafe", "build")
    drawing = markupsafe.Markup(_draw_latency(report)) if report.get("benchmark") else ""
    return _render("page.html", report, drawing=drawing)


def render_card(report: Mapping[str, Any]) -> str:
    """The report as a Markdown model card."""
    return _render(
        "card.md", report, markdown_table=format_markdown(table_rows(report), table_headings(report))
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
    }
    text: str = environment.get_template(template).render(
        report=report, headings=table_headings(report), rows=table_rows(report), **extra
    )
    return text


def _draw_latency(report: Mapping[str, Any]) -> str:
    """Box plot of single-call times per engine, as SVG text."""
    matplotlib = import_extra("matplotlib", "build")
    figure_module = import_extra("matplotlib.figure", "build")
    measurements = report["benchmark"]["measurements"]
    times = [np.concatenate([np.array(b["times_us"]) for b in m["blocks"]]) / 1000 for m in measurements]
    # A fixed salt and date: the same report gives the same bytes.
    with matplotlib.rc_context(
        {"svg.hashsalt": "edgekiln", "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure = figure_module.Figure(figsize=(6.4, 0.6 + 0.5 * len(times)), layout="constrained")
        axes = figure.subplots()
        names = [m["name"] if i else "PyTorch" for i, m in enumerate(measurements)]
        axes.boxplot(times[::-1], orientation="horizontal", whis=(1, 99), showfliers=False, widths=0.6)
        axes.set_yticks(range(1, len(names) + 1), names[::-1])
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds per call, batch 1 (box: quartiles, whiskers: 1 % and 99 %)")
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
