"""The page of a transfer study, from a made-up document; a real one is in tests/pipeline/study/test_cells.py."""

import re
from xml.etree import ElementTree as ET  # our own text

import pytest
from report_support import make_report, make_study

from edgekiln.benchmarks.report import page, render_page
from edgekiln.benchmarks.report.transfer import render_study_drawing, render_study_page


@pytest.fixture
def study():
    return make_study()


def test_page_of_a_study_escapes_values_and_needs_no_network(study):
    text = render_study_page(study)
    assert '<p class="notice">a class is called &lt;b&gt;</p>' in text
    assert "<td>failed: no memory</td>" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)


def test_first_screen_of_a_study_tells_the_chosen_method_and_what_weights_gain(study):
    text = " ".join(render_study_page(study).split())
    for figure in (
        "<strong>88.00 <small>%</small></strong>",
        "<strong>+50.00 <small>points</small></strong>",
    ):
        assert figure in text
    assert "top-1 of probe, mean over the seeds; interval 83.00 to 93.00" in text
    assert "full less scratch: better; interval +41.00 to +59.00" in text
    study |= {"differences": [], "means": [], "choice": {**study["choice"], "method": None}}
    text = render_study_page(study)
    for words in ("No method to recommend", "no top-1 is known", "full and scratch were not compared at this size",
                  "Not drawn: no training finished.", "No two methods of a pair were both judged."):  # fmt: skip
        assert words in text


def test_a_study_is_drawn_at_its_sizes_and_stands_alone_as_a_file(study):
    alone = render_study_drawing(study)
    root = ET.fromstring(alone)
    assert {e.text for e in root.findall(".//{*}text")} >= {"20", "100", "200", "the method probe"}
    assert len([e for e in root.findall(".//{*}path") if "seed" in e.get("class")]) == 3 * 4 * 3
    assert "prefers-color-scheme: dark" in alone
    assert not re.search(r"href|url\(|@import|<script", alone)
    study["means"] = []
    assert ET.fromstring(render_study_drawing(study)).tag.endswith("svg")


def test_every_page_holds_the_shared_style_whole(study):
    shared = "".join((page._TEMPLATES / f"{name}.css").read_text("utf-8") for name in ("charts", "style"))
    for text in (render_study_page(study), render_page(make_report(60, ["a", "b", "c"]))):
        assert text.startswith("<!doctype html>\n")
        assert text.count(shared) == 1
        assert text.index("<style>\n") < text.index(shared) < text.index("</style>\n</head>\n<body>\n")
