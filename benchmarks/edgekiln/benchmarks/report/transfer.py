"""Tells a transfer study, a plain JSON document: as rows of a table, a drawing and one HTML page. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.report.charts.study import METRICS, draw_study, draw_study_alone, training_sizes
from edgekiln.benchmarks.report.page import render_template

__all__ = ["difference_rows", "render_study_drawing", "render_study_page", "study_headings", "study_rows",
           "tell_choice"]  # fmt: skip


def study_headings(study: Mapping[str, Any]) -> list[str]:
    """Headings of ``study_rows``."""
    return ["images", "method", f"{METRICS[study['metric']]} %", "95% interval", "median %", "steps",
            "images seen", "s", "seeds"]  # fmt: skip


def study_rows(study: Mapping[str, Any]) -> list[list[str]]:
    """One row for each size and method: mean over the seeds, its interval, and what it cost."""
    sizes = training_sizes(study["means"])
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
    """The chart as a file of its own: SVG that is readable on light and on dark pages; no script, no link."""
    return draw_study_alone(study) + "\n"


def render_study_page(study: Mapping[str, Any]) -> str:
    """The study as one HTML page: no script, nothing from elsewhere; every value is escaped."""
    return render_template(
        "transfer.html",
        study=study,
        drawing=draw_study(study),
        metric=METRICS[study["metric"]],
        choice=tell_choice(study["choice"]),
        first=_answer_first(study),
        choices=[tell_choice(choice) for choice in study["choices"]],
        headings=study_headings(study),
        rows=study_rows(study),
        differences=difference_rows(study),
        cell_rows=[_cell_row(cell) for cell in study["cells"]],
    )


def _answer_first(study: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Four answers about the method that was chosen: a question, a figure, its unit, what stands below."""
    share, method, machine = study["choice"]["share"], study["choice"]["method"], study["machine"]
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    size = f"{study['test']['images']}" if study["test"] else "-"
    return [
        ("How good", *_tell_mean(study, share, method)),
        ("What pretrained weights gain", *_tell_gain(study, share)),
        ("How sure", f"{len(study['seeds'])}", "seeds", "95% intervals: they tell how another seed would do"),
        (
            "On what",
            size,
            "images",
            f"of the test split, the same for all; {machine.get('cpu', 'a machine that is not told')}{cores}",
        ),
    ]


def _tell_mean(study: Mapping[str, Any], share: float, method: str | None) -> tuple[str, str, str]:
    metric = METRICS[study["metric"]]
    for entry in study["means"]:
        if (entry["share"], entry["method"]) == (share, method) and entry["mean"] is not None:
            interval = _format_interval(entry, signed=False)
            return (
                f"{100 * entry['mean']:.2f}",
                "%",
                f"{metric} of {method}, mean over the seeds; interval {interval}",
            )
    return "-", "", f"no {metric} is known"


def _tell_gain(study: Mapping[str, Any], share: float) -> tuple[str, str, str]:
    """Full fine-tuning less training from scratch: the one pair that tells what the pretrained weights are worth."""
    for entry in study["differences"]:
        if (entry["share"], entry["first"], entry["second"]) == (share, "full", "scratch"):
            words = f"full less scratch: {_judge(entry)}; interval {_format_interval(entry, signed=True)}"
            return f"{100 * entry['mean']:+.2f}", "points", words
    return "-", "", "full and scratch were not compared at this size"


def _cell_row(cell: Mapping[str, Any]) -> list[str]:
    head = [f"{100 * cell['share']:g} %", cell["method"], str(cell["seed"])]
    if cell["state"] == "failed":
        return [*head, "", "", "", "", "", f"failed: {cell['error']}"]
    figures = [f"{100 * cell[key]:.2f}" for key in ("top1", "balanced")]
    counts = [str(cell[key]) for key in ("train_images", "val_images", "steps")]
    return [*head, *figures, *counts, f"{cell['seconds']:.1f}"]
