"""Judging a finished bundle again."""

import json
import shutil

import numpy as np
import pytest

from edgekiln.benchmarks.judging.stored_answers import read_answers, rejudge
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.errors import BundleError


def test_bundle_is_judged_again_as_it_was(tiny_run):
    result = tiny_run[2]
    rows = rejudge(result.bundle, max_drop=0.2)
    for row, known in zip(rows, result.report["variants"], strict=True):
        same = set(row) - {"flips"}  # flips name hashes, for the bundle has no names of pictures
        assert {key: row[key] for key in same} == {key: known[key] for key in same}
        assert len(row["flips"]) == len(known["flips"])


def test_bundle_is_judged_again_under_another_gate(tiny_run):
    rows = rejudge(tiny_run[2].bundle, max_drop=0.0001, confidence=0.975, metric="balanced")
    assert [row["name"] for row in rows] == ["fp32", "int8"]
    for row in rows:
        assert (row["metric"], row["max_drop"], row["confidence"]) == ("balanced", 0.0001, 0.975)
        assert row["verdict"] == "inconclusive"  # 30 images cannot prove a hundredth of a point
        assert "97.5% interval" in row["reason"]


def test_what_failed_before_still_fails_and_what_was_built_here_is_not_judged_by_the_parents_logits(
    tiny_run, tmp_path
):
    shutil.copytree(tiny_run[2].bundle, tmp_path / "bundle")
    content = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    content["variants"][0]["figures"]["failure"] = "12% ran in INT8"
    content["variants"][1] |= {"backend": "tensorrt-rtx", "precision": "fp16"}
    for derived, names in ((False, ["fp32", "int8"]), (True, ["fp32"])):
        content |= {"parent": {"digest": "0" * 64}} if derived else {}
        write_manifest(tmp_path / "bundle", content)
        rows = rejudge(tmp_path / "bundle", max_drop=0.2)
        assert [row["name"] for row in rows] == names
        assert (rows[0]["verdict"], rows[0]["reason"]) == ("fail", "12% ran in INT8")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0]}, "holds no test logits that can be read"),
        (
            {"labels": [0], "image_sha256": ["x", "y"], "logits.baseline": [[0.0]]},
            "do not match one another",
        ),
        (
            {"labels": [0], "image_sha256": ["x"], "logits.baseline": [[0.0]], "logits.int8": [[0.0, 1.0]]},
            "do not match one another",
        ),
    ],
)
def test_stored_answers_that_make_no_sense_are_refused(tiny_run, tmp_path, arrays, message):
    shutil.copytree(tiny_run[2].bundle, tmp_path / "bundle")
    np.savez(tmp_path / "bundle" / "test_logits.npz", **arrays)
    write_manifest(tmp_path / "bundle", json.loads((tmp_path / "bundle" / "manifest.json").read_text()))
    with pytest.raises(BundleError, match=message):
        read_answers(open_bundle(tmp_path / "bundle"))
