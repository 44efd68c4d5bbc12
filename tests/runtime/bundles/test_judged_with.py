"""A verdict and the library version that it was reached with."""

import logging

import onnxruntime
import pytest

from edgekiln.pipeline.doctor.bundles import check_bundle
from edgekiln.runtime.bundles.judged_with import JUDGED_ON, find_versions, tell_other_version
from edgekiln.runtime.serving.loading import load

HERE = onnxruntime.__version__
SAME_RELEASE = ".".join([*HERE.split(".")[:2], "99"])


def machine(**versions):
    return {"machine": {"versions": {name.replace("_", "-"): version for name, version in versions.items()}}}


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (machine(onnxruntime="1.1.0"), f"judged with onnxruntime 1.1.0, running under {HERE}"),
        (machine(onnxruntime_gpu="1.1.0"), f"judged with onnxruntime 1.1.0, running under {HERE}"),
        (machine(onnxruntime=HERE), ""),
        (machine(onnxruntime=SAME_RELEASE), ""),
        (machine(openvino="1.1.0"), ""),
        (machine(), ""),
        ({"machine": {"versions": {"onnxruntime": 5}}}, ""),
        ({"machine": {"versions": []}}, ""),
        ({"machine": "x"}, ""),
        ({}, ""),
    ],
)
def test_another_release_is_told_and_a_patch_is_not(manifest, says):
    told = tell_other_version("onnxruntime-cpu", find_versions(manifest, {}))
    assert told.startswith(says)
    assert bool(told) == bool(says)


def test_engines_that_refuse_other_versions_by_themselves_need_no_word():
    assert tell_other_version("tensorrt", {"tensorrt": "1.0.0"}) == ""


def test_what_was_judged_on_another_machine_goes_by_that_one():
    figures = {JUDGED_ON: machine(onnxruntime="1.1.0")["machine"]}
    assert find_versions(machine(onnxruntime=HERE), figures) == {"onnxruntime": "1.1.0"}
    assert find_versions(machine(onnxruntime=HERE), {}) == {"onnxruntime": HERE}


def test_a_loaded_engine_says_so_and_logs_it(make_bundle, variant, caplog):
    folder = make_bundle(variant("fp32", "fp32"), **machine(onnxruntime="1.1.0"))
    with caplog.at_level(logging.WARNING, "edgekiln.runtime"), load(folder) as classifier:
        assert "judged with onnxruntime 1.1.0" in classifier.variant.notice
    assert [record.message for record in caplog.records] == [f"variant fp32 was {classifier.variant.notice}"]


def test_one_that_was_judged_with_what_runs_here_says_nothing(make_bundle, variant, caplog):
    folder = make_bundle(variant("fp32", "fp32"), **machine(onnxruntime=HERE))
    with load(folder) as classifier:
        assert classifier.variant.notice == ""
    assert not caplog.records


def test_doctor_warns_and_counts_it_among_those_that_load(make_bundle, variant):
    folder = make_bundle(variant("fp32", "fp32"), **machine(onnxruntime="1.1.0"))
    bundle, row = check_bundle(folder)
    assert (bundle.state, row.state) == ("OK", "WARN")
    assert "passed and load here: fp32" in bundle.found
    assert "; judged with onnxruntime 1.1.0" in row.found
    assert "judged on: kind unknown: loads and runs here" in row.found
    assert "edgekiln bench" in row.fix
