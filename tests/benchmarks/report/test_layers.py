"""What the page says of layers: the slowest first, what the profiler adds, and two engines side by side."""

import json
import re

from report_support import make_report

from edgekiln.benchmarks.report import render_page
from edgekiln.benchmarks.report.layers import difference_tables, layer_tables

REPORT = make_report(60, ["a", "b", "c"], processes=2, blocks=4)


def section_of(page):
    return re.search(r'<h2 id="layers">.*?(?=<h2 )', page, re.DOTALL)[0]


def test_each_engine_has_its_slowest_layers_first():
    fp32, int8 = layer_tables(REPORT)
    assert (fp32["name"], int8["name"]) == ("v10_fp32", "v10_int8_island")
    for part in (fp32, int8):
        times = [float(row[1]) for row in part["rows"]]
        assert times == sorted(times, reverse=True)
        assert sum(float(row[3]) for row in part["rows"]) + 0.1 >= 100 > 0 == part["more"]
    assert int8["reformats"] == 3


def test_the_page_tells_layers_differences_and_what_was_not_timed():
    plain = json.loads(json.dumps(REPORT))  # no search for blocks to keep in float
    plain["variants"] = [{**row, "search": None} for row in plain["variants"]]
    told = section_of(render_page(plain))
    assert "The call takes 1.000 ms, with the profiler 1.500 ms" in told
    assert "From v10_fp32 to v10_int8_island, by ONNX node" in told
    assert "fp32 → int8" in told
    assert "The layers of trt-fp16 were not timed: there is no GPU" in told
    assert "&lt;b&gt;a note&lt;/b&gt;" in told


def test_an_older_report_says_that_nothing_was_measured():
    older = json.loads(json.dumps(REPORT))
    del older["benchmark"]["layers"]
    assert (layer_tables(older), difference_tables(older)) == ([], [])
    assert "<p>Not measured.</p>" in section_of(render_page(older))
    older["benchmark"] = None
    assert "<p>Not measured.</p>" in section_of(render_page(older))


def test_of_many_layers_twelve_are_shown_and_the_rest_is_counted():
    many = json.loads(json.dumps(REPORT))
    profile = many["benchmark"]["layers"]["profiles"][0]
    profile["layers"] = profile["layers"] * 4
    part = layer_tables(many)[0]
    assert (len(part["rows"]), part["more"]) == (12, len(profile["layers"]) - 12)
