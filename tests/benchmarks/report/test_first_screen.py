"""The first screen's answers, from a made-up report."""

import re
from html import unescape

import pytest
from report_support import make_report

from edgekiln.benchmarks.report import render_page
from edgekiln.benchmarks.report.first_screen import answer_first, tell_headline


@pytest.fixture
def report():
    return make_report(60, ["a", "b", "c"], processes=2, blocks=4, state="valid")


def judge(report, *verdicts):
    for variant, verdict in zip(report["variants"], verdicts, strict=False):
        variant["verdict"] = verdict


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        (("pass", "pass", "pass"), "pass"), (("pass", "inconclusive", "pass"), "inconclusive"),
        (("fail", "inconclusive", "pass"), "fail"), (("pass", "not-run", "pass"), "not-run"),
    ],
)  # fmt: skip
def test_the_worst_verdict_of_the_required_engines_is_the_runs(report, verdicts, state):
    judge(report, *verdicts)
    first = answer_first(report)
    assert first["state"] == state
    assert f'<p class="state {state}">' in render_page(report)
    assert first["word"] in unescape(re.sub("<.*?>", "", render_page(report)))


def test_the_fastest_engine_that_passes_gives_the_figures(report):
    judge(report, "pass", "fail", "pass")
    for variant, speedup in zip(report["variants"], (2.0, 9.0, 4.0), strict=False):
        variant["speedup"] = {"value": speedup, "low": speedup - 0.1, "high": speedup + 0.1}
    report["variants"][2]["drop"] = {"value": -0.0034, "low": -0.012, "high": 0.005}
    first = answer_first(report)
    assert first["engine"] == report["variants"][2]["name"]
    faster, lost, sure, ground = (answer[1:] for answer in first["answers"])
    assert faster == ("4.00x", "", "3.90 to 4.10 times as fast as PyTorch")
    assert lost == ("0.34", "points gained", "of top-1; -1.20 to +0.50, 5.00 allowed")
    assert sure == ("95%", "", "confidence of the interval of what was lost; timings valid")
    assert ground[:2] == ("60", "pictures")


def test_without_a_speed_up_the_smallest_is_taken_and_the_reason_told(report):
    judge(report, "pass", "pass", "pass")
    for variant, size in zip(report["variants"], (3, 1, 2), strict=False):
        variant |= {"speedup": None, "size": size}
    report["benchmark"]["validity"]["state"] = "invalid"
    first = answer_first(report)
    assert (first["engine"], first["why"]) == ("int8", "the smallest engine that passes")
    assert first["answers"][0][1:] == ("-", "", "Not told: the timings of this run are invalid")
    report["benchmark"] = None
    assert answer_first(report)["answers"][0][3] == "Not measured"


def test_where_none_passes_it_is_said_and_where_none_was_judged_too(report):
    judge(report, "fail", "fail", "fail")
    assert answer_first(report)["why"] == "the fastest engine that was judged; it did not pass"
    report["variants"] = report["variants"][3:]
    first = answer_first(report)
    assert (first["state"], first["engine"]) == ("none", None)
    assert first["answers"][1][3] == "No engine was judged"
    assert tell_headline(report) == "No engine is required."
    assert "Nothing required" in render_page(report)
