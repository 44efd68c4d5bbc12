"""The canaries of a real run: kept in its bundle, right under every way to compute, wrong under a wrong kernel."""

import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from canary_study import EMULATOR, Condition, Row, ask, conditions_here, describe_rows, main
from onnx import numpy_helper
from tests_support import ROOT

from edgekiln.pipeline.device.canary_records import read_reference
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.canaries import check_canaries
from edgekiln.runtime.bundles.canary_inputs import digest_frames, make_canaries

FORMER = ROOT / "tests" / "data" / "former_bundle" / "bundle"


@pytest.fixture(scope="module")
def bundle(tiny_run):
    return open_bundle(tiny_run[2].bundle)


def test_a_run_keeps_what_each_variant_answered(bundle):
    fp32, int8 = (bundle.variant(name) for name in ("fp32", "int8"))
    reference = read_reference(bundle)
    for variant in (fp32, int8):
        assert variant.canaries.inputs == digest_frames(make_canaries(32, 32))
        session = open_session(variant.backend, bundle.read(variant.file))
        assert check_canaries(session, variant.canaries).worst < 0.1  # the machine that recorded them
    np.testing.assert_allclose(fp32.canaries.answers, reference, atol=1e-4)
    distance = np.abs(int8.canaries.answers - reference).max(axis=1)
    # So an INT8 engine that computes in float all through is at half of what it may differ.
    assert (2 * distance <= np.array(int8.canaries.tolerances) + 1e-6).all()
    assert max(int8.canaries.tolerances) > 10 * max(fp32.canaries.tolerances)


def test_other_kernels_for_quantized_products_raise_no_alarm(bundle, monkeypatch):
    """``session.x64quantprecision`` takes kernels that cannot saturate, as on processors without VNNI."""
    real, asked = onnxruntime.SessionOptions, []

    def options():
        made = real()
        made.add_session_config_entry("session.x64quantprecision", "1")
        asked.append(made)
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    int8 = bundle.variant("int8")
    result = check_canaries(open_session("onnxruntime-cpu", bundle.read(int8.file)), int8.canaries)
    assert asked
    assert result.ok, result.problem


def test_without_the_librarys_fusions_it_is_the_same_engine(bundle, monkeypatch):
    """All else than integer kernels: quantized values, computed in float."""
    real = onnxruntime.SessionOptions

    def options():
        made = real()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    for variant in bundle.variants:
        result = check_canaries(open_session("onnxruntime-cpu", bundle.read(variant.file)), variant.canaries)
        assert result.ok, f"{variant.name}: {result.problem}"


def test_one_channels_scale_for_all_is_found_in_the_real_graph(bundle):
    """What OpenVINO's kernel does on ARM, written into the graph: the first scale of the first convolution for all."""
    int8 = bundle.variant("int8")
    model = onnx.load_from_string(bundle.read(int8.file))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = next(
        constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and "conv1.weight" in node.name
    )
    values = numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array(np.full_like(values, values[0]), scale.name))
    session = open_session("onnxruntime-cpu", model.SerializeToString())
    for thorough in (False, True):
        result = check_canaries(session, int8.canaries, thorough=thorough)
        assert not result.ok
        assert result.worst > 3


# -- the study


def test_a_child_tells_of_every_variant_and_number_of_threads(bundle):
    here = next(conditions_here("onnxruntime"))
    assert here == Condition(sys.executable, "onnxruntime")
    rows = ask(bundle.path, here)
    assert [(row.variant, row.threads, row.problem) for row in rows] == [
        (name, threads, "") for name in ("fp32", "int8") for threads in (1, 2)
    ]
    assert {row.version for row in rows} == {onnxruntime.__version__}


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(EMULATOR) is None or os.uname().machine != "x86_64",
    reason=f"NOT TRIED: emulated processors; {EMULATOR} is not installed (apt-get install qemu-user-static)",
)
def test_an_emulated_processor_raises_no_false_alarm(bundle):
    emulated = [c for c in conditions_here("onnxruntime") if EMULATOR in c.before]
    assert [c.setting for c in emulated] == ["emulated Nehalem", "emulated Haswell"]
    rows = ask(bundle.path, emulated[0])
    assert [(row.variant, row.problem) for row in rows] == [("fp32", ""), ("int8", "")], describe_rows(rows)


def test_a_process_that_dies_is_a_row_and_no_silence(tmp_path):
    rows = ask(tmp_path, Condition(sys.executable, "onnxruntime"))
    assert len(rows) == 1
    assert "the process ended with 1" in rows[0].problem


def test_the_table_has_a_row_for_each_variant_and_tells_what_is_wrong():
    here = Condition("python", "onnxruntime", "as it is")
    text = describe_rows(
        [
            Row(here, "1.20.1", "int8", 1, 0.25, 0.1, ""),
            Row(here, "1.20.1", "int8", 2, 0.5, 0.05, ""),
            Row(here, "1.20.1", "fp32", 1, float("inf"), float("inf"), "gave NaN"),
        ]
    )
    assert text.splitlines()[2:] == [
        "| onnxruntime 1.20.1 | as it is | int8 | 0.1 | 50% | right |",
        "| onnxruntime 1.20.1 | as it is | fp32 | inf | inf% | gave NaN |",
    ]


def test_nothing_asked_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr("canary_study.make_environment", lambda folder, library, version: sys.executable)
    assert main([str(FORMER), "--oldest-and-current"]) == 3
    assert "| library |" in capsys.readouterr().out
