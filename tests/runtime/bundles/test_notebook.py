"""What results show in a notebook: escaped, small, in the page's colours, and without a notebook's packages."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import edgekiln.runtime as ek
from edgekiln.benchmarks.judging.accuracy import PairedCounts
from edgekiln.benchmarks.judging.gate import judge
from edgekiln.pipeline.run import RunResult
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.notebook import show_table, show_variants
from edgekiln.runtime.serving.prediction import read_logits

HOSTILE = ("<script>alert(1)</script>", '" onload="alert(1)', "a\u202eb\x00\ud800", "x" * 5000)


class Page(HTMLParser):
    """Tags, attributes and text of a piece of HTML; a tag that is not closed is an error."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.names, self.text, self._open = set(), set(), "", []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self._open.append(tag)
        self.tags.add(tag)
        self.names |= {name for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(html):
    """What holds for every piece; returns its text."""
    page = Page(html)
    assert page.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert page.names <= {"style"}
    assert not re.search(r"url|(?<!current)color:(?!inherit)|background:(?!currentColor)", html)
    assert len(html.encode()) < 30_000
    return page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_name_holds_is_text(text):
    shown = check(show_table(text, [text], [[text, 0.5]]) + show_variants(text, [[text] * 5]))
    readable = "".join(c if c.isprintable() else "\ufffd" for c in text)[:199]
    assert shown.count(readable) == 9  # two titles, a heading, a cell, and a row of five


def test_many_rows_are_cut_and_counted():
    shown = check(show_table("many", ("n",), [[str(i)] for i in range(1000)]))
    assert shown.endswith("and 980 more")


@pytest.mark.parametrize(
    ("share", "width"), [(0.0, "0.00em"), (0.25, "2.00em"), (1.0, "8.00em"), (7.0, "8.00em")]
)
def test_a_share_is_a_bar(share, width):
    html = show_table("share", (), [["red", share]])
    assert f"width:{width}" in html
    assert f"{share:.3f}" in check(html)


def test_a_prediction_shows_its_five_likeliest_classes():
    classes = ["<i>", *(f"class {i}" for i in range(1, 9))]
    [prediction] = read_logits(np.arange(9, 0, -1, dtype=np.float32)[None], classes)
    text = check(prediction._repr_html_())
    assert text.startswith("<i>, the likeliest of 9 classes")
    assert [name for name in classes if f"{name}0." in text] == classes[:5]


def test_a_bundle_and_a_classifier_show_what_runs_and_not_where_it_lies(tiny_run):
    path = tiny_run[2].bundle
    bundle = open_bundle(path)
    shown = check(bundle._repr_html_())
    assert [v.name in shown and v.reason[:50] in shown for v in bundle.variants] == [True, True]
    with ek.load(path) as classifier:
        text = check(classifier._repr_html_())
        assert [
            part for part in ("blue, green, red", classifier.variant.reason[:50]) if part not in text
        ] == []
        assert repr(classifier) == f"Classifier({classifier.variant.name}, onnxruntime-cpu, 3 classes)"
    assert check(classifier._repr_html_()).startswith("Classifier (closed)")
    assert repr(classifier).endswith("3 classes, closed)")
    assert str(path.parent) not in shown + text


def test_a_gate_and_a_run_show_their_verdicts(tiny_run):
    counts = PairedCounts(images=300, broken=0, mended=0, agreeing=300)
    assert check(judge(counts, max_drop=0.02, confidence=0.95)._repr_html_()).startswith("Gate: pass")
    result = tiny_run[2]
    text = check(result._repr_html_())
    assert [v["reason"][:50] in text for v in result.report["variants"]] == [True, True]
    stopped = check(RunResult(result.stages, None, None)._repr_html_())
    assert [name for name in result.stages if name not in stopped] == []


def test_nothing_of_a_notebook_is_loaded():
    code = (
        "import sys; from edgekiln.runtime.serving.prediction import read_logits; import numpy as np;"
        "from edgekiln.runtime.bundles import notebook; from edgekiln.pipeline.workspace import progress;"
        "read_logits(np.zeros((1, 2), np.float32), ['a', 'b'])[0]._repr_html_(); progress.make_progress(False);"
        "print({'IPython', 'ipywidgets', 'ipykernel', 'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
