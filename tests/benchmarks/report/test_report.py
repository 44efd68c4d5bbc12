import copy
import json
import re
from html import unescape

import pytest
import tomllib
from markdown_it import MarkdownIt  # comes with rich
from report_support import make_mlperf, make_report, make_search

from edgekiln.benchmarks.report import (
    describe_best_pytorch,
    describe_floor,
    describe_mlperf,
    format_markdown,
    format_text,
    mlperf_rows,
    render_card,
    render_page,
    render_summary,
    table_headings,
    table_rows,
)
from edgekiln.benchmarks.report.charts.precision import draw_search
from edgekiln.benchmarks.report.charts.speed import draw_accuracy_latency
from edgekiln.runtime.errors import as_printable


@pytest.fixture
def report(tiny_run):
    return copy.deepcopy(tiny_run[2].report)


def test_table_has_the_baseline_first_and_a_dash_where_nothing_was_measured(report):
    rows = table_rows(report)
    assert [row[0] for row in rows] == ["PyTorch", "fp32", "int8"]
    assert rows[0][-1] == "baseline"
    assert rows[1][7:10] == ("-", "-", "-")


@pytest.mark.parametrize(("confidence", "written"), [(0.95, "95%"), (0.975, "97.5%")])
def test_confidence_stands_wherever_the_gates_interval_does(report, confidence, written):
    report["recipe"]["gate"]["confidence"] = confidence
    headings = table_headings(report)
    assert headings[4] == f"top-1 drop, points [{written} CI]"
    assert headings[6] == f"balanced drop [{written} CI]"
    assert headings[9] == "speed-up [95% CI]"
    assert len(headings) == len(table_rows(report)[0])
    for text in (render_page(report), render_card(report)):
        assert f"both at {written} confidence" in text
        assert headings[4] in text


def test_page_and_card_say_which_drop_decides(report):
    for metric, words in (("top1", "by the drop of top-1"), ("balanced", "by the drop of balanced accuracy")):
        report["recipe"]["gate"]["metric"] = metric
        for text in (render_page(report), render_card(report)):
            assert words in " ".join(text.split())


def test_text_table_lines_up():
    text = format_text([("a", "fp32", "1.00"), ("longer", "int8", "10.00")], ("engine", "precision", "MB"))
    header, rule, first, second = text.splitlines()
    assert len(rule) == len(header.ljust(len(rule)))
    assert first.index("fp32") == second.index("int8") == header.index("precision")


def test_markdown_survives_a_bar_in_a_name():
    assert r"a\|b" in format_markdown([("a|b", "fp32", "1")], ("engine", "precision", "MB"))


AWKWARD = (
    "a|b", "*x*", "_y_", "<b>", "[bold]red[/bold]", "[a](https://x.y)", "`code`", "&amp;", "~~gone~~", "$x$", "\\d",
    "# head", "1. first", "two\nlines", "\x1b[31mred", "abc\u202edcba", "gate.min_top1", "[ref]: https://x.y", "+ plus",
)  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_markdown_shows_a_name_letter_for_letter(report, name):
    """Read again by markdown-it, which follows CommonMark: nothing in the name marks, links or breaks anything."""
    shown = as_printable(name)
    report["data"]["classes"] = [name, "b"]
    report["notices"] = [name, f"Classes are uneven: 3 pictures of {name}."]
    report["variants"][0]["reason"] = f"{name} was lost"
    report["peers"] = [{"name": name, "precision": "fp32", "latency": None, "speedup": None}]
    for render in (render_card, render_summary):
        text = render(report)
        blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
        lines = [block.children for block in blocks if block.type == "inline"]
        told = ["".join("\n" if c.type == "softbreak" else c.content for c in line) for line in lines]
        assert told.count(shown) == 2  # the notice, and the cell of the table
        assert f"Classes are uneven: 3 pictures of {shown}." in told
        assert any(f"{shown} was lost" in line for line in told)
        kinds = {
            c.type for line in lines for c in line if c.content not in {"edgekiln.runtime", "manifest.json"}
        }
        assert kinds <= {"text", "softbreak", "strong_open", "strong_close"}
        assert not {"\x1b", "\u202e"} & set(text)
        if render is render_card:
            assert f"An image classifier for: {shown}, b." in told


def test_page_shows_names_letter_for_letter(report):
    report["data"]["classes"] = [*AWKWARD[-6:-3]]
    report["notices"] = [f"3 pictures of {name}." for name in AWKWARD]
    page = render_page(report)
    told = [unescape(text) for text in re.findall(r'<p class="notice">(.*?)</p>', page, re.DOTALL)]
    assert [" ".join(text.split()) for text in told] == [
        f"3 pictures of {' '.join(as_printable(line) for line in name.splitlines())}." for name in AWKWARD
    ]
    assert not {"\x1b", "\u202e"} & set(page)
    assert "<b>" not in page


def test_page_escapes_class_names_and_needs_no_network(report):
    report["data"]["classes"] = ["<script>alert(1)</script>", "b"]
    report["variants"][0]["flips"] = [
        {"key": "<img src=x>", "label": "a", "before": "a", "now": "b", "margin": 0.5}
    ]
    page = render_page(report)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)


def test_page_tells_every_verdict_and_reason(report):
    report["variants"][1] |= {"verdict": "inconclusive", "reason": "about 900 test images would decide"}
    page = render_page(report)
    assert "about 900 test images would decide" in page
    assert '<span class="verdict inconclusive">inconclusive</span>' in page


def test_variant_that_was_not_run_is_never_shown_as_measured(report):
    row = {k: report["variants"][0][k] for k in ("name", "backend", "precision", "required", "size")}
    report["variants"][0] = {
        **row,
        "verdict": "not-run",
        "reason": "not tried here, because: no GPU",
        "flips": [],
    }
    assert table_rows(report)[1][3:] == ("-",) * 7 + ("not-run",)
    assert "no GPU" in render_page(report)
    assert "no GPU" in render_card(report)


def test_latency_drawing_is_inside_the_page_and_reproducible(report):
    blocks = [{"process": 0, "index": 0, "turn": 0, "times_us": [1000, 1100, 1200]}]
    measurement = {
        "name": "baseline", "calls": 3, "config": {"threads": 1}, "search": [], "blocks": blocks,
        "p50_ms": 1.1, "p99_ms": None,
    }  # fmt: skip
    report["benchmark"] = {
        "measurements": [measurement, {**measurement, "name": "fp32"}],
        "ratios": {},
        "validity": {"state": "noisy", "reasons": ["the neighbours are loud"], "self_ratio": [0.9, 1.1]},
    }
    page = render_page(report)
    assert "<svg" in page
    assert "the neighbours are loud" in page
    assert page == render_page(report)


def test_share_of_the_floor_is_told_per_engine_and_only_where_it_is_known(report):
    assert describe_floor(report) == ""
    report["baseline"]["latency"] = {"share_of_floor": 0.31, "floor_ms": 1.0}
    report["variants"][0]["latency"] = {"share_of_floor": 0.512, "floor_ms": 1.0}
    report["variants"][1]["latency"] = {"share_of_floor": None, "floor_ms": None}
    assert describe_floor(report).startswith("share of the floor: PyTorch 31%, fp32 51% (100% is")


def test_page_tells_floor_and_memory_of_an_engine(report):
    blocks = [{"process": 0, "index": 0, "turn": 0, "times_us": [1000, 1100, 1200]}]
    report["benchmark"] = {
        "measurements": [{
            "name": "baseline", "calls": 3, "config": {"threads": 1}, "search": [], "blocks": blocks,
            "p50_ms": 2.0, "p99_ms": None, "floor_ms": 0.5, "share_of_floor": 0.25, "peak_rss_mb": 85.3,
            "device_mb": 120.0,
        }],
        "ratios": {},
        "validity": {"state": "valid", "reasons": [], "self_ratio": [0.9, 1.1]},
    }  # fmt: skip
    page = render_page(report)
    assert "25% of what the machine could do: the floor is 0.5 ms, the median 2 ms" in page
    assert "peak memory of its process 85 MB; 120 MB of the GPU." in page


def test_report_is_plain_json(report):
    assert json.loads(json.dumps(report)) == report


def test_invalid_timings_are_not_compared():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    assert draw_accuracy_latency(report)
    report["benchmark"]["validity"]["state"] = "invalid"
    assert draw_accuracy_latency(report) == ""
    assert "the timings of this run are invalid" in render_page(report)


def test_summary_is_short_and_lets_no_html_through():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    report["variants"][1]["reason"] = "<img src=x> lost"
    text = render_summary(report)
    assert "&lt;img src=x&gt; lost" in text
    assert "made-up: " in text.splitlines()[0]
    assert len(text.splitlines()) < 30


# -- the closed loop


def test_search_is_drawn_with_budget_and_choice():
    drawing = draw_search(make_search("found"))
    for words in ("% of the MACs in INT8", "top-1 against FP32, points", "budget", "chosen"):
        assert words in drawing


def test_diamond_stands_at_the_chosen_set_and_not_at_a_rejected_one_of_the_same_blocks():
    search = make_search("found")
    rejected = search["chosen"] | {"drop": 0.3}  # another product of the same block was given back
    first, last = (
        draw_search(search | {"curve": curve})
        for curve in ([rejected, *search["curve"]], [*search["curve"], rejected])
    )
    assert first == last


def test_impossible_search_is_drawn_without_a_choice():
    drawing = draw_search(make_search("impossible"))
    assert "budget" in drawing
    assert "chosen" not in drawing


def test_search_that_was_not_needed_is_no_picture(report):
    search = make_search("found") | {"verdict": "not-needed", "kept": []}
    assert draw_search(search) == ""
    report["variants"][1]["search"] = search
    assert "ended as\n<strong>not-needed</strong>" in render_page(report)


def test_search_in_which_every_set_answered_nan_is_no_picture():
    search = make_search("impossible")
    search["curve"] = [point | {"drop": None} for point in search["curve"]]
    assert draw_search(search) == ""


# -- energy and LoadGen


def test_energy_is_told_with_the_bound_of_its_error_and_idle_power():
    page = render_page(make_report(60, ["a", "b", "c"], processes=2, blocks=4))
    assert "<td>40.2 ± 7.1</td><td>5.01</td><td>9.04</td><td>301</td><td>board rails VDD_IN</td>" in page
    assert "rtx-int8-with-a-long-name: not known, NVML: no permission." in page


def test_energy_below_what_the_source_resolves_is_not_a_figure():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    report["benchmark"]["measurements"][1]["energy"] |= {"mj_per_image": -2.0}
    assert "<td>-2 ± 7.1: not resolved</td>" in render_page(report)


def test_machine_without_a_meter_is_one_line():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    for measurement in report["benchmark"]["measurements"]:
        measurement |= {"energy": None, "energy_reason": "no tegrastats; no RAPL energy counter"}
    page = render_page(report)
    assert page.count("no RAPL energy counter") == 1
    assert "All engines: not known, no tegrastats; no RAPL energy counter." in page


def test_loadgens_rows_and_what_they_do_not_say():
    rows = mlperf_rows({"mlperf": make_mlperf()})
    times = "0.600 / 0.720 / 0.910"
    assert rows[0] == (
        "int8", "SingleStream", "VALID", times, times, "1601.2", "1601.2", "0.987 (p50), 0.991 (p90)",
    )  # fmt: skip
    assert rows[1] == ("int8", "Offline", "INVALID", "-", "-", "1601.2", "1601.2", "1.012")
    assert describe_mlperf({"mlperf": make_mlperf()}) == [
        "int8, Offline: LoadGen calls its run INVALID: Min duration satisfied: no",
        "Not of MLPerf's length: 10 s, MLPerf asks for 600.",
        "trt-fp16 was not driven: only engines for the CPU are driven.",
    ]
    assert mlperf_rows({"mlperf": None}) == describe_mlperf({}) == []


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (0.951, None), (1.0, None), (1.049, None),
        (0.94, "int8, SingleStream: our p50 differs by -6.0 % from LoadGen's."),
        (1.062, "int8, SingleStream: our p50 differs by +6.2 % from LoadGen's."),
        (float("nan"), "int8, SingleStream: our p50 differs by +nan % from LoadGen's."),
    ],
)  # fmt: skip
def test_stopwatches_that_disagree_are_told(ratio, told):
    found = make_mlperf()
    found["results"][0]["ours_over_loadgen_p50"] = ratio
    assert [line for line in describe_mlperf({"mlperf": found}) if "differs" in line] == (
        [told] if told else []
    )


# -- what the page must hold


@pytest.mark.parametrize("state", ["valid", "noisy", "invalid"])
def test_page_says_what_the_timings_are_worth(state):
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4, state=state)
    page = render_page(report)
    assert f">The timings are {state}" in page
    assert (table_rows(report)[2][9] == "-") == (state == "invalid")


def test_page_has_every_section_and_the_verdict_first(report):
    page = render_page(make_report(60, ["a", "b", "c"], processes=2, blocks=4))
    wanted = [
        "Speed-up", "Accuracy lost", "Engines", "Accuracy against latency", "Latency", "Which classes an engine lost",
        "How the answers differ", "Images whose answer changed", "Share of the floor", "Energy",
        "Second opinion: MLPerf LoadGen",
        "Layers by precision", "Where the time goes, layer by layer", "Blocks kept in float",
            "Built but not run", "Training", "Data",
        "Environment", "Do it again",
    ]  # fmt: skip
    sections = re.findall('<h2 id="(.*?)"><a href="#(.*?)">(.*?)</a></h2>', page)
    assert [title for *_, title in sections] == wanted
    contents = re.search("<nav.*?</nav>", page, re.DOTALL)[0]
    assert re.findall('<a href="#(.*?)">(.*?)</a>', contents) == [(id_, title) for id_, _, title in sections]
    assert all(id_ == link for id_, link, _ in sections)
    assert page.index('class="headline"') < page.index("<nav") < page.index('<table class="main">')
    assert "prefers-color-scheme: dark" in page
    assert "edgekiln&#39;s git commit: " + "d" * 40 in page
    assert (
        "GPU: A GPU of some make, 1980 MHz, 61 °C, 350.5 W, driver 580.95.05, held back by software" in page
    )


def test_page_of_a_real_run_shows_a_recipe_that_runs(report):
    page = render_page(report)
    assert "<pre>edgekiln run tiny.toml --set data.path=FOLDER</pre>" in page
    recipe = unescape(re.search(r"<details><summary>Recipe</summary>\n<pre>(.*?)</pre>", page, re.DOTALL)[1])
    assert tomllib.loads(recipe)["variants"][1] == {
        "name": "int8", "precision": "int8", "calibration_images": 48,
    }  # fmt: skip


def test_page_tells_what_changed_in_the_answers_and_what_the_doctor_said(report):
    page = " ".join(render_page(report).split())
    row, own = report["variants"][1], report["baseline"]["accuracy"]
    row_of_pytorch = f'<th scope="row">PyTorch</th><td>-</td><td>{own["ece"]:.4f}</td>'
    assert row_of_pytorch + "<td>-</td>" * 7 in page
    assert f"<td>{row['kl_nats']:.3g}</td><td>{row['accuracy']['distinct_outputs']}</td>" in page
    assert "Calibration of int8: 48 images, by minmax; methods are compared on training pictures" in page
    assert "wanted 64 at least. Nothing to complain of" in page
    report["variants"][1]["calibration"]["doctor"]["warnings"] = ["no calibration image of red"]
    told = "wanted 64 at least. The doctor says: no calibration image of red."
    assert told in " ".join(render_page(report).split())


def test_engines_are_held_against_the_fastest_pytorch_that_was_timed():
    report = make_report(60, ["a", "b", "c"])
    report["peers"] = [
        {"name": "pytorch-tuned", "precision": "fp32", "latency": None, "speedup": {"value": 1.25}},
        {"name": "onnxruntime:int8", "precision": "int8", "latency": None, "speedup": {"value": 9.0}},
    ]
    for variant, speedup in zip(report["variants"], (2.5, 5.0), strict=False):
        variant["speedup"] = {"value": speedup}
    line = describe_best_pytorch(report)
    assert line.startswith(
        "against the fastest PyTorch, pytorch-tuned (1.25x the baseline): fp32 2.00x, int8 4.00x"
    )
    report["peers"][0]["speedup"]["value"] = 0.5
    assert describe_best_pytorch(report).startswith(
        "against the fastest PyTorch, PyTorch eager (1.00x the baseline)"
    )
    report["peers"] = report["peers"][1:]
    assert describe_best_pytorch(report) == ""


def test_a_peer_that_is_faster_takes_an_engine_off_the_front():
    report = make_report(60, ["a", "b", "c"])
    before = draw_accuracy_latency(report)
    fp32 = report["variants"][0]
    faster = {**fp32["latency"], "p50_ms": 0.1}
    report["peers"] = [{"name": "openvino:fp32", "precision": "fp32", "latency": faster, "speedup": None}]
    assert "openvino:fp32" in draw_accuracy_latency(report)
    assert "openvino:fp32" not in before
