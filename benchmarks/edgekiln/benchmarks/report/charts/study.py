"""The chart of a transfer study: a metric over the number of training images, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.report.charts.svg import Chart, Scale

__all__ = ["METRICS", "draw_study", "draw_study_alone", "training_sizes"]

METRICS = {"top1": "top-1", "balanced": "balanced accuracy"}
_KINDS = {
    "scratch": ("s0", "square"),
    "probe": ("s5", "triangle"),
    "full": ("s1", "dot"),
    "combined": ("s2", "diamond"),
}
_SPREAD = 0.012
"""Methods of one size stand so far apart, as a share of the width: intervals must not hide one another."""
_STYLE = Path(__file__).parents[1] / "templates" / "charts.css"
_WIDTH, _PLOT, _AXIS = 720, 300, 40


def training_sizes(means: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Training images by share, of those sizes at which some method finished."""
    return {e["share"]: e["train_images"] for e in means if e["train_images"] is not None}


def draw_study(study: Mapping[str, Any]) -> str:
    """Means over the seeds, seeds as dots, the interval of the mean as a bar; "" where no training finished."""
    known = [entry for entry in study["means"] if entry["mean"] is not None]
    return _draw(study, known).write(_tell(study)) if known else ""


def draw_study_alone(study: Mapping[str, Any]) -> str:
    """The same as a file of its own: an image cannot follow its page's colours, so it follows the reader's system."""
    known = [entry for entry in study["means"] if entry["mean"] is not None]
    chart = _draw(study, known) if known else Chart(40)
    if not known:
        chart.text(0.5, 25, "No training finished.", anchor="middle")
    style = f"<style>{_STYLE.read_text('utf-8')}</style>"
    return chart.write(_tell(study), size=(_WIDTH, int(chart.height)), style=style)


def _tell(study: Mapping[str, Any]) -> str:
    return f"Line chart: {METRICS[study['metric']]} over training images, a line a method"


def _draw(study: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> Chart:
    methods = study["methods"]
    chart = Chart(_PLOT + _AXIS + 20 * len(methods) + 6)
    across, up = _scales(known)
    _draw_axes(chart, across, up, training_sizes(known), METRICS[study["metric"]])
    for number, method in enumerate(methods):
        offset = _SPREAD * (number - (len(methods) - 1) / 2)
        _draw_method(chart, across, up, [e for e in known if e["method"] == method["name"]], offset)
    entries = [(m["title"], f"mark {_KINDS[m['name']][0]}", _KINDS[m["name"]][1]) for m in methods]
    chart.legend(_PLOT + _AXIS + 14, entries, 1)
    return chart


def _scales(known: Sequence[Mapping[str, Any]]) -> tuple[Scale, Scale]:
    sizes = [float(entry["train_images"]) for entry in known]
    values = [100 * v for e in known for v in (e["mean"], *e["values"], e["low"], e["high"]) if v is not None]
    room = 0.06 * (max(values) - min(values)) or 1.0
    # One size alone stands in the middle.
    spread = 1.0 if max(sizes) > min(sizes) else 1.5
    across = Scale(min(sizes) / spread, max(sizes) * spread, 0.12, 0.94, log=True)
    return across, Scale(min(values) - room, min(max(values) + room, 101), _PLOT - 4, 32)


def _draw_axes(chart: Chart, across: Scale, up: Scale, sizes: Mapping[float, float], metric: str) -> None:
    chart.text(0, 10, f"{metric} %, test images", "dim small")
    chart.rules(up)
    for size in sizes.values():
        chart.line(across.place(size), 32, across.place(size), _PLOT, "grid")
        chart.text(across.place(size), _PLOT + 15, f"{size:.0f}", "dim", anchor="middle")
    chart.line(0, _PLOT, 1, _PLOT, "axis")
    chart.text(0.5, _PLOT + 32, "training images (logarithmic)", "dim", anchor="middle")


def _draw_method(
    chart: Chart, across: Scale, up: Scale, entries: Sequence[Mapping[str, Any]], offset: float
) -> None:
    if not entries:
        return
    kind, shape = _KINDS[entries[0]["method"]]
    entries = sorted(entries, key=lambda entry: float(entry["train_images"]))
    places = [(across.place(e["train_images"]) + offset, up.place(100 * e["mean"])) for e in entries]
    if len(places) > 1:
        chart.path(places, f"line {kind}")
    for (x, y), entry in zip(places, entries, strict=True):
        for value in entry["values"]:
            chart.mark(x, up.place(100 * value), f"mark {kind} seed", "small")
        if entry["low"] is not None:
            ends = up.place(100 * entry["low"]), up.place(100 * entry["high"])
            chart.line(x, ends[0], x, ends[1], f"line {kind}")
        told = f"{entry['method']}, {entry['train_images']:.0f} images: {100 * entry['mean']:.2f} %"
        chart.mark(x, y, f"mark {kind}", shape, told)
