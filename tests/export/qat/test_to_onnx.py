"""What is trained and what is in the file: the same integers, the same answers, under the lint of every INT8 graph."""

import numpy as np
import onnx
import pytest
import torch
from export_support import (
    FAMILY_SIZE,
    assert_same_interface,
    export_network,
    export_residual,
    make_calibration,
    make_family,
    make_residual,
    tensors_of,
)

from edgekiln.export.audits.macs import count_macs
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.qdq_lint import lint_qdq
from edgekiln.export.precision.simulation import simulate
from edgekiln.export.qat import fake_quantization as fake
from edgekiln.export.qat import to_onnx as qat_onnx
from edgekiln.export.qat.graph import prepare_network
from edgekiln.export.qat.to_onnx import export_fake_quantized
from edgekiln.export.to_onnx import PixelModel
from edgekiln.runtime.contract import SHARED_NORMALIZATION
from edgekiln.runtime.errors import ParityError, PrecisionError

pytest.importorskip("modelopt", reason="fake-quantizes with nvidia-modelopt")


def make_model(network, calibration, size=16):
    """A calibrated fake-quantized model; every weight range is a little narrower than its largest weight."""
    prepared = prepare_network(network, size)
    fake.insert_quantizers(prepared)
    model = PixelModel(prepared.network, SHARED_NORMALIZATION).eval()
    frames = torch.from_numpy(calibration.frames)
    fake.calibrate(prepared.network, lambda _: model(frames), input_range=fake.PIXEL_RANGE)
    ranges = {name: 0.9 * amax for name, amax in fake.weight_ranges(prepared.network).items()}
    fake.set_weight_ranges(prepared.network, ranges)
    return model


@pytest.fixture(scope="module")
def calibration():
    return make_calibration()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, calibration):
    """(model, source, target, report) of the residual network."""
    folder = tmp_path_factory.mktemp("qat")
    source = export_residual(folder / "m.onnx")
    model = make_model(make_residual(), calibration)
    return (
        model,
        source,
        folder / "q.onnx",
        export_fake_quantized(model, source, folder / "q.onnx", calibration),
    )


def test_file_is_used_as_every_other(exported):
    _, source, target, report = exported
    assert_same_interface(source, target)
    assert (report.rest, report.quantized, report.raised_scales, report.findings) == ("fp16", (3, 4), 0, ())
    assert lint_qdq(onnx.load(target).graph) == ()


def test_file_answers_as_the_network_that_was_trained(exported, calibration):
    model, _, target, _ = exported
    with torch.no_grad():
        expected = model(torch.from_numpy(calibration.frames)).numpy()
    got = simulate(target.read_bytes(), calibration.frames)
    # FP16 between three layers, and roundings that fall to the other side: a step is 1/127 of a tensor's range.
    assert 0 < np.abs(got - expected).max() < 0.01 * np.ptp(expected)


def test_integers_in_the_file_are_those_of_the_network(exported):
    model, _, target, _ = exported
    tensors = tensors_of(onnx.load(target))
    scales = {n.input[0]: n.input[1] for n in onnx.load(target).graph.node if n.op_type == "QuantizeLinear"}
    for name, amax in fake.weight_ranges(model.network).items():
        weight = tensors[f"network.{name}.weight"]
        scale = tensors[scales[f"network.{name}.weight"]]
        assert (weight.dtype, scale.dtype, scale.shape) == (np.float16, np.float16, (16,))
        stored = np.rint(weight.astype(np.float64) / scale.astype(np.float64)[:, None, None, None])
        trained = model.network.get_submodule(name).weight.detach() / (amax / 127)
        assert np.array_equal(stored, trained.round().numpy())
        assert (stored.min() >= -128, stored.max()) == (True, 127)


def test_same_tensors_are_quantized_as_after_training(exported, tmp_path, calibration):
    _, source, target, _ = exported
    quantize_for_tensorrt(source, tmp_path / "p.onnx", calibration)

    def layout(path):
        """How often each kind of node reads a dequantized tensor."""
        graph = onnx.load(path).graph
        made_by = {name: node.op_type for node in graph.node for name in node.output}
        readers = [
            n.op_type for n in graph.node for name in n.input if made_by.get(name) == "DequantizeLinear"
        ]
        return sorted(readers), sum(node.op_type == "QuantizeLinear" for node in graph.node)

    assert layout(target) == layout(tmp_path / "p.onnx")


def test_pixels_and_logits_are_left_alone(exported):
    graph = onnx.load(exported[2]).graph
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by["logits"]
    while node.op_type == "Cast":
        node = made_by[node.input[0]]
    assert node.op_type == "Gemm"
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def test_same_network_gives_the_same_bytes(exported, tmp_path, calibration):
    _, source, target, _ = exported
    export_fake_quantized(
        make_model(make_residual(), calibration), source, tmp_path / "again.onnx", calibration
    )
    assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()


def test_activations_too_large_for_fp16_keep_the_rest_in_fp32(tmp_path, calibration):
    network = make_residual()
    with torch.no_grad():
        for parameter in (network.stem.weight, network.stem.bias, network.conv1.bias, network.conv2.bias):
            parameter.mul_(1e5)
        network.head.weight.mul_(1e-5)
    source = export_network(network, tmp_path / "m.onnx")
    report = export_fake_quantized(make_model(network, calibration), source, tmp_path / "q.onnx", calibration)
    assert (report.rest, report.quantized) == ("fp32", (3, 4))
    assert tensors_of(onnx.load(tmp_path / "q.onnx"))["network.conv1.weight"].dtype == np.float32


def test_graph_without_its_pairs_is_refused(exported, tmp_path, calibration, monkeypatch):
    model, source, *_ = exported
    export = qat_onnx._export

    def forget(given, *arguments):
        with fake.quantizers_off(given.network):
            return export(given, *arguments)

    monkeypatch.setattr(qat_onnx, "_export", forget)
    with pytest.raises(PrecisionError, match="is no copy of the trained network: their answers differ by"):
        export_fake_quantized(model, source, tmp_path / "q.onnx", calibration)


def test_wrong_graph_is_refused(exported, tmp_path, calibration, monkeypatch):
    _, source, *_ = exported
    other = make_model(make_residual(seed=1), calibration)
    model, export = exported[0], qat_onnx._export
    monkeypatch.setattr(qat_onnx, "_export", lambda _, *arguments: export(other, *arguments))
    with pytest.raises(ParityError, match="differs from PyTorch"):
        export_fake_quantized(model, source, tmp_path / "q.onnx", calibration)
    assert not (tmp_path / "q.onnx").exists()


def test_padding_of_its_own_leaves_every_shape_known(tmp_path, calibration):
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(Conv2dSame(3, 16, 3, stride=2), torch.nn.ReLU(), Conv2dSame(16, 16, 3, stride=2), torch.nn.ReLU()),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3)),
    )
    source = export_network(network, tmp_path / "m.onnx")
    model = make_model(network, calibration)
    report = export_fake_quantized(model, source, tmp_path / "q.onnx", calibration)
    assert report.quantized == (2, 3)
    graph = onnx.load(tmp_path / "q.onnx")
    assert count_macs(graph).unknown == ()
    # 16 pixels to 8 to 4, kernel 3 x 3.
    assert sorted(count_macs(graph).values()) == [16 * 3, 8 * 8 * 3 * 16 * 9, 4 * 4 * 16 * 16 * 9]
    assert not {"Concat", "Slice", "Reshape"} & {node.op_type for node in graph.graph.node}


def test_nothing_is_printed(exported, tmp_path, calibration, capfd):
    export_fake_quantized(exported[0], exported[1], tmp_path / "q.onnx", calibration)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["efficientnet_lite0", "mobilenet_v3_small", "resnet18"],
    ids=["lite0", "mobilenet_v3_small", "resnet18"],
)
def test_family_passes_the_lint_with_the_layers_of_post_training_quantization(tmp_path, converted, family):
    after, calibration = converted(family), make_calibration(32, FAMILY_SIZE)
    model = make_model(make_family(family), calibration, FAMILY_SIZE)
    report = export_fake_quantized(model, after.fp32, tmp_path / "q.onnx", calibration)
    assert (report.quantized, report.findings, report.rest) == (after.report.quantized, (), "fp16")
    counts = [count_macs(onnx.load(path)) for path in (after.int8, tmp_path / "q.onnx")]
    assert counts[1].unknown == ()  # the audit weighs by them
    assert sorted(counts[0].values()) == sorted(counts[1].values())


@pytest.mark.slow
def test_engine_is_built_from_it_and_computes_in_int8(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds a real TensorRT-RTX engine; needs no GPU")
    from edgekiln.export.audits.tensorrt import audit_rtx_plan
    from edgekiln.export.engines.cache import EngineCache
    from edgekiln.export.engines.options import BatchProfile, BuildOptions
    from edgekiln.export.engines.tensorrt import build_engine
    from edgekiln.runtime.spec import Precision

    model = exported[2].read_bytes()
    options = BuildOptions("tensorrt-rtx", Precision.INT8, BatchProfile(1, 4, 8))
    built = build_engine(model, options, EngineCache(tmp_path / "engines"))
    audit = audit_rtx_plan(built.data, count_macs(onnx.load_from_string(model)), Precision.INT8, 0.99)
    # All but the head, 48 of 0.2 million MACs.
    assert (audit.evidence, audit.share) == ("rtx-plan", pytest.approx(1, abs=0.01))
