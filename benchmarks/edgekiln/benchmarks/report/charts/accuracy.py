"""Charts of what an engine lost: its drop against the budget, recall by class, and what it confuses anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.report.charts.svg import Chart, Scale, shorten, span_scale

__all__ = [
    "MOST_CLASSES",
    "HeatMap",
    "budget_of",
    "compare_confusions",
    "confusion_matrix",
    "draw_drops",
    "draw_recalls",
    "drop_of",
    "recall_changes",
]

MOST_CLASSES = 20
"""So many classes, at most, stand in a heat map or a chart of recalls: those that changed most."""

_ROW, _AXIS = 46, 40
_LEVELS = 4
_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}


# --------------------------------------------------------------------------------------------------------------
# The drop


def drop_of(variant: Mapping[str, Any]) -> Mapping[str, float] | None:
    """The interval that decides by the gate's metric: ``value``, ``low``, ``high``, as shares; ``None`` unjudged."""
    found: Mapping[str, float] | None = variant.get(
        "balanced_drop" if variant.get("metric") == "balanced" else "drop"
    )
    return found


def budget_of(variant: Mapping[str, Any], report: Mapping[str, Any]) -> float:
    """The drop that the gate allows this engine, a share; older reports have it in the recipe alone."""
    own = variant.get("max_drop")
    return float(report["recipe"]["gate"]["max_drop"] if own is None else own)


def draw_drops(report: Mapping[str, Any]) -> str:
    """The interval of each engine's drop against its budget; empty where nothing was judged.

    An interval that lies across the line of the budget is *inconclusive*.
    """
    judged = [(v, drop, budget_of(v, report)) for v in report["variants"] if (drop := drop_of(v))]
    if not judged:
        return ""
    ends = [100 * drop[key] for _, drop, _ in judged for key in ("low", "high")]
    budgets = [100 * budget for *_, budget in judged]
    scale = span_scale([0, *ends, *budgets, 1.25 * max(budgets)])
    chart = Chart(18 + _ROW * len(judged) + _AXIS)
    bottom = 18 + _ROW * len(judged)
    metric = "balanced accuracy" if report["recipe"]["gate"].get("metric") == "balanced" else "top-1"
    chart.axis(scale, bottom, f"points of {metric} lost; negative: gained", top=18)
    for number, (variant, drop, budget) in enumerate(judged):
        _draw_drop(chart, 18 + _ROW * number, scale, variant, drop, 100 * budget)
    zero = scale.place(0)
    chart.text(zero, 11, "PyTorch", "dim small", anchor="end" if zero > 0.2 else "start")
    if len(set(budgets)) == 1:
        place, words = scale.place(budgets[0]), f"allowed {budgets[0]:.2f}"
        right = place > 0.75
        chart.text(1 if right else place, 11, words, "figure fail small", anchor="end" if right else "start")
    return chart.write(f"Interval chart: how much {metric} each engine lost, and what is allowed")


def _draw_drop(
    chart: Chart, y: float, scale: Scale, variant: Mapping[str, Any], drop: Mapping[str, float], budget: float
) -> None:
    value, low, high = (100 * drop[key] for key in ("value", "low", "high"))
    verdict = variant["verdict"]
    chart.text(0, y + 13, shorten(variant["name"], 18), "name")
    words = f"{value:+.2f} [{low:+.2f}, {high:+.2f}] {_MARKS.get(verdict, '')}"
    chart.text(1, y + 13, words.rstrip(), f"figure {verdict}", anchor="end")
    chart.rect(0, y + 19, 1, 16, "track")
    zero, edge = scale.place(0), scale.place(budget)
    chart.rect(edge, y + 19, 1 - edge, 16, "over")
    chart.line(zero, y + 17, zero, y + 37, "zero")
    chart.line(edge, y + 17, edge, y + 37, "budget")
    left, right = scale.place(low), scale.place(high)
    chart.rect(left, y + 23, max(right - left, 0.004), 8, f"bar {verdict}")
    chart.mark(scale.place(value), y + 27, "estimate", "dot", f"{value:+.2f}, allowed {budget:.2f}")


# --------------------------------------------------------------------------------------------------------------
# Recall


def recall_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], classes: Sequence[str]
) -> list[tuple[str, float, float]]:
    """(class, recall of PyTorch, of the engine), what fell most first; classes without a test picture are left out."""
    pairs = zip(classes, before["recall"], now["recall"], strict=False)
    known = [(name, b, a) for name, b, a in pairs if b is not None and a is not None]
    return sorted(known, key=lambda entry: entry[2] - entry[1])


def draw_recalls(changes: Sequence[tuple[str, float, float]], engine: str) -> str:
    """PyTorch's recall and the engine's, a row a class; ``changes`` as ``recall_changes`` gives them."""
    if not changes:
        return ""
    percent = [(name, 100 * before, 100 * now) for name, before, now in changes]
    least = min(min(before, now) for _, before, now in percent)
    scale = Scale(max(0.0, least - 0.15 * (100 - least) - 0.5), 100, 0.36, 0.72)
    chart = Chart(24 * len(percent) + 26)
    for number, (name, before, now) in enumerate(percent):
        y = 24 * number + 12
        chart.text(0, y + 4, shorten(name, 14), "name")
        chart.line(0.34, y, 0.74, y, "grid")
        kind = "fail" if now < before else "good" if now > before else "same"
        if now != before:
            chart.line(scale.place(before), y, scale.place(now), y, f"change {kind}")
        chart.mark(scale.place(before), y, "hollow s0", "dot")
        chart.mark(scale.place(now), y, f"mark {kind}", "dot", f"{name}: {before:.2f} % to {now:.2f} %")
        words = f"{before:.1f} → {now:.1f}" if now != before else f"{now:.1f}"
        chart.text(1, y + 4, words, f"figure {kind}" if now != before else "dim", anchor="end")
    legend = chart.height - 6
    chart.mark(0.36, legend - 4.5, "hollow s0", "dot")
    chart.text(0.36, legend, "PyTorch", "dim small", dx=9)
    chart.mark(0.6, legend - 4.5, "mark s1", "dot")
    chart.text(0.6, legend, shorten(engine, 18), "dim small", dx=9)
    return chart.write(f"Recall of each class by PyTorch and by {engine}, in percent")


# --------------------------------------------------------------------------------------------------------------
# Confusion


def confusion_matrix(accuracy: Mapping[str, Any]) -> NDArray[np.int64]:
    """The stored confusion as int64 (C, C), whether it is stored whole or by what is not zero."""
    stored = accuracy["confusion"]
    if not isinstance(stored, Mapping):
        return np.array(stored, np.int64)
    matrix = np.diag(np.array(stored["diagonal"], np.int64))
    for label, answer, count in stored["off_diagonal"]:
        matrix[label, answer] = count
    return matrix


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What changed from one confusion matrix to another: rows of labels, columns of answers.

    A cell is (its words, its CSS class); ``hidden`` counts the changed cells that there was no room for.
    """

    labels: list[str]
    answers: list[str]
    cells: list[list[tuple[str, str]]]
    hidden: int


def compare_confusions(
    before: NDArray[np.int64], now: NDArray[np.int64], classes: Sequence[str]
) -> HeatMap | None:
    """The change of int64 (C, C) counts, of at most ``MOST_CLASSES`` classes; ``None`` where nothing changed."""
    change = now - before
    if not change.any():
        return None
    rows = columns = np.arange(len(classes))
    if len(classes) > MOST_CLASSES:
        rows, columns = _most_changed(change)
    largest, shown = int(np.abs(change).max()), change[np.ix_(rows, columns)]
    cells = [
        [_cell(int(shown[i, j]), bool(row == column), largest) for j, column in enumerate(columns)]
        for i, row in enumerate(rows)
    ]
    hidden = int(np.count_nonzero(change) - np.count_nonzero(shown))
    return HeatMap([classes[int(i)] for i in rows], [classes[int(i)] for i in columns], cells, hidden)


def _most_changed(change: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels that changed most, and of their answers those that did, each in the order of the classes."""
    rows = np.sort(np.argsort(-np.abs(change).sum(axis=1), kind="stable")[:MOST_CLASSES])
    weight = np.abs(change[rows]).sum(axis=0)
    columns = np.sort(np.argsort(-weight, kind="stable")[:MOST_CLASSES])
    columns = columns[weight[columns] > 0]
    return rows[change[np.ix_(rows, columns)].any(axis=1)], columns


def _cell(value: int, right: bool, largest: int) -> tuple[str, str]:
    kinds = ["right"] if right else []
    if value:
        level = -(-_LEVELS * abs(value) // largest)
        kinds.append(f"{'worse' if (value < 0) == right else 'better'}{level}")
    return (f"{value:+d}" if value else "", " ".join(kinds))
