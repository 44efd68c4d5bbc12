"""Charts of training: the curves of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.report.charts.svg import Chart, Scale, span_scale

__all__ = ["draw_training"]

_LOSSES = {
    "val_loss": ("val", "ink"), "loss": ("loss", "s1"), "target_loss": ("target", "s2"),
    "source_loss": ("source", "s3"), "teacher_loss": ("teacher", "s4"),
}  # fmt: skip
_AXIS = 40


def draw_training(report: Mapping[str, Any]) -> str:
    """Val top-1, mean losses and, where it is known, the learning rate by epoch, the kept epoch marked.

    Empty where nothing was trained.
    """
    training = report.get("training") or {"epochs": []}
    epochs = training["epochs"]
    if len(epochs) < 2:
        return ""
    losses = [key for key in _LOSSES if any(key in epoch for epoch in epochs)]
    rates = any("learning_rate" in epoch for epoch in epochs)
    legend = 20 * -(-len(losses) // 3)
    chart = Chart(150 + 20 + legend + 140 + (90 if rates else 0) + _AXIS)
    numbers = [epoch["epoch"] for epoch in epochs]
    across = Scale(min(numbers), max(numbers), 0.09, 0.97)
    bottom = chart.height - _AXIS
    _draw_axis(chart, across, bottom, numbers)
    if training["best_epoch"] is not None:
        place = across.place(training["best_epoch"])
        chart.line(place, 14, place, bottom, "reference")
    _draw_panel(chart, across, (10, 140), "val top-1, %", [(_scaled(epochs, "val_top1", 100), "s1")])
    lines = [(_scaled(epochs, key), _LOSSES[key][1]) for key in losses]
    chart.legend(190, [(_LOSSES[key][0], f"mark {_LOSSES[key][1]}", "square") for key in losses], 3)
    _draw_panel(chart, across, (164, 150 + 20 + legend + 130), "mean loss", lines, head=legend + 8)
    if rates:
        _draw_panel(
            chart, across, (bottom - 82, bottom - 2), "rate", [(_scaled(epochs, "learning_rate"), "s0")]
        )
    return chart.write("Line chart: accuracy on val, losses and learning rate by epoch")


def _scaled(epochs: Sequence[Mapping[str, Any]], key: str, factor: float = 1) -> list[tuple[float, float]]:
    return [(epoch["epoch"], factor * epoch[key]) for epoch in epochs if key in epoch]


def _draw_axis(chart: Chart, across: Scale, bottom: float, numbers: Sequence[int]) -> None:
    step = -(-(numbers[-1] - numbers[0]) // 8) or 1
    for number in range(numbers[0], numbers[-1] + 1, step):
        chart.text(across.place(number), bottom + 15, str(number), "dim", anchor="middle")
    chart.line(0, bottom, 1, bottom, "axis")
    chart.text(0.5, bottom + 32, "epoch; 0 is before training", "dim", anchor="middle")


def _draw_panel(
    chart: Chart,
    across: Scale,
    span: tuple[float, float],
    title: str,
    lines: Sequence[tuple[Sequence[tuple[float, float]], str]],
    *,
    head: float = 8,
) -> None:
    top, bottom = span
    chart.text(0, top, title, "dim small")
    values = [value for points, _ in lines for _, value in points]
    up = span_scale(values, margin=0.1, first=bottom, last=top + head + 6)
    chart.rules(up, most=3)
    for points, kind in lines:
        places = [(across.place(x), up.place(y)) for x, y in points]
        if len(places) > 1:
            chart.path(places, f"line {kind}")
        for place, (epoch, value) in zip(places, points, strict=True):
            chart.mark(*place, f"mark {kind}", "small", f"epoch {epoch}: {value:.4g}")
