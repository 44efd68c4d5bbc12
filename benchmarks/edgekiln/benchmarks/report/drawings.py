"""The drawings of a report: from its JSON values to SVG text that reads on light and dark pages.

Lines and letters are in ``currentColor``, so that they follow the page; series are in middle tones that stand out
from white and from black. The same report gives the same bytes, and no two drawings of a page share an id.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.report.timings import shown_name
from edgekiln.runtime.extras import import_extra

__all__ = [
    "confusion_matrix",
    "draw_accuracy_latency",
    "draw_confusion",
    "draw_distributions",
    "draw_precisions",
    "draw_recall_losses",
    "draw_search",
    "draw_series",
    "draw_training",
    "pareto_front",
    "save_drawing",
    "scale_by_logarithm",
]

_INK = "#010203"  # stands for currentColor, which matplotlib does not know
_COLORS = ("#7f8c99", "#3b82c4", "#d9662b", "#2e9e6b", "#b85fb0", "#a88414", "#c44e5a", "#4aa3b5")
_WORSE, _BETTER = "#d9662b", "#3b82c4"
_PRECISIONS = {
    "fp32": "#7f8c99", "tf32": "#9a8f7a", "fp16": "#3b82c4", "bf16": "#4aa3b5", "fp8": "#b85fb0", "int8": "#2e9e6b",
    "int4": "#a88414", "unknown": "#c44e5a",
}  # fmt: skip
_WIDTH = 4.8  # inches: at 390 pixels letters keep their size, so the page reads on a phone
_MAX_NAME = 22
MOST_LOSSES = 12

# --------------------------------------------------------------------------------------------------------------
# Latency and accuracy


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
    """Top-1 over median latency, one point an engine, with the Pareto front; empty where nothing may be compared.

    An invalid benchmark supports no comparison, so it gets no front.
    """
    benchmark = report.get("benchmark")
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"], *_peers_with_accuracy(report)]
    engines = [e for e in engines if e.get("latency") and e.get("accuracy")]
    if not benchmark or benchmark["validity"]["state"] == "invalid" or len(engines) < 2:
        return ""
    points = [(e["latency"]["p50_ms"], 100 * e["accuracy"]["top1"]) for e in engines]
    front = [points[i] for i in pareto_front(points)]

    def draw(axes: Any) -> None:
        axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color=_COLORS[0], linewidth=1, zorder=1)
        for number, (engine, point) in enumerate(zip(engines, points, strict=True)):
            axes.plot(
                *point, "o" if point in front else "x", color=_color(number), label=_short(engine["name"])
            )
        if max(p[0] for p in points) > 20 * min(p[0] for p in points):
            scale_by_logarithm(axes)
        else:
            axes.set_xlim(0, 1.05 * max(p[0] for p in points))
        axes.margins(y=0.15)
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
        axes.set_xlabel("median milliseconds per image")
        axes.set_ylabel("top-1 %")
        _add_legend(axes)

    return save_drawing("pareto", (_WIDTH, 2.7 + _legend_height(len(engines))), lambda f: draw(f.subplots()))


def _peers_with_accuracy(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peers with the accuracy of those whose answers theirs were checked against: ``LIBRARY:VARIANT``, or PyTorch."""
    accuracies = {variant["name"]: variant.get("accuracy") for variant in report["variants"]}
    return [
        {
            **peer,
            "accuracy": accuracies.get(peer["name"].partition(":")[2], report["baseline"].get("accuracy")),
        }
        for peer in report.get("peers", ())
    ]


def scale_by_logarithm(axes: Any) -> None:
    """A logarithmic horizontal axis with plain numbers."""
    ticker = import_extra("matplotlib.ticker", "build")
    axes.set_xscale("log")
    # The usual labels are mathematical text, which is off: names may hold a dollar sign.
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def draw_distributions(report: Mapping[str, Any]) -> str:
    """Box plot of single-call times per engine."""
    measurements = report["benchmark"]["measurements"]
    times = [np.concatenate([np.array(b["times_us"]) for b in m["blocks"]]) / 1000 for m in measurements]

    def draw(axes: Any) -> None:
        boxes = axes.boxplot(
            times[::-1],
            orientation="horizontal",
            whis=(1, 99),
            showfliers=False,
            widths=0.6,
            patch_artist=True,
        )
        for number, box in enumerate(boxes["boxes"][::-1]):
            box.set(facecolor=_color(number), alpha=0.7)
        for line in (*boxes["whiskers"], *boxes["caps"], *boxes["medians"], *boxes["boxes"]):
            line.set(color=_INK) if line not in boxes["boxes"] else line.set(edgecolor=_INK)
        axes.set_yticks(range(1, len(times) + 1), _names(measurements)[::-1])
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds per call")

    return save_drawing("latency", (_WIDTH, 0.9 + 0.4 * len(times)), lambda f: draw(f.subplots()))


def draw_series(report: Mapping[str, Any]) -> str:
    """Block medians in the order of time, an engine a row; a machine that throttles climbs in all of them."""
    measurements = report["benchmark"]["measurements"]

    def draw(figure: Any) -> None:
        rows = figure.subplots(len(measurements), 1, sharex=True, squeeze=False)[:, 0]
        for number, (axes, measurement) in enumerate(zip(rows, measurements, strict=True)):
            _draw_series_row(axes, measurement, _color(number))
            axes.set_title(_names(measurements)[number], loc="left", fontsize=8, pad=2)
        rows[-1].set_xlabel("block, in order; upright lines: a fresh process")
        figure.supylabel("milliseconds", fontsize=9)

    return save_drawing("series", (_WIDTH, 0.8 + 0.85 * len(measurements)), draw)


def _draw_series_row(axes: Any, measurement: Mapping[str, Any], color: str) -> None:
    blocks = sorted(
        (b for b in measurement["blocks"] if b["turn"] == 0), key=lambda b: (b["process"], b["index"])
    )
    medians = np.array([np.median(b["times_us"]) for b in blocks]) / 1000
    processes = np.array([b["process"] for b in blocks])
    for process in np.unique(processes):
        places = np.flatnonzero(processes == process)
        axes.plot(places, medians[places], ".-", color=color, linewidth=1, markersize=3)
        if places[0] > 0:
            axes.axvline(places[0] - 0.5, color=_INK, alpha=0.4, linewidth=0.8, linestyle=":")
    # One stalled block must not press all others flat: a point above twice the median stands on the upper edge.
    top = 2 * float(np.median(medians))
    above = np.flatnonzero(medians > top)
    if len(above):
        axes.plot(above, np.full(len(above), top), "^", color=_INK, markersize=4, clip_on=False)
    axes.set_ylim(0, top if len(above) else 1.15 * float(medians.max()))


# --------------------------------------------------------------------------------------------------------------
# Training


_LOSS_NAMES = {"loss": "loss", "target_loss": "target", "source_loss": "source", "teacher_loss": "teacher"}


def draw_training(report: Mapping[str, Any]) -> str:
    """Val top-1, mean losses and, where it is known, the learning rate by epoch, the kept epoch marked.

    Empty where nothing was trained.
    """
    training = report.get("training") or {"epochs": []}
    epochs = training["epochs"]
    if len(epochs) < 2:
        return ""
    rates = [(e["epoch"], e["learning_rate"]) for e in epochs if "learning_rate" in e]

    def draw(figure: Any) -> None:
        rows = figure.subplots(
            3 if rates else 2, 1, sharex=True, height_ratios=[3, 3, 1.5][: 3 if rates else 2]
        )
        upper, lower = rows[:2]
        _plot_epochs(upper, [(e["epoch"], 100 * e["val_top1"]) for e in epochs], "o-", _color(1), None)
        upper.set_ylabel("val top-1, %")
        for number, (key, name) in enumerate(_LOSS_NAMES.items()):
            _plot_epochs(
                lower, [(e["epoch"], e[key]) for e in epochs if key in e], ".-", _color(number), name
            )
        _plot_epochs(lower, [(e["epoch"], e["val_loss"]) for e in epochs], "--", _INK, "val")
        for axes in rows if training["best_epoch"] is not None else ():
            axes.axvline(training["best_epoch"], color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
        lower.set_ylabel("loss")
        lower.legend(fontsize=8, frameon=False)
        if rates:
            _plot_epochs(rows[2], rates, ".-", _color(0), None)
            rows[2].set_ylabel("rate")
            rows[2].set_ylim(bottom=0)
        rows[-1].set_xlabel("epoch; 0 is before training")

    return save_drawing("training", (_WIDTH, 4.4 if rates else 3.6), draw)


def _plot_epochs(
    axes: Any, points: Sequence[tuple[float, float]], style: str, color: str, label: str | None
) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, linewidth=1, markersize=4, label=label)


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


def draw_confusion(
    before: NDArray[np.int64], now: NDArray[np.int64], classes: Sequence[str], salt: str
) -> str:
    """What changed from one confusion matrix to another, cell by cell; for few classes. Empty where nothing did."""
    change, count = now - before, len(classes)
    if not change.any():
        return ""
    patches = import_extra("matplotlib.patches", "build")

    def draw(axes: Any) -> None:
        largest = np.abs(change).max()
        for row, column in zip(*np.nonzero(change), strict=True):
            value = int(change[row, column])
            worse = (value < 0) == (row == column)
            axes.add_patch(
                patches.Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor=_WORSE if worse else _BETTER,
                    alpha=0.25 + 0.6 * abs(value) / largest, linewidth=0,
                )
            )  # fmt: skip
            axes.text(column, row, f"{value:+d}", ha="center", va="center", fontsize=9 if count <= 10 else 6)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        names = [_short(name, 12) for name in classes]
        axes.set_xticks(range(count), names, rotation=90 if count > 4 or max(map(len, names)) > 6 else 0)
        axes.set_yticks(range(count), names)
        axes.set_xlabel("answer")
        axes.set_ylabel("label")

    side = min(4.6, 1.6 + 0.45 * count)
    return save_drawing(salt, (_WIDTH, side), lambda f: draw(f.subplots()))


def draw_recall_losses(losses: Sequence[tuple[str, float]], salt: str) -> str:
    """The change of recall, in points, of the classes that lost most; ``losses`` are (class, change as a share)."""
    if not losses:
        return ""

    def draw(axes: Any) -> None:
        values = [100 * change for _, change in losses]
        bars = axes.barh(range(len(losses)), values, color=_WORSE, height=0.7)
        axes.bar_label(bars, [f"{value:+.1f}" for value in values], padding=2, fontsize=7)
        axes.set_yticks(range(len(losses)), [_short(name) for name, _ in losses])
        axes.invert_yaxis()
        axes.set_xlim(1.2 * min(values), 0)
        axes.set_xlabel("change of recall, points")

    return save_drawing(salt, (_WIDTH, 0.7 + 0.24 * len(losses)), lambda f: draw(f.subplots()))


# --------------------------------------------------------------------------------------------------------------
# Precision


def draw_precisions(report: Mapping[str, Any]) -> str:
    """Share of the MACs of one image by the precision they run in; empty where no audit counted them."""
    audited = [
        (v["name"], v["audit"]["macs"]) for v in report["variants"] if (v.get("audit") or {}).get("macs")
    ]
    audited = [(name, macs) for name, macs in audited if sum(macs.values())]
    if not audited:
        return ""
    precisions = sorted({key for _, macs in audited for key in macs}, key=_rank)

    def draw(axes: Any) -> None:
        left = np.zeros(len(audited))
        for precision in precisions:
            shares = np.array([100 * macs.get(precision, 0) / sum(macs.values()) for _, macs in audited])
            color = _PRECISIONS.get(precision, _PRECISIONS["unknown"])
            axes.barh(range(len(audited)), shares, left=left, label=precision, color=color, height=0.6)
            left += shares
        axes.set_yticks(range(len(audited)), [_short(name) for name, _ in audited])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the MACs")
        _add_legend(axes)

    height = 0.8 + 0.35 * len(audited) + _legend_height(len(precisions))
    return save_drawing("precision", (_WIDTH, height), lambda f: draw(f.subplots()))


def draw_search(search: Mapping[str, Any], salt: str) -> str:
    """The closed loop's curve: top-1 on val against FP32 over the share of MACs in INT8, with budget and choice.

    Sets that answered NaN have no drop and no point. Empty where nothing was searched.
    """
    points = [
        (100 * p["share_quantized"], -100 * p["drop"]) for p in search["curve"] if p["drop"] is not None
    ]
    if search["verdict"] == "not-needed" or not points:
        return ""
    chosen = _chosen_point(search)

    def draw(axes: Any) -> None:
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=_COLORS[1], linewidth=1, markersize=4,
                  label="sets tried")  # fmt: skip
        axes.axhline(-100 * search["max_drop"], color=_WORSE, linewidth=1, linestyle="--", label="budget")
        if chosen is not None:
            axes.plot(*chosen, "D", color=_PRECISIONS["int8"], markersize=8, label="chosen")
        axes.margins(x=0.08, y=0.15)
        axes.set_xlabel("% of the MACs in INT8")
        axes.set_ylabel("top-1 against FP32, points")
        _add_legend(axes)

    return save_drawing(salt, (_WIDTH, 2.9), lambda f: draw(f.subplots()))


def _chosen_point(search: Mapping[str, Any]) -> tuple[float, float] | None:
    """Nothing in records from before the choice was kept: names and counts of the curve do not tell it."""
    point = search.get("chosen")
    if search["verdict"] != "found" or point is None or point["drop"] is None:
        return None
    return 100 * point["share_quantized"], -100 * point["drop"]


def _rank(precision: str) -> tuple[int, str]:
    known = list(_PRECISIONS)
    return (known.index(precision) if precision in known else len(known), precision)


# --------------------------------------------------------------------------------------------------------------
# Parts


def _names(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_short(shown_name(m)) for m in measurements]


def _short(name: str, length: int = _MAX_NAME) -> str:
    """A name that leaves room for the drawing; line breaks and other controls are no part of it."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    end = length // 2  # the middle goes: names often differ in their last letters only
    return name if len(name) <= length else f"{name[: length - end - 1]}…{name[-end:]}"


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _legend_height(entries: int) -> float:
    return 0.22 * ((entries + 2) // 3)


def _add_legend(axes: Any) -> None:
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, handlelength=1)


def save_drawing(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """One drawing as an ``<svg>`` element; ``name`` is unique on the page."""
    matplotlib = import_extra("matplotlib", "build")
    figure_module = import_extra("matplotlib.figure", "build")
    colors = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        _INK,
    )
    style = {
        "svg.hashsalt": name,  # with no date below: the same report gives the same bytes
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,  # a class may be called $x$
        "axes.spines.top": False,
        "axes.spines.right": False,
        **colors,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Letters are drawn by the browser; matplotlib's own font, which only measures them, may lack some.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        # Names too long for a layout leave the default one: a crowded drawing must not cost the run its report.
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure = figure_module.Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    # Only inside tags: names that stand as text are escaped, and stay as they are.
    return re.sub(r"<[^<>]*>", lambda tag: _adapt_tag(tag[0], name), text[text.index("<svg") :])


def _adapt_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    return tag.replace(_INK, "currentColor")
