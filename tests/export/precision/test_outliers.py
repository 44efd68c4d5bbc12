"""Networks of six kinds with a massive activation: what every quantizer did to them, and what it does now."""

import json

import numpy as np
import onnx
import pytest
from massive import KINDS, NETWORKS, calibration, export_massive, held_out
from torch import nn

from edgekiln.export.audits.onnxruntime import audit_int8
from edgekiln.export.calibration import choose_calibration
from edgekiln.export.precision import outliers
from edgekiln.export.precision.fp16 import convert_to_fp16
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.outliers import EVERYTHING_QUANTIZED, OUTLIER_RATIO, plan_float
from edgekiln.export.precision.simulation import simulate
from edgekiln.pipeline.data import load_split
from edgekiln.runtime.backends import open_session

pytest.importorskip("modelopt", reason="quantizes with nvidia-modelopt")
pytestmark = pytest.mark.slow

TRANSFORMERS = ("vit", "deit", "swin")
# On the CPU ConvNeXt and DenseNet lose 10 points only: there an activation has 255 steps for what TensorRT gives 127.
BREAKS = dict.fromkeys(KINDS, "cpu") | dict.fromkeys(("convnext", "densenet"), "tensorrt")


@pytest.fixture(scope="module", params=KINDS)
def network(request, made_once):
    """(kind, FP32 file, what it answers to pictures that were not trained on)."""
    source = made_once(f"massive-{request.param}", lambda folder: export_massive(request.param, folder))
    answers = open_session("onnxruntime-cpu", source.read_bytes()).run(held_out())
    return request.param, source, answers.argmax(axis=1)


@pytest.fixture(scope="module")
def plan(network):
    return plan_float(onnx.load(network[1]), calibration())


def agreement(network, plan, quantizer, target):
    """Share of held-out pictures that an INT8 graph answers as the FP32 graph does."""
    _, source, expected = network
    if quantizer == "cpu":
        quantize_for_cpu(source, target, calibration(), plan=plan)
        answers = open_session("onnxruntime-cpu", target.read_bytes()).run(held_out())
    else:
        quantize_for_tensorrt(source, target, calibration(), plan=plan)
        answers = simulate(target.read_bytes(), held_out())
    return (answers.argmax(axis=1) == expected).mean()


def test_quantizing_everything_breaks_it(network, tmp_path):
    assert agreement(network, EVERYTHING_QUANTIZED, BREAKS[network[0]], tmp_path / "q.onnx") < 0.8


@pytest.mark.parametrize("quantizer", ["cpu", "tensorrt"])
def test_it_keeps_its_answers(network, plan, tmp_path, quantizer):
    # Some of 597 near answers flip in any INT8; transformers of 48 channels on digits have many such.
    least = 0.96 if network[0] in TRANSFORMERS else 0.99
    assert agreement(network, plan, quantizer, tmp_path / "q.onnx") >= least


def test_the_plan_names_the_massive_activation(network, plan):
    kind, source, _ = network
    assert plan.outliers[0].largest == pytest.approx(1000, rel=0.02)
    assert plan.outliers[0].ratio > 5 * OUTLIER_RATIO
    assert f"largest outlier is {plan.outliers[0].largest:.4g} at" in plan.tell()
    told = json.loads(json.dumps(plan.to_dict()))
    assert sum(told["kept"].values()) == len(plan.reasons)
    nodes = {node.name: node.op_type for node in onnx.load(source).graph.node}
    if kind in (*TRANSFORMERS, "convnext"):
        floats = {nodes[name] for name in plan.reasons}
        assert {"LayerNormalization", "Erf", "Add"} <= floats
        assert ("Softmax" in floats) == (kind != "convnext")
        # What stands between LayerNormalization and what reads it is no outlier: those linear layers are INT8.
        kept = [name for name in plan.products if plan.reasons[name] != "attention"]
        assert len(kept) < sum(operator in {"Conv", "Gemm", "MatMul"} for operator in nodes.values()) / 5
    else:
        assert set(plan.reasons.values()) == {"outlier"}


def test_most_of_the_rest_is_int8(network, plan, tmp_path):
    source, target = network[1], tmp_path / "q.onnx"
    quantize_for_cpu(source, target, calibration(), plan=plan)
    audit = audit_int8(source.read_bytes(), target.read_bytes(), 0.95, keep_float=plan.reasons)
    assert set(audit.kept_float) <= set(plan.reasons)


def test_lite0_has_no_outlier_and_stays_as_it_was(lite0_run, tmp_path, monkeypatch):
    source = lite0_run.bundle / "fp32.onnx"
    train = load_split(lite0_run.stages["data"].folder, "train").frames
    chosen = choose_calibration(train, 64, 0)
    plan = plan_float(onnx.load(source), chosen)
    assert plan == EVERYTHING_QUANTIZED
    for name, given in (("before", EVERYTHING_QUANTIZED), ("now", None)):
        quantize_for_cpu(source, tmp_path / name, chosen, plan=given)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "now").read_bytes()
    # The factor stands far from both: real activations reach 8 times their 90th percentile, massive ones 160.
    monkeypatch.setattr(outliers, "OUTLIER_RATIO", 1.0)
    ratios = [outlier.ratio for outlier in plan_float(onnx.load(source), chosen).outliers]
    assert len(ratios) > 60
    assert 3 < max(ratios) < OUTLIER_RATIO / 2


def test_percentile_overlooks_zeros_and_a_whole_channel():
    values = np.ones((1, 16, 8, 8), np.float32)
    values[:, :8] = 0
    values[:, 15, :2] = 1000  # 16 of 512 values that are not zero
    assert outliers._spread(values) == (1000, 1)
    assert outliers._spread(np.zeros((2, 3), np.float32)) == (0, 0)


def test_layer_norm_is_one_operator_that_adds_up_in_fp32(network, tmp_path):
    """In FP16 too: ``stash_type`` 1 asks for statistics in float32, which TensorRT's own layer gives by default."""
    kind, source, _ = network
    modules = [m for m in NETWORKS[kind].make().modules() if isinstance(m, nn.LayerNorm)]
    convert_to_fp16(source, tmp_path / "h.onnx", calibration())
    for path in (source, tmp_path / "h.onnx"):
        graph = onnx.load(path).graph
        norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
        assert len(norms) == len(modules)
        assert all([a.i for a in node.attribute if a.name == "stash_type"] == [1] for node in norms)
        assert not {node.op_type for node in graph.node} & {
            "Pow",
            "Sqrt",
            "Reciprocal",
        }  # parts of a decomposed one
    assert bool(modules) == (kind in (*TRANSFORMERS, "convnext"))
