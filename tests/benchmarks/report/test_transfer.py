"""The page of a transfer study, from a made-up document; a real one is in tests/pipeline/study/test_cells.py."""

import re

import pytest
from report_support import make_report, make_study

from edgekiln.benchmarks.report import page, render_page
from edgekiln.benchmarks.report.transfer import render_study_page


@pytest.fixture
def study():
    return make_study()


def test_page_of_a_study_escapes_values_and_needs_no_network(study):
    text = render_study_page(study)
    assert '<p class="notice">a class is called &lt;b&gt;</p>' in text
    assert "<td>failed: no memory</td>" in text
    assert "No two methods of a pair were both judged." in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)


def test_every_page_holds_the_shared_style_whole(study):
    shared = "".join((page._TEMPLATES / f"{name}.css").read_text("utf-8") for name in ("charts", "style"))
    for text in (render_study_page(study), render_page(make_report(60, ["a", "b", "c"]))):
        assert text.startswith("<!doctype html>\n")
        assert text.count(shared) == 1
        assert text.index("<style>\n") < text.index(shared) < text.index("</style>\n</head>\n<body>\n")
