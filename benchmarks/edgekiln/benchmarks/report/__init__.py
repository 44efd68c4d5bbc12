"""Renders a report, a plain JSON document, as a text table, an HTML page and a model card. Computes nothing."""

from edgekiln.benchmarks.report.page import render_card, render_page
from edgekiln.benchmarks.report.table import (
    describe_config,
    describe_floor,
    describe_simulation,
    format_markdown,
    format_text,
    table_headings,
    table_rows,
)

__all__ = [
    "describe_config",
    "describe_floor",
    "describe_simulation",
    "format_markdown",
    "format_text",
    "render_card",
    "render_page",
    "table_headings",
    "table_rows",
]
