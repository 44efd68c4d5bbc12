"""Tells a transfer study, a plain JSON document: as rows of a table, a drawing and one HTML page. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.report.drawings import save_drawing, scale_by_logarithm
from edgekiln.benchmarks.report.page import render_template
from edgekiln.runtime.extras import import_extra

__all__ = ["difference_rows", "render_study_drawing", "render_study_page", "study_headings", "study_rows",
           "tell_choice"]  # fmt: skip

_COLORS = {"scratch": "#7f8c99", "probe": "#a88414", "full": "#3b82c4", "combined": "#d9662b"}
_MARKS = {"scratch": "s", "probe": "^", "full": "o", "combined": "D"}
_DRAWING = "transfer"
_METRICS = {"top1": "top-1", "balanced": "balanced accuracy"}
_SPREAD = 0.025
"""Methods of one size stand beside each other by this share of its place, so that intervals do not hide one another."""
# As an image a drawing cannot follow its page's colour: it follows the reader's system.
_OWN_COLORS = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def study_headings(study: Mapping[str, Any]) -> list[str]:
    """Headings of ``study_rows``."""
    return ["images", "method", f"{_METRICS[study['metric']]} %", "95% interval", "median %", "steps",
            "images seen", "s", "seeds"]  # fmt: skip


def study_rows(study: Mapping[str, Any]) -> list[list[str]]:
    """One row for each size and method: mean over the seeds, its interval, and what it cost."""
    sizes = _sizes(study["means"])
    return [
        [
            f"{sizes[entry['share']]:.0f} ({100 * entry['share']:g} %)" if entry["share"] in sizes
            else f"{100 * entry['share']:g} %",
            entry["method"],
            "failed" if entry["mean"] is None else f"{100 * entry['mean']:.2f}",
            _format_interval(entry, signed=False),
            "" if entry["median"] is None else f"{100 * entry['median']:.2f}",
            _count(entry["steps"]),
            _count(entry["images_seen"]),
            "" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
            f"{entry['seeds']}" + (f", {entry['failed']} failed" if entry["failed"] else ""),
        ]
        for entry in study["means"]
    ]  # fmt: skip


def _sizes(means: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Training images by share, of those sizes at which some method finished."""
    return {e["share"]: e["train_images"] for e in means if e["train_images"] is not None}


def difference_rows(study: Mapping[str, Any]) -> list[list[str]]:
    """Paired differences: size, which less which, points, interval, and whether it excludes zero."""
    return [
        [
            f"{100 * entry['share']:g} %",
            f"{entry['first']} less {entry['second']}",
            f"{100 * entry['mean']:+.2f}",
            _format_interval(entry, signed=True),
            _judge(entry),
        ]
        for entry in study["differences"]
    ]


def _judge(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "no interval"
    if entry["low"] <= 0 <= entry["high"]:
        return "open"
    return "better" if entry["low"] > 0 else "worse"


def _format_interval(entry: Mapping[str, Any], *, signed: bool) -> str:
    if entry["low"] is None:
        return "none"
    form = "+.2f" if signed else ".2f"
    return f"{format(100 * entry['low'], form)} to {format(100 * entry['high'], form)}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def tell_choice(choice: Mapping[str, Any]) -> str:
    """One sentence for one size."""
    taken = f"take {choice['method']}" if choice["method"] else "no method to recommend"
    missing = choice["not_compared"]
    left = f" Not compared, since a seed failed: {', '.join(missing)}." if missing else ""
    reason = choice["reason"][:1].upper() + choice["reason"][1:]
    return f"At {100 * choice['share']:g} % of the images {taken}. {reason}{left}"


def render_study_drawing(study: Mapping[str, Any]) -> str:
    """The drawing as a file of its own: SVG that is readable on light and on dark pages; no script, no link."""
    drawing = _draw_study(study)
    end = drawing.index(">") + 1  # of the opening tag
    return f"{drawing[:end]}{_OWN_COLORS}{drawing[end:]}\n"


def render_study_page(study: Mapping[str, Any]) -> str:
    """The study as one HTML page: no script, nothing from elsewhere; every value is escaped."""
    markup = import_extra("markupsafe", "build").Markup
    return render_template(
        "transfer.html",
        study=study,
        drawing=markup(_draw_study(study)),
        metric=_METRICS[study["metric"]],
        choice=tell_choice(study["choice"]),
        choices=[tell_choice(choice) for choice in study["choices"]],
        headings=study_headings(study),
        rows=study_rows(study),
        differences=difference_rows(study),
        cell_rows=[_cell_row(cell) for cell in study["cells"]],
    )


def _cell_row(cell: Mapping[str, Any]) -> list[str]:
    head = [f"{100 * cell['share']:g} %", cell["method"], str(cell["seed"])]
    if cell["state"] == "failed":
        return [*head, "", "", "", "", "", f"failed: {cell['error']}"]
    figures = [f"{100 * cell[key]:.2f}" for key in ("top1", "balanced")]
    counts = [str(cell[key]) for key in ("train_images", "val_images", "steps")]
    return [*head, *figures, *counts, f"{cell['seconds']:.1f}"]


def _draw_study(study: Mapping[str, Any]) -> str:
    """Metric over training images, one line a method, the seeds as dots and the interval of the mean as a bar."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, method in enumerate(study["methods"]):
            entries = [e for e in study["means"] if e["method"] == method["name"] and e["mean"] is not None]
            if entries:
                offset = 1 + _SPREAD * (number - (len(study["methods"]) - 1) / 2)
                _draw_method(axes, method, entries, offset)
        if any(entry["mean"] is not None for entry in study["means"]):
            scale_by_logarithm(axes)
        _mark_sizes(axes, study["means"])
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
        axes.set_xlabel("training images (logarithmic)")
        axes.set_ylabel(f"{_METRICS[study['metric']]} %, test images")
        axes.grid(axis="y", alpha=0.25)
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, handlelength=1.5)

    return save_drawing(_DRAWING, (5.4, 3.8), draw)


def _draw_method(
    axes: Any, method: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], offset: float
) -> None:
    name = method["name"]
    color, mark = _COLORS[name], _MARKS[name]
    places = [offset * entry["train_images"] for entry in entries]
    means = [100 * entry["mean"] for entry in entries]
    axes.plot(places, means, color=color, marker=mark, markersize=4, linewidth=1.2, label=method["title"])
    for place, entry in zip(places, entries, strict=True):
        values = [100 * value for value in entry["values"]]
        axes.plot([place] * len(values), values, ".", color=color, markersize=3, alpha=0.5)
        if entry["low"] is not None:
            ends = [100 * entry["low"], 100 * entry["high"]]
            axes.plot([place, place], ends, color=color, linewidth=1, marker="_", markersize=5)


def _mark_sizes(axes: Any, means: Sequence[Mapping[str, Any]]) -> None:
    """Ticks where the sizes are, in images."""
    if sizes := _sizes(means):
        axes.set_xticks(list(sizes.values()), [f"{size:.0f}" for size in sizes.values()])
        axes.minorticks_off()
