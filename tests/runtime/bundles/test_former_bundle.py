"""A bundle that an older version made opens, and answers as it did then."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from tests_support import ROOT

import edgekiln.runtime as ek
from edgekiln.benchmarks.report import read_bundled_report
from edgekiln.pipeline.cli import cli
from edgekiln.pipeline.doctor.bundles import check_bundle
from edgekiln.runtime.bundles.archive_writer import write_zip
from edgekiln.runtime.bundles.bundle import open_bundle

FORMER = ROOT / "tests" / "data" / "former_bundle"
BUNDLE = FORMER / "bundle"
ANSWERS = json.loads((FORMER / "answers.json").read_text())
COLORS = [(40, 60, 200), (50, 180, 60), (210, 50, 40), (90, 90, 90), (200, 200, 40), (0, 0, 0)]
LABELS = ["blue", "green", "red", "red", "red", "green"]
# Logits span 12. FP32 libraries add up in other orders; INT8 may round one activation the other way.
TOLERANCE = {"fp32": 1e-3, "int8": 0.1}


def frames():
    """Six colours with a pattern, uint8 (40, 52, 3) each: the same on every machine."""
    pattern = (np.arange(40 * 52).reshape(40, 52, 1) * 7) % 40
    return [((np.array(color) + pattern) % 256).astype(np.uint8) for color in COLORS]


@pytest.mark.parametrize("variant", sorted(ANSWERS))
def test_it_answers_as_it_did(variant):
    with ek.load(BUNDLE, variant=variant) as classifier:
        found = classifier.predict_batch(frames())
    assert [answer.label for answer in found] == LABELS
    np.testing.assert_allclose(
        [answer.logits for answer in found], ANSWERS[variant], atol=TOLERANCE[variant], rtol=0
    )


def test_it_is_chosen_from_and_archived_as_any_other(tmp_path):
    write_zip(open_bundle(BUNDLE), tmp_path / "former.zip")
    for place in (BUNDLE, tmp_path / "former.zip"):
        with ek.load(place) as classifier:
            assert classifier.variant.name == "int8"
            assert classifier.contract.classes == ("blue", "green", "red")


def test_it_has_no_canaries_and_doctor_says_so():
    assert {variant.canaries for variant in open_bundle(BUNDLE).variants} == {None}
    _, *rows = check_bundle(BUNDLE)
    assert len(rows) == 2
    assert all("answers not checked: the bundle records none" in row.found for row in rows)


def test_its_report_is_read_and_the_command_line_shows_it():
    report = read_bundled_report(open_bundle(BUNDLE))
    assert [variant["verdict"] for variant in report["variants"]] == ["pass", "pass"]
    shown = CliRunner().invoke(cli, ["inspect", str(BUNDLE)])
    assert shown.exit_code == 0, shown.output
    assert "before-the-wings" in shown.output
    assert shown.output.count("judged_on kind unknown, measured not measured") == 2


def test_its_kind_is_unknown_and_loading_says_nothing_of_it(caplog):
    assert {(variant.kind, variant.times) for variant in open_bundle(BUNDLE).variants} == {(None, ())}
    with ek.load(BUNDLE) as classifier:
        assert "kind" not in classifier.variant.notice
        assert classifier.variant.reason.endswith("(nothing was measured on this kind of machine)")


def test_an_altered_byte_is_still_seen(tmp_path):
    copy = shutil.copytree(BUNDLE, tmp_path / "bundle")
    model = copy / "int8.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(ek.BundleError, match=r"int8\.onnx was changed"):
        ek.load(copy)
