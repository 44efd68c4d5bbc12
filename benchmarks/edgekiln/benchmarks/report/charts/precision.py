"""Charts of what runs in which precision: shares of the products, and the search for blocks to keep in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.report.charts.svg import Chart, Scale, shorten, span_scale

__all__ = ["draw_precisions", "draw_search"]

_PRECISIONS = {
    "fp32": "s0", "tf32": "s5", "fp16": "s1", "bf16": "s7", "fp8": "s4", "int8": "s3", "int4": "s2", "unknown": "s6",
}  # fmt: skip
_ROW, _AXIS = 46, 40


def draw_precisions(report: Mapping[str, Any]) -> str:
    """Share of the MACs of one image by the precision they run in; empty where no audit counted them."""
    audited = [
        (v["name"], v["audit"]["macs"]) for v in report["variants"] if (v.get("audit") or {}).get("macs")
    ]
    audited = [(name, macs) for name, macs in audited if sum(macs.values())]
    if not audited:
        return ""
    precisions = sorted({key for _, macs in audited for key in macs}, key=_rank)
    bottom = _ROW * len(audited)
    chart = Chart(bottom + _AXIS + 20 * -(-len(precisions) // 4))
    for number, (name, macs) in enumerate(audited):
        y, left, total = _ROW * number, 0.0, sum(macs.values())
        main = max(macs, key=lambda key: macs[key])
        chart.text(0, y + 13, shorten(name), "name")
        chart.text(1, y + 13, f"{macs[main] / total:.0%} {main}", "figure", anchor="end")
        for precision in precisions:
            share = macs.get(precision, 0) / total
            if share:
                chart.rect(left, y + 19, share, 16, f"mark {_class_of(precision)}")
            left += share
    chart.axis(Scale(0, 100), bottom, "% of the MACs", top=bottom)
    chart.legend(bottom + _AXIS + 14, [(p, f"mark {_class_of(p)}", "square") for p in precisions])
    return chart.write("Stacked bars: share of the multiply-accumulates by precision, for each engine")


def _rank(precision: str) -> tuple[int, str]:
    known = list(_PRECISIONS)
    return (known.index(precision) if precision in known else len(known), precision)


def _class_of(precision: str) -> str:
    return _PRECISIONS.get(precision, _PRECISIONS["unknown"])


def draw_search(search: Mapping[str, Any]) -> str:
    """The closed loop's curve: top-1 on val against FP32 over the share of MACs in INT8, with budget and choice.

    Sets that answered NaN have no drop and no point. Empty where nothing was searched.
    """
    points = sorted(
        (100 * p["share_quantized"], -100 * p["drop"]) for p in search["curve"] if p["drop"] is not None
    )
    if search["verdict"] == "not-needed" or not points:
        return ""
    chosen, budget = _chosen_point(search), -100 * search["max_drop"]
    chart = Chart(270)
    across = span_scale([x for x, _ in points])
    up = span_scale([budget, *(y for _, y in points)], margin=0.12, first=chart.height - 66, last=22)
    chart.axis(across, chart.height - 60, "% of the MACs in INT8", top=16)
    chart.rules(up, "+g")
    chart.text(0, 10, "top-1 against FP32, points", "dim small")
    chart.line(0, up.place(budget), 1, up.place(budget), "budget")
    places = [(across.place(x), up.place(y)) for x, y in points]
    if len(places) > 1:
        chart.path(places, "line s1")
    for place, (x, y) in zip(places, points, strict=True):
        chart.mark(*place, "mark s1", title=f"{x:.1f} % in INT8: {y:+.2f} points")
    entries = [("sets tried", "mark s1", "dot"), ("budget", "mark fail", "square")]
    if chosen is not None:
        chart.mark(across.place(chosen[0]), up.place(chosen[1]), "mark good", "diamond")
        entries.append(("chosen", "mark good", "diamond"))
    chart.legend(chart.height - 5, entries, 3)
    return chart.write("Scatter plot: accuracy over the share of INT8, for each set of blocks that was tried")


def _chosen_point(search: Mapping[str, Any]) -> tuple[float, float] | None:
    """Nothing in records from before the choice was kept: names and counts of the curve do not tell it."""
    point = search.get("chosen")
    if search["verdict"] != "found" or point is None or point["drop"] is None:
        return None
    return 100 * point["share_quantized"], -100 * point["drop"]
