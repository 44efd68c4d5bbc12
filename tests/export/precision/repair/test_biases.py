"""Bias correction: means by channel come back, whatever shifted them; nothing else of a graph changes."""

import numpy as np
import onnx
import pytest
import torch
from export_support import export_network, export_residual, make_calibration
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekiln.export.calibration import CalibrationSet, hash_frames
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.export.precision.repair import biases
from edgekiln.export.precision.repair.biases import correct_biases
from edgekiln.export.precision.simulation import simulate
from edgekiln.pipeline.data import load_split


def answer(model, frames, tensors):
    """Values of inner tensors, Q/DQ computed as written."""
    asked = onnx.ModelProto.FromString(model.SerializeToString())
    session = biases._open(asked.graph.node, asked, {}, tensors)
    return dict(zip(tensors, session.run(None, {"image": frames}), strict=True))


def products(model):
    return [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]


def mean(values):
    return values.mean(axis=(0, 2, 3) if values.ndim == 4 else 0, dtype=np.float64)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """(FP32, INT8 whose biases are as the quantizer left them) of a small residual network, and its pictures."""
    folder = tmp_path_factory.mktemp("biases")
    source, calibration = export_residual(folder / "fp32.onnx"), make_calibration()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekiln.export.precision.int8_cpu.correct_biases", lambda *rest: 0)
        quantize_for_cpu(source, folder / "int8.onnx", calibration)
    return onnx.load(source), onnx.load(folder / "int8.onnx"), calibration.frames[:32]


def shifted(model, name, by):
    """A copy in which one product's bias is off by some steps of its own."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    layer = next(layer for layer in biases._find_layers(changed.graph) if layer.node.name == name)
    layer.add(np.full(numpy_helper.to_array(layer.bias).shape, by))
    return changed


def test_every_layer_gets_the_mean_that_it_has_in_fp32(graphs):
    source, quantized, frames = graphs
    nodes = products(source)
    corrected = shifted(quantized, nodes[0].name, 0.5)
    assert correct_biases(corrected, source, frames) == len(nodes)
    outputs = {node.name: node.output[0] for node in products(corrected)}
    wanted = answer(source, frames, [node.output[0] for node in nodes])
    got = answer(corrected, frames, list(outputs.values()))
    before = answer(quantized, frames, list(outputs.values()))
    for node in nodes:
        expected = mean(wanted[node.output[0]])
        after = np.abs(mean(got[outputs[node.name]]) - expected).max()
        # An int32 bias has steps of the input's scale by the weight's, far finer than this.
        assert after <= 1e-3 * np.abs(wanted[node.output[0]]).max()
        assert after <= np.abs(mean(before[outputs[node.name]]) - expected).max() + 1e-9


def test_only_biases_change_and_the_same_input_gives_the_same_bytes(graphs):
    source, quantized, frames = graphs
    once, again = (onnx.ModelProto.FromString(quantized.SerializeToString()) for _ in range(2))
    for model in (once, again):
        correct_biases(model, source, frames)
    assert once == again
    assert once.graph.node == quantized.graph.node
    before = {tensor.name: tensor for tensor in quantized.graph.initializer}
    changed = {tensor.name for tensor in once.graph.initializer if tensor != before[tensor.name]}
    assert changed
    assert changed <= {layer.bias.name for layer in biases._find_layers(quantized.graph)}


def test_fewer_pictures_are_taken_where_layers_are_large(graphs, monkeypatch):
    source, quantized, frames = graphs
    seen = []
    measure = biases._measure_means
    monkeypatch.setattr(
        biases, "_measure_means", lambda *a: (found := measure(*a), seen.append(len(found[1])))[0]
    )
    largest = max(
        v[:1].nbytes for v in answer(source, frames[:1], [n.output[0] for n in products(source)]).values()
    )
    for memory in (largest * 5, largest - 1, 1 << 30):
        monkeypatch.setattr(biases, "_MEMORY", memory)
        correct_biases(onnx.ModelProto.FromString(quantized.SerializeToString()), source, frames)
    assert seen == [5, 1, 32]


class Linears(nn.Module):
    """Linear layers over tokens are exported as MatMul and Add."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.head(torch.relu(self.first(tokens)).mean(1))


def test_linear_layers_over_tokens_are_corrected_too(tmp_path):
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    source = onnx.load(export_network(Linears(), tmp_path / "fp32.onnx", size=8))
    wrong = onnx.ModelProto.FromString(source.SerializeToString())
    layers = list(biases._find_layers(wrong.graph))
    assert [layer.node.op_type for layer in layers] == ["Add", "Gemm"]
    for layer in layers:
        layer.add(np.linspace(-1, 1, len(numpy_helper.to_array(layer.bias))))
    assert correct_biases(wrong, source, frames) == 2
    clean, mended = (simulate(model.SerializeToString(), frames) for model in (source, wrong))
    np.testing.assert_allclose(mended, clean, atol=1e-4)


def test_a_layer_whose_bias_another_reads_is_left():
    weight, bias = np.ones((2, 2, 1, 1), np.float32), np.ones(2, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], [f"y{i}"], f"conv{i}") for i in range(2)],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 4, 4])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", 2, 4, 4]) for i in range(2)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    assert list(biases._find_layers(graph)) == []


@pytest.mark.slow
def test_a_depthwise_network_loses_a_fraction_of_what_it_lost(lite0_run, tmp_path, monkeypatch):
    """On the traffic lights, with the scale of a few percent of rounding noise that 32 pictures calibrate to."""
    data = lite0_run.stages["data"].folder
    train, test = (load_split(data, name) for name in ("train", "test"))
    frames = np.array(train.frames[:: len(train.frames) // 32][:32])
    calibration = CalibrationSet(frames, np.arange(len(frames)), "".join(hash_frames(frames[:1])))
    source, pictures = lite0_run.bundle / "fp32.onnx", np.array(test.frames)

    def divergence(name):
        quantize_for_cpu(source, tmp_path / name, calibration)
        logits = simulate((tmp_path / name).read_bytes(), pictures)
        return float(np.mean((logits - simulate(source.read_bytes(), pictures)) ** 2))

    corrected = divergence("corrected.onnx")
    monkeypatch.setattr("edgekiln.export.precision.int8_cpu.correct_biases", lambda *rest: 0)
    assert corrected <= 0.5 * divergence("left.onnx")
