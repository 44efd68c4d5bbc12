"""Charts of several devices: what an image takes on each, and what each lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.report.charts.accuracy import draw_drops
from edgekiln.benchmarks.report.charts.svg import Chart, Scale, shorten

__all__ = ["draw_device_drops", "draw_device_latencies"]

_HEAD, _ROW, _AXIS = 24, 26, 40


def draw_device_latencies(fleet: Mapping[str, Any]) -> str:
    """Median and p99 of each variant on each device, on a scale of logarithms; empty where nothing was timed.

    The same variant has the same colour on every device. Times of an invalid benchmark are left out: they support no
    comparison.
    """
    valid = [
        d for d in fleet["devices"] if d["benchmark"] and d["benchmark"]["validity"]["state"] != "invalid"
    ]
    timed = [(device, [v for v in device["variants"] if v["latency"]]) for device in valid]
    timed = [(device, variants) for device, variants in timed if variants]
    if not timed:
        return ""
    names = list(dict.fromkeys(v["name"] for _, variants in timed for v in variants))
    ends = [ms for _, variants in timed for v in variants for ms in _ends(v)]
    scale = Scale(min(ends) / 1.3, max(ends) * 1.3, 0.3, 0.76, log=True)
    chart = Chart(sum(_HEAD + _ROW * len(variants) for _, variants in timed) + _AXIS)
    bottom, y = chart.height - _AXIS, 0
    _draw_axis(chart, scale, bottom)
    for device, variants in timed:
        chart.text(0, y + 16, shorten(device["name"], 28), "name")
        y += _HEAD
        for variant in variants:
            _draw_row(chart, y + 12, scale, variant, f"s{1 + names.index(variant['name']) % 7}")
            y += _ROW
    return chart.write(
        "Median and p99 of the time of one image, of each variant on each device, in milliseconds"
    )


def _draw_axis(chart: Chart, scale: Scale, y: float) -> None:
    """As ``Chart.axis``, below the columns that hold marks."""
    for tick in scale.ticks(4):
        chart.line(scale.place(tick), 0, scale.place(tick), y, "grid")
        chart.text(scale.place(tick), y + 15, f"{tick:g}", "dim", anchor="middle")
    chart.line(scale.first, y, scale.last, y, "axis")
    chart.text((scale.first + scale.last) / 2, y + 32, "milliseconds per image", "dim", anchor="middle")


def _draw_row(chart: Chart, y: float, scale: Scale, variant: Mapping[str, Any], kind: str) -> None:
    median, slow = _ends(variant)
    tail = "-" if variant["latency"]["p99_ms"] is None else f"{slow:.3g}"
    chart.text(0, y + 4, shorten(variant["name"], 13), "small")
    chart.line(scale.first, y, scale.last, y, "grid")
    chart.line(scale.place(median), y, scale.place(slow), y, f"change {kind}")
    told = f"{variant['name']}: median {median:.3g} ms, p99 {tail} ms"
    chart.mark(scale.place(median), y, f"mark {kind}", "dot", told)
    chart.text(1, y + 4, f"{median:.3g} / {tail}", "figure", anchor="end")


def _ends(variant: Mapping[str, Any]) -> tuple[float, float]:
    """Median and p99; the median twice where too few calls were timed for a p99."""
    median, slow = (variant["latency"][key] for key in ("p50_ms", "p99_ms"))
    median = float(median)
    if not (math.isfinite(median) and median > 0):
        raise ValueError(f"a median of {median} ms")
    return median, max(median, float(median if slow is None else slow))


def draw_device_drops(fleet: Mapping[str, Any], name: str) -> str:
    """The interval of what one variant lost on each device against its budget; empty where none judged it."""
    rows = [{**v, "name": d["name"]} for d in fleet["devices"] for v in d["variants"] if v["name"] == name]
    return draw_drops({"recipe": fleet["recipe"], "variants": rows})
