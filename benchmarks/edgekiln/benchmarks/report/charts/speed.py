"""Charts of time: speed-ups, single calls, how they went over time, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.report.charts.svg import Chart, Scale, shorten
from edgekiln.benchmarks.report.timings import find_reference, shown_name

__all__ = ["draw_accuracy_latency", "draw_distributions", "draw_series", "draw_speedups", "pareto_front"]

_ROW = 46  # pixels of a row: a line of words, a bar below it
_AXIS = 40
_FLOOR_REACH = 5.0
"""A floor further away than so many times the fastest engine would press all bars flat: it is told, not drawn."""


# --------------------------------------------------------------------------------------------------------------
# Speed-ups


def draw_speedups(report: Mapping[str, Any]) -> str:
    """One bar an engine with the interval of its speed-up and the place of its floor; empty without any speed-up."""
    engines = [e for e in (*report["variants"], *report.get("peers", ())) if e.get("speedup")]
    if not engines:
        return ""
    floors = [_floor_of(report, engine) for engine in engines]
    widest = max(engine["speedup"]["high"] for engine in engines)
    near = [floor for floor in floors if floor is not None and floor <= _FLOOR_REACH * widest]
    scale = Scale(0, 1.04 * max([widest, 1.2, *near]))
    chart = Chart(_ROW * len(engines) + _AXIS)
    chart.axis(scale, _ROW * len(engines), f"times as fast as {_reference_name(report)}", top=0)
    for number, (engine, floor) in enumerate(zip(engines, floors, strict=True)):
        _draw_speedup(chart, _ROW * number, scale, engine, floor)
    return chart.write(f"Bar chart: how many times as fast as {_reference_name(report)} each engine is")


def _reference_name(report: Mapping[str, Any]) -> str:
    return find_reference(report) or "PyTorch"


def _floor_of(report: Mapping[str, Any], engine: Mapping[str, Any]) -> float | None:
    """The speed-up that an engine at its floor would have."""
    reference = find_reference(report)
    own = (
        report["baseline"]
        if reference is None
        else next((v for v in report["variants"] if v["name"] == reference), {})
    )
    base, floor = (own.get("latency") or {}).get("p50_ms"), (engine.get("latency") or {}).get("floor_ms")
    return base / floor if base and floor else None


def _draw_speedup(
    chart: Chart, y: float, scale: Scale, engine: Mapping[str, Any], floor: float | None
) -> None:
    value, low, high = (engine["speedup"][key] for key in ("value", "low", "high"))
    chart.text(0, y + 13, shorten(engine["name"]), "name")
    chart.text(1, y + 13, f"{value:.2f}x [{low:.2f}, {high:.2f}]", "figure", anchor="end")
    chart.rect(0, y + 19, 1, 16, "track")
    chart.rect(0, y + 19, scale.place(value), 16, "bar" if "verdict" in engine else "bar s0")
    chart.line(scale.place(1), y + 17, scale.place(1), y + 37, "reference")
    _draw_interval(chart, y + 27, scale.place(low), scale.place(high))
    if floor is None:
        return
    if floor > scale.high:
        chart.text(1, y + 31, f"floor {floor:.0f}x →", "dim small", anchor="end", dx=-4)
        return
    place = scale.place(floor)
    chart.line(place, y + 16, place, y + 38, "floor")
    if place - scale.place(high) > 0.2:
        chart.text(place, y + 31, f"floor {floor:.3g}x", "dim small", anchor="end", dx=-5)


def _draw_interval(chart: Chart, y: float, low: float, high: float) -> None:
    chart.line(low, y, high, y, "interval")
    for end in (low, high):
        chart.line(end, y - 5, end, y + 5, "interval")


# --------------------------------------------------------------------------------------------------------------
# Single calls


def draw_distributions(report: Mapping[str, Any]) -> str:
    """Quartiles as a box, 1 % to 99 % as a line, of the single calls of each engine."""
    measurements = report["benchmark"]["measurements"]
    quantiles = [np.percentile(_all_times(m), (1, 25, 50, 75, 99)) for m in measurements]
    scale = Scale(0, 1.04 * float(max(values[-1] for values in quantiles)))
    chart = Chart(_ROW * len(measurements) + _AXIS)
    chart.axis(scale, _ROW * len(measurements), "milliseconds per call", top=0)
    for number, (measurement, values) in enumerate(zip(measurements, quantiles, strict=True)):
        y = _ROW * number
        low, first, middle, third, high = (scale.place(float(value)) for value in values)
        chart.text(0, y + 13, shorten(shown_name(measurement)), "name")
        chart.text(1, y + 13, f"{values[2]:.3g} ms, p99 {values[4]:.3g}", "figure", anchor="end")
        chart.rect(0, y + 19, 1, 16, "track")
        _draw_interval(chart, y + 27, low, high)
        chart.rect(first, y + 20, third - first, 14, "bar")
        chart.line(middle, y + 18, middle, y + 36, "median")
    return chart.write("Box plot: time of single calls of each engine")


def _all_times(measurement: Mapping[str, Any]) -> NDArray[np.float64]:
    """Milliseconds."""
    return np.concatenate([np.array(block["times_us"], np.float64) for block in measurement["blocks"]]) / 1000


_SERIES_ROW, _SERIES_LINE = 84, 52


def draw_series(report: Mapping[str, Any]) -> str:
    """Block medians in the order of time, an engine a row; a machine that throttles climbs in all of them."""
    measurements = report["benchmark"]["measurements"]
    chart = Chart(_SERIES_ROW * len(measurements) + 16)
    for number, measurement in enumerate(measurements):
        _draw_series_row(chart, _SERIES_ROW * number, measurement)
    chart.text(0.5, chart.height - 4, "blocks of calls, in order of time", "dim", anchor="middle")
    return chart.write("Line chart: median time of each block of calls, in order of time, for each engine")


def _draw_series_row(chart: Chart, y: float, measurement: Mapping[str, Any]) -> None:
    blocks = sorted(
        (b for b in measurement["blocks"] if b["turn"] == 0), key=lambda b: (b["process"], b["index"])
    )
    medians = [float(np.median(b["times_us"])) / 1000 for b in blocks]
    # One stalled block must not press all others flat: a point above twice the median stands on the upper edge.
    top = min(2 * float(np.median(medians)), 1.1 * max(medians))
    across, up = Scale(-0.5, len(blocks) - 0.5), Scale(0, top, y + 20 + _SERIES_LINE, y + 20)
    chart.text(0, y + 13, shorten(shown_name(measurement)), "name")
    chart.text(1, y + 13, f"0 to {top:.3g} ms", "dim small", anchor="end")
    chart.rect(0, y + 20, 1, _SERIES_LINE, "track")
    for process in sorted({b["process"] for b in blocks}):
        places = [i for i, block in enumerate(blocks) if block["process"] == process]
        points = [(across.place(i), up.place(medians[i])) for i in places]
        if len(points) > 1:
            chart.path(points, "line s1")
        else:
            chart.mark(*points[0], "mark s1", "small")
        if places[0] > 0:
            edge = across.place(places[0] - 0.5)
            chart.line(edge, y + 20, edge, y + 20 + _SERIES_LINE, "reference")
    for i, median in enumerate(medians):
        if median > top:
            chart.mark(across.place(i), y + 22, "mark ink", "triangle", f"{median:.3g} ms")


# --------------------------------------------------------------------------------------------------------------
# Accuracy against latency


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (latency, accuracy) pairs that no other beats in one without losing in the other, fastest first.

    Of equal pairs the first is taken.
    """
    best, front = -np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def draw_accuracy_latency(report: Mapping[str, Any]) -> str:
    """Top-1 over median latency, one labelled point an engine, with the Pareto front.

    Empty where nothing may be compared: an invalid benchmark supports no comparison, so it gets no front.
    """
    benchmark = report.get("benchmark")
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"], *_peers_with_accuracy(report)]
    engines = [e for e in engines if e.get("latency") and e.get("accuracy")]
    if not benchmark or benchmark["validity"]["state"] == "invalid" or len(engines) < 2:
        return ""
    values = [(e["latency"]["p50_ms"], 100 * e["accuracy"]["top1"]) for e in engines]
    chart = Chart(300)
    across, up = _time_scale([v[0] for v in values]), _accuracy_scale([v[1] for v in values], chart.height)
    chart.axis(across, chart.height - _AXIS, "median milliseconds per image", top=16)
    chart.rules(up)
    chart.text(0, 10, "top-1 %", "dim small")
    points = [(across.place(x), up.place(y)) for x, y in values]
    front = pareto_front(values)
    chart.path(_as_steps([points[i] for i in front]), "line s0")
    for i, (point, label) in enumerate(zip(points, _place_labels(engines, points), strict=True)):
        told = f"{engines[i]['name']}: {values[i][0]:.3g} ms, {values[i][1]:.2f} %"
        chart.mark(*point, "mark s1" if i in front else "hollow s0", "dot" if i in front else "cross", told)
        chart.text(label.x, label.y, shorten(engines[i]["name"]), "name", anchor=label.anchor, dx=label.dx)
    return chart.write("Scatter plot: top-1 accuracy over median latency, a point an engine")


def _peers_with_accuracy(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peers with their own accuracy, or that of whose answers theirs were checked against: a variant's or PyTorch's."""
    accuracies = {variant["name"]: variant.get("accuracy") for variant in report["variants"]}
    return [
        {
            **peer,
            "accuracy": peer.get("accuracy")
            or accuracies.get(peer["name"].partition(":")[2], report["baseline"].get("accuracy")),
        }
        for peer in report.get("peers", ())
    ]


def _time_scale(times: Sequence[float]) -> Scale:
    if max(times) > 20 * min(times):
        return Scale(min(times) / 1.3, max(times) * 1.3, log=True)
    return Scale(0, 1.08 * max(times))


def _accuracy_scale(values: Sequence[float], height: float) -> Scale:
    room = max(0.25 * (max(values) - min(values)), 0.3)
    return Scale(min(values) - room, min(max(values) + room, 100.3), height - _AXIS - 6, 26)


def _as_steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners between points too: from one engine to the next nothing is known to lie between."""
    steps = list(points[:1])
    for x, y in points[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    return steps


class _Label(NamedTuple):
    x: float
    y: float
    anchor: str
    dx: float
    box: tuple[float, float, float, float]


_NARROW, _LETTER = (
    330,
    8.8,
)  # pixels: a chart on a phone, a bold letter of a wide font; what fits there fits anywhere


def _place_labels(
    engines: Sequence[Mapping[str, Any]], points: Sequence[tuple[float, float]]
) -> list[_Label]:
    """A place for each name, near its point, where it covers neither a point nor another name if there is one."""
    taken = [(_NARROW * x - 6, y - 6, _NARROW * x + 6, y + 6) for x, y in points]
    labels: list[_Label] = []
    for engine, (x, y) in zip(engines, points, strict=True):
        width = _LETTER * len(shorten(engine["name"]))
        offers = [
            _offer(x, y + dy, anchor, width)
            for dy in (4, -12, 20, -28, 36, -44, 52)
            for anchor in ("start", "end")
        ]
        inside = [offer for offer in offers if _is_inside(offer.box)] or offers
        free = [offer for offer in inside if not any(_overlap(offer.box, other) for other in taken)]
        label = (free or inside)[0]
        taken.append(label.box)
        labels.append(label)
    return labels


def _offer(x: float, y: float, anchor: str, width: float) -> _Label:
    left = _NARROW * x + 9 if anchor == "start" else _NARROW * x - 9 - width
    return _Label(x, y, anchor, 9 if anchor == "start" else -9, (left, y - 11, left + width, y + 4))


def _is_inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= 0 and box[2] <= _NARROW and box[1] >= 12 and box[3] <= 262


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
