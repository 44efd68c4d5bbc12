import json

import numpy as np
import onnx
import pytest
import torch
from export_support import (
    assert_same_interface,
    edit_weights,
    export_network,
    export_residual,
    make_calibration,
    make_frames,
    settle_statistics,
    tensors_of,
)
from torch import nn

from edgekiln.export.calibration import choose_calibration
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.qdq_lint import SMALLEST_FP16_SCALE, lint_qdq
from edgekiln.export.precision.ranges import measure_peaks
from edgekiln.export.precision.simulation import simulate
from edgekiln.runtime.errors import DataError, MissingExtraError, PrecisionError

pytest.importorskip("modelopt", reason="quantizes with nvidia-modelopt")


@pytest.fixture(scope="module")
def calibration():
    return make_calibration()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, calibration):
    """(source, target, report) of the residual network."""
    folder = tmp_path_factory.mktemp("int8")
    source = export_residual(folder / "m.onnx")
    return source, folder / "q.onnx", quantize_for_tensorrt(source, folder / "q.onnx", calibration)


def pairs_of(graph):
    return [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]


def scale_of(graph, tensor):
    """Scale of the quantizer that reads a tensor."""
    (node,) = (node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor)
    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}[node.input[1]]


def test_file_is_used_as_before(quantized, calibration):
    source, target, report = quantized
    assert_same_interface(source, target)
    # Three convolutions; the head multiplies one row per picture, which ModelOpt leaves alone.
    assert (report.rest, report.quantized, report.raised_scales, report.findings) == ("fp16", (3, 4), 0, ())
    reference, got = (simulate(path.read_bytes(), calibration.frames) for path in (source, target))
    # Three layers, each half a step of 1/127 off at the very most: 1.2 % of the range of what they add up.
    assert 0 < np.abs(got - reference).max() / np.ptp(reference) < 0.012


def test_weights_are_symmetric_and_per_channel(quantized):
    source, target, _ = quantized
    graph = onnx.load(target).graph
    weights, tensors = tensors_of(onnx.load(source)), tensors_of(onnx.load(target))
    for name in ("stem", "conv1", "conv2"):
        weight = weights[f"network.{name}.weight"]
        expected = np.abs(weight).reshape(16, -1).max(axis=1) / 127
        # FP16 keeps 11 bits of a scale, and the library may divide by 127 or by 127.5
        assert scale_of(graph, f"network.{name}.weight") == pytest.approx(expected, rel=0.006)
        assert scale_of(graph, f"network.{name}.weight").shape == (16,)
    for node in pairs_of(graph):
        zero_point = tensors[node.input[2]]
        assert (zero_point.dtype, np.any(zero_point)) == (np.dtype(np.int8), False)


def test_activation_scale_is_the_peak_on_the_calibration_pictures(quantized, calibration):
    source, target, _ = quantized
    graph = onnx.load(target).graph
    peaks = {peak.tensor: peak.value for peak in measure_peaks(source.read_bytes(), calibration.frames)}
    for tensor in ("add_20", "relu", "relu_1"):
        scale = scale_of(graph, tensor)
        assert scale.ndim == 0
        assert scale == pytest.approx(peaks[tensor] / 127, rel=0.006)  # as above


def test_identity_branch_of_the_residual_is_quantized_and_the_other_is_not(quantized):
    graph = onnx.load(quantized[1]).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    (add,) = (
        node for node in graph.node if node.op_type == "Add" and all(name in made_by for name in node.input)
    )
    assert {made_by[name] for name in add.input} == {"DequantizeLinear", "Conv"}


def test_logits_and_pixels_are_left_alone(quantized):
    graph = onnx.load(quantized[1]).graph
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by["logits"]
    assert (last.op_type, made_by[last.input[0]].op_type) == ("Cast", "Gemm")
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def test_report_is_json(quantized):
    assert json.loads(json.dumps(quantized[2].to_dict())) == {
        "rest": "fp16",
        "quantized_products": 3,
        "products": 4,
        "kept_float": [],
        "float_plan": {"kept": {}, "products": {}, "outliers": [], "outlier_count": 0},
        "raised_scales": 0,
        "raised_activations": [],
        "lint": [],
    }


def test_dead_channel_gets_a_scale_that_fp16_can_hold(tmp_path, calibration):
    def fade(weight):
        weight = weight.copy()
        weight[3] *= 1e-6
        return weight

    source = edit_weights(export_residual(tmp_path / "m.onnx"), conv1_weight=fade)
    report = quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)
    assert report.raised_scales == 1  # once, though Q and DQ have a scale each
    model = onnx.load(tmp_path / "q.onnx")
    scales = scale_of(model.graph, "network.conv1.weight")
    assert scales[3] == SMALLEST_FP16_SCALE
    assert np.delete(scales, 3).min() > 100 * SMALLEST_FP16_SCALE
    assert lint_qdq(model.graph) == ()
    reference, got = (simulate(p.read_bytes(), calibration.frames) for p in (source, tmp_path / "q.onnx"))
    assert np.abs(got - reference).max() / np.ptp(reference) < 0.012  # as above


def test_activations_too_large_for_fp16_keep_the_rest_in_fp32(tmp_path, calibration):
    source = edit_weights(
        export_residual(tmp_path / "m.onnx"),
        stem_weight=lambda w: (w * 1e5).astype(np.float32),
        stem_bias=lambda w: (w * 1e5).astype(np.float32),
        conv1_bias=lambda w: (w * 1e5).astype(np.float32),
        conv2_bias=lambda w: (w * 1e5).astype(np.float32),
        head_weight=lambda w: (w * 1e-5).astype(np.float32),
    )
    report = quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)
    assert (report.rest, report.quantized) == ("fp32", (3, 4))
    weights = tensors_of(onnx.load(tmp_path / "q.onnx"))
    assert weights["network.head.weight"].dtype == np.float32
    assert_same_interface(source, tmp_path / "q.onnx")
    reference, got = (simulate(p.read_bytes(), calibration.frames) for p in (source, tmp_path / "q.onnx"))
    assert np.abs(got - reference).max() / np.ptp(reference) < 0.012  # as above


def test_network_with_too_few_channels_is_refused(tmp_path, calibration):
    source = export_residual(tmp_path / "m.onnx", width=8)
    with pytest.raises(
        PrecisionError, match=r"none of the 4 products.*at least 16 channels; take an FP16 variant"
    ):
        quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)
    assert not (tmp_path / "q.onnx").exists()


def test_pair_never_stands_between_a_convolution_and_its_hardswish(tmp_path, calibration):
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Hardswish()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Hardswish()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )
    source = export_network(settle_statistics(network, 16), tmp_path / "m.onnx")
    assert "HardSwish" in {node.op_type for node in onnx.load(source).graph.node}
    report = quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)
    assert (report.quantized, report.findings) == ((2, 3), ())


def test_model_that_gives_no_number_is_refused(tmp_path, calibration):
    source = edit_weights(export_residual(tmp_path / "m.onnx"), conv2_bias=lambda bias: bias * np.nan)
    with pytest.raises(PrecisionError, match="FP32 model gives NaN or infinity at node_conv2d_2"):
        quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)


def test_file_of_garbage_is_refused_by_modelopt(tmp_path, calibration, monkeypatch):
    import modelopt.onnx.quantization as library

    def refuse(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(library, "quantize", refuse)
    with pytest.raises(PrecisionError, match="cannot quantize this graph: RuntimeError: no such operator"):
        quantize_for_tensorrt(export_residual(tmp_path / "m.onnx"), tmp_path / "q.onnx", calibration)


def test_entropy_narrows_the_ranges_and_keeps_the_answers(quantized, tmp_path, calibration):
    source, target, _ = quantized
    report = quantize_for_tensorrt(source, tmp_path / "e.onnx", calibration, "entropy")
    assert (report.quantized, report.findings) == ((3, 4), ())
    graphs = [onnx.load(path).graph for path in (target, tmp_path / "e.onnx")]
    for tensor in ("add_20", "relu", "relu_1"):
        widest, narrowed = (float(scale_of(graph, tensor)) for graph in graphs)
        assert 0.1 * widest < narrowed <= 1.02 * widest  # a bin of 1/64 may stick out
    reference, got = (simulate(p.read_bytes(), calibration.frames) for p in (source, tmp_path / "e.onnx"))
    # Entropy clips outliers on purpose, so the tolerance is wider than for max.
    assert np.abs(got - reference).max() / np.ptp(reference) < 0.1


def test_library_sees_every_picture_and_no_plain_one_first(tmp_path, monkeypatch):
    import modelopt.onnx.quantization as library

    seen = []

    def capture(*_, calibration_data, **__):
        seen.append(calibration_data["image"])
        raise RuntimeError("seen")

    monkeypatch.setattr(library, "quantize", capture)
    frames = make_frames(32)
    frames[0] = 128  # the histogram's bins would be those of 1/128, and take entropy many times as long
    with pytest.raises(PrecisionError, match="seen"):
        quantize_for_tensorrt(
            export_residual(tmp_path / "m.onnx"),
            tmp_path / "q.onnx",
            choose_calibration(frames, 32, 0),
            "entropy",
        )
    assert seen[0][0].std() > 10
    assert sorted(frame.tobytes() for frame in seen[0]) == sorted(frame.tobytes() for frame in frames)


def test_ranges_are_those_of_the_pictures_given(quantized, tmp_path):
    source, target, _ = quantized
    darker = choose_calibration(make_frames(32) // 4 + 96, 32, 0)
    quantize_for_tensorrt(source, tmp_path / "d.onnx", darker)
    bright, dark = (scale_of(onnx.load(path).graph, "add_20") for path in (target, tmp_path / "d.onnx"))
    assert dark < bright / 3
    assert darker.digest != make_calibration().digest


def test_calibration_without_real_data_is_refused():
    with pytest.raises(DataError, match="Calibration has 0 images, wanted at least 32"):
        choose_calibration(make_frames(1)[:0], 32, 0)
    with pytest.raises(DataError, match="Calibration has 31 images, wanted at least 32"):
        choose_calibration(make_frames(31), 32, 0)


def test_same_input_gives_the_same_bytes(quantized, tmp_path, calibration):
    quantize_for_tensorrt(quantized[0], tmp_path / "again.onnx", calibration)
    assert (tmp_path / "again.onnx").read_bytes() == quantized[1].read_bytes()


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_nothing_is_printed(quantized, tmp_path, calibration, capfd, method):
    quantize_for_tensorrt(quantized[0], tmp_path / "q.onnx", calibration, method)
    assert capfd.readouterr() == ("", "")


def test_missing_library_is_told_with_the_install_line(quantized, tmp_path, calibration, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingExtraError, match=r"Run: pip install 'edgekiln\[modelopt\]'"):
        quantize_for_tensorrt(quantized[0], tmp_path / "q.onnx", calibration)
