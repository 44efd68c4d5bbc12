"""What the charts of a report draw, read back from their SVG."""

import math
import re
from html import unescape
from xml.etree import ElementTree as ET  # our own text

import numpy as np
import pytest
from report_support import make_fleet, make_report

from edgekiln.benchmarks.report.charts.accuracy import (
    MOST_CLASSES,
    compare_confusions,
    confusion_matrix,
    draw_drops,
    draw_recalls,
    recall_changes,
)
from edgekiln.benchmarks.report.charts.fleet import draw_device_drops, draw_device_latencies
from edgekiln.benchmarks.report.charts.precision import draw_precisions
from edgekiln.benchmarks.report.charts.speed import (
    draw_accuracy_latency,
    draw_distributions,
    draw_series,
    draw_speedups,
    pareto_front,
)
from edgekiln.benchmarks.report.charts.svg import Chart, Scale, shorten


@pytest.fixture
def report():
    return make_report(60, ["a", "b", "c"], processes=2, blocks=4, state="valid")


def parts(chart, tag, kind):
    """The elements of one kind, with their places as numbers: shares in percent, the rest in pixels."""
    found = [e for e in ET.fromstring(chart).iter(tag) if kind in e.get("class", "").split()]
    return [{k: float(v.rstrip("%")) for k, v in e.items() if k in PLACES} for e in found]


PLACES = {"x", "y", "x1", "x2", "width", "height"}


# -- scales and parts


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 8.4), [0, 2, 4, 6, 8]),
        (Scale(-1.28, 2.5), [-1, 0, 1, 2]),
        (Scale(20, 100.5), [20, 40, 60, 80, 100]),
        (Scale(0, 0.0003), [0, 0.0001, 0.0002, 0.0003]),
        (Scale(1, 60, log=True), [1, 5, 20]),
    ],
)
def test_ticks_are_round_and_inside(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


def test_a_scale_places_values_and_keeps_outliers_on_its_end():
    assert [Scale(0, 10, 0.1, 0.9).place(v) for v in (0, 5, 10, 99, -99)] == pytest.approx(
        [0.1, 0.5, 0.9, 0.9, 0.1]
    )
    assert Scale(1, 100, log=True).place(10) == pytest.approx(0.5)
    assert Scale(1, 100, 100, 0, log=True).place(1000) == 0


@pytest.mark.parametrize("words", ["<b>", "a & b", 'id="x', "犬", "</text><script>"])
def test_words_are_escaped_wherever_they_stand(words):
    chart = Chart(10)
    chart.text(0, 5, words)
    chart.mark(0.5, 5, "mark", title=words)
    text = chart.write(words)
    root = ET.fromstring(text)
    assert [e.text for e in root.iter() if e.tag in {"text", "title"}] == [words, words]
    assert root.get("aria-label") == words
    assert "<script" not in text


def test_a_long_name_keeps_both_ends_and_loses_controls():
    assert shorten("rtx-int8-per-channel-entropy-512", 16) == "rtx-int…ropy-512"
    assert shorten("a\nb\x00c") == "a b c"


# -- speed


def test_bars_end_at_the_speed_up_and_the_interval_stands_on_them(report):
    chart = draw_speedups(report)
    engines = [v for v in report["variants"] if v.get("speedup")]
    bars, intervals = parts(chart, "rect", "bar"), parts(chart, "line", "interval")
    assert len(bars) == len(engines) == 3
    unit = bars[0]["width"] / engines[0]["speedup"]["value"]
    for number, engine in enumerate(engines):
        low, high = intervals[3 * number]["x1"], intervals[3 * number]["x2"]
        assert (bars[number]["width"] / unit, low / unit, high / unit) == pytest.approx(
            [engine["speedup"][key] for key in ("value", "low", "high")], rel=1e-3
        )


@pytest.mark.parametrize(("floor_ms", "drawn"), [(0.4, True), (0.001, False)])
def test_a_floor_is_drawn_where_the_axis_reaches_it_and_told_where_not(report, floor_ms, drawn):
    report["variants"] = report["variants"][:1]
    report["variants"][0]["latency"]["floor_ms"] = floor_ms
    chart = draw_speedups(report)
    at_floor = report["baseline"]["latency"]["p50_ms"] / floor_ms
    lines = parts(chart, "line", "floor")
    if drawn:
        speedup = report["variants"][0]["speedup"]["value"]
        assert lines[0]["x1"] / parts(chart, "rect", "bar")[0]["width"] == pytest.approx(
            at_floor / speedup, rel=1e-3
        )
    else:
        assert not lines
        assert f">floor {at_floor:.0f}x →<" in chart


def test_speed_ups_over_another_engine_say_so(report):
    report["benchmark"]["reference"] = {"name": "fp32", "reason": "no torch"}
    assert ">times as fast as fp32<" in draw_speedups(report)
    assert draw_speedups(report | {"variants": [], "peers": []}) == ""


def test_single_calls_are_drawn_from_their_quartiles(report):
    chart = draw_distributions(report)
    times = np.concatenate([b["times_us"] for b in report["benchmark"]["measurements"][0]["blocks"]]) / 1000
    box, line = parts(chart, "rect", "bar")[0], parts(chart, "line", "interval")[0]
    first, third, low, high = np.percentile(times, (25, 75, 1, 99))
    assert box["width"] / (line["x2"] - line["x1"]) == pytest.approx((third - first) / (high - low), rel=1e-2)


def test_a_stalled_block_stands_on_the_edge_and_leaves_the_others_visible(report):
    before = draw_series(report)
    stalled = report["benchmark"]["measurements"][1]["blocks"][2]
    stalled["times_us"] = [100 * t for t in stalled["times_us"]]
    after = draw_series(report)
    assert after.count("<title>") == before.count("<title>") + 1
    heights = [float(y) for y in re.findall(r"0 to ([\d.]+) ms", after)]
    assert max(heights) < 10


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 90), (2, 95), (3, 95), (1, 80), (4, 99)], [0, 1, 4]),
        ([(2, 90), (2, 90)], [0]),
        ([(1, 99), (2, 98)], [0]),
    ],
)
def test_pareto_front_holds_what_nothing_beats(points, front):
    assert pareto_front(points) == front


def test_names_stand_beside_their_points_and_not_on_one_another(report):
    latency, accuracy = report["variants"][0]["latency"], report["variants"][0]["accuracy"]
    report["variants"] = [
        {"name": f"engine {i}", "latency": latency | {"p50_ms": 1 + 0.01 * i}, "accuracy": accuracy}
        for i in range(8)
    ]
    chart = ET.fromstring(draw_accuracy_latency(report))
    boxes = [_box(text) for text in chart.iter("text") if "name" in text.get("class", "")]
    assert {name for name, *_ in boxes} == {f"engine {i}" for i in range(8)} | {"PyTorch", "pytorch-tuned"}
    for number, (_, left, right, y) in enumerate(boxes):
        assert 0 <= left < right <= PHONE
        for _, other_left, other_right, other_y in boxes[number + 1 :]:
            assert abs(y - other_y) >= 14 or right <= other_left or other_right <= left


PHONE = 358  # pixels that a page of 390 leaves to a chart


def _box(text):
    """(words, left, right, y) of a label on a phone, with letters of 8 pixels."""
    x, width = float(text.get("x").rstrip("%")) * PHONE / 100 + float(text.get("dx")), 8 * len(text.text)
    left = x - width if text.get("text-anchor") == "end" else x
    return text.text, left, left + width, float(text.get("y"))


# -- accuracy


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.02, 0.03, "pass"), (0.02, 0.08, "inconclusive"), (0.06, 0.1, "fail")]
)
def test_an_interval_lies_left_of_the_budget_across_it_or_right_of_it(report, low, high, verdict):
    report["variants"] = [{**report["variants"][0], "verdict": verdict,
                           "drop": {"value": (low + high) / 2, "low": low, "high": high}}]  # fmt: skip
    chart = draw_drops(report)
    [bar], [budget], [over] = (
        parts(chart, "rect", verdict),
        parts(chart, "line", "budget"),
        parts(chart, "rect", "over"),
    )
    left, right = bar["x"], bar["x"] + bar["width"]
    assert (right <= budget["x1"], left > budget["x1"]) == (verdict == "pass", verdict == "fail")
    assert (over["x"], over["x"] + over["width"]) == pytest.approx((budget["x1"], 100), abs=0.02)


def test_the_gates_metric_decides_which_drop_is_drawn(report):
    report["recipe"]["gate"]["metric"] = report["variants"][1]["metric"] = "balanced"
    report["variants"] = report["variants"][1:2]
    drop = report["variants"][0]["balanced_drop"]
    chart = unescape(draw_drops(report))
    assert f"{100 * drop['value']:+.2f} [{100 * drop['low']:+.2f}, {100 * drop['high']:+.2f}]" in chart
    assert "points of balanced accuracy lost" in chart


def test_recalls_are_sorted_by_what_fell_and_unknown_ones_left_out():
    changes = recall_changes({"recall": [0.9, 1.0, None, 0.5]}, {"recall": [0.9, 0.6, None, 0.7]}, "abcd")
    assert changes == [("b", 1.0, 0.6), ("a", 0.9, 0.9), ("d", 0.5, 0.7)]
    chart = draw_recalls(changes, "int8")
    assert ">100.0 → 60.0<" in chart
    assert draw_recalls([], "int8") == ""


def test_confusion_is_read_whole_or_sparse():
    whole = {"confusion": [[3, 1], [0, 2]]}
    sparse = {"confusion": {"diagonal": [3, 2], "off_diagonal": [[0, 1, 1]]}}
    assert confusion_matrix(whole).tolist() == confusion_matrix(sparse).tolist() == [[3, 1], [0, 2]]


def test_a_lost_right_answer_and_a_new_mistake_are_worse():
    before, now = np.array([[5, 0], [4, 6]]), np.array([[1, 4], [3, 7]])
    heat = compare_confusions(before, now, ["a", "b"])
    assert heat.cells == [
        [("-4", "right worse4"), ("+4", "worse4")],
        [("-1", "better1"), ("+1", "right better1")],
    ]
    assert compare_confusions(before, before, ["a", "b"]) is None


def test_of_many_classes_those_that_changed_most_are_shown_and_the_rest_is_counted():
    before = np.diag(np.full(1000, 50))
    now = before.copy()
    for label in range(100):
        now[label, label] -= label
        now[label, label + 1] += label
    heat = compare_confusions(before, now, [str(i) for i in range(1000)])
    assert len(heat.labels) <= MOST_CLASSES
    assert {"99", "98", "85"} <= set(heat.labels)
    shown = sum(words != "" for row in heat.cells for words, _ in row)
    assert shown + heat.hidden == 2 * 99
    assert all(any(words for words, _ in row) for row in heat.cells)


# -- precision


def test_shares_of_the_macs_fill_the_bar(report):
    widths = [rect["width"] for rect in parts(draw_precisions(report), "rect", "mark")]
    assert widths == pytest.approx([4, 15, 80, 1])
    assert math.isclose(sum(widths), 100)


# -- several devices


def test_of_several_devices_valid_times_are_drawn_and_every_judged_drop():
    fleet = make_fleet(["a", "b", "c"])
    here, emulated = fleet["devices"][0], fleet["devices"][2]
    for variant, (median, slow) in zip(
        here["variants"], [(1.0, 2.0), (10.0, None), (100.0, 100.0)], strict=False
    ):
        variant["latency"] |= {"p50_ms": median, "p99_ms": slow}
    for device in fleet["devices"][1:]:
        for variant in device["variants"]:
            variant["latency"] = variant["latency"] and {**variant["latency"], "p50_ms": 10.0, "p99_ms": 10.0}
    chart = draw_device_latencies(fleet)
    words = [unescape(words) for words in re.findall("<text[^>]*>([^<]*)<", chart)]
    assert [w for w in words if " / " in w] == ["1 / 2", "10 / -", "100 / 100", *["10 / 10"] * 3]
    assert "old" not in words  # its benchmark is invalid
    first, second, third = parts(chart, "line", "change")[:3]
    assert third["x1"] - second["x1"] == pytest.approx(second["x1"] - first["x1"], abs=0.1)  # ten times each
    assert first["x2"] > first["x1"]
    drops = draw_device_drops(fleet, "int8")
    assert len(parts(drops, "rect", "bar")) == 4  # of all that judged it, the emulated one too
    assert emulated["variants"][1]["latency"] is None
    for device in fleet["devices"]:
        device["benchmark"] = None
    assert draw_device_latencies(fleet) == draw_device_drops(fleet, "trt-fp16") == ""
