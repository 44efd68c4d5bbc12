"""The page of a transfer study, from a made-up document; a real one is in tests/pipeline/study/test_cells.py."""

import re

import pytest
from report_support import make_report

from edgekiln.benchmarks.report import page, render_page
from edgekiln.benchmarks.report.transfer import render_study_page


@pytest.fixture
def study():
    entry = {
        "share": 1.0, "mean": 0.9, "median": 0.9, "low": 0.85, "high": 0.95, "values": [0.88, 0.9, 0.92],
        "train_images": 200, "steps": 10, "images_seen": 100, "seconds": 1.5, "seeds": 3, "failed": 0,
    }  # fmt: skip
    cell = {"share": 1.0, "seed": 0}
    choice = {"share": 1.0, "method": "probe", "reason": "it is cheap", "not_compared": []}
    return {
        "name": "fruit", "metric": "top1", "notices": ["a class is called <b>"], "test": {"images": 100},
        "seeds": [0, 1, 2], "margin": 0.01, "choice": choice, "choices": [choice],
        "methods": [{"name": name, "title": name, "about": name} for name in ("probe", "full")],
        "means": [{**entry, "method": "probe"}, {**entry, "method": "full"}],
        "differences": [],
        "cells": [
            {**cell, "method": "probe", "state": "done", "top1": 0.9, "balanced": 0.8, "train_images": 200,
             "val_images": 20, "steps": 10, "seconds": 1.0},
            {**cell, "method": "full", "state": "failed", "error": "no memory"},
        ],
        "recipe": {"name": "fruit"}, "machine": {"cpu": "a CPU"},
    }  # fmt: skip


def test_page_of_a_study_escapes_values_and_needs_no_network(study):
    text = render_study_page(study)
    assert '<p class="notice">a class is called &lt;b&gt;</p>' in text
    assert "<td>failed: no memory</td>" in text
    assert "No two methods of a pair were both judged." in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)


def test_every_page_holds_the_shared_style_whole(study):
    shared = (page._TEMPLATES / "style.css").read_text("utf-8")
    for text in (render_study_page(study), render_page(make_report(60, ["a", "b", "c"]))):
        assert text.startswith("<!doctype html>\n")
        assert text.count(shared) == 1
        assert text.index("<style>\n") < text.index(shared) < text.index("</style>\n</head>\n<body>\n")
