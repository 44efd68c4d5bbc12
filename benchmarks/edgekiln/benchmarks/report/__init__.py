"""Renders a report, a plain JSON document, as text, an HTML page, a summary and a model card. Measures nothing.

May import: ``runtime``, ``runtime/bundles``, ``benchmarks/judging``.
"""

from edgekiln.benchmarks.report.fleet import render_fleet_page, render_fleet_summary
from edgekiln.benchmarks.report.page import render_card, render_page, render_summary
from edgekiln.benchmarks.report.peers import cell_headings, cell_rows, describe_peers
from edgekiln.benchmarks.report.reading import REPORT_NAME, read_bundled_report, read_report
from edgekiln.benchmarks.report.table import (
    describe_best_pytorch,
    describe_config,
    describe_floor,
    describe_mlperf,
    describe_reasons,
    describe_simulation,
    describe_throughput,
    format_markdown,
    format_text,
    mlperf_headings,
    mlperf_rows,
    short_headings,
    short_rows,
    table_headings,
    table_rows,
)
from edgekiln.benchmarks.report.timings import describe_phases

__all__ = [
    "REPORT_NAME",
    "cell_headings",
    "cell_rows",
    "describe_best_pytorch",
    "describe_config",
    "describe_floor",
    "describe_mlperf",
    "describe_peers",
    "describe_phases",
    "describe_reasons",
    "describe_simulation",
    "describe_throughput",
    "format_markdown",
    "format_text",
    "mlperf_headings",
    "mlperf_rows",
    "read_bundled_report",
    "read_report",
    "render_card",
    "render_fleet_page",
    "render_fleet_summary",
    "render_page",
    "render_summary",
    "short_headings",
    "short_rows",
    "table_headings",
    "table_rows",
]
