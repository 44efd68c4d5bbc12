import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.costs import count_costs
from edgekiln.pipeline.workspace.stage_files import read_json

W = (4, 3, 3, 3)  # 108 elements


def model_bytes(
    nodes, constants, *, shape=("n", 3, 8, 8), output_type=TensorProto.FLOAT, input_type=TensorProto.FLOAT
):
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", input_type, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], output_type, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return model.SerializeToString()


def conv(inputs, output):
    return helper.make_node("Conv", inputs, [output], name=output, pads=[1] * 4)


@pytest.mark.parametrize(("dtype", "kind", "size"), [(np.float32, 1, 4), (np.float16, 10, 2)])
def test_a_small_network_by_hand(dtype, kind, size):
    nodes = [
        conv(["x", "w", "b"], "c"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="y"),
    ]
    constants = {"w": np.zeros(W, dtype), "b": np.zeros(4, dtype), "g": np.zeros((256, 10), dtype)}
    costs = count_costs(model_bytes(nodes, constants, input_type=kind, output_type=kind))
    assert costs.macs == 64 * 4 * 27 + 2560
    assert costs.weight_bytes == (108 + 4 + 2560) * size
    assert costs.activation_bytes == (192 + 256 + 256 + 10) * size
    assert (costs.input_bytes, costs.output_bytes) == (192 * size, 10 * size)
    assert costs.unknown == ()


def test_a_fixed_batch_counts_one_image():
    nodes, constants = [conv(["x", "w"], "y")], {"w": np.zeros(W, np.float32)}
    dynamic = count_costs(model_bytes(nodes, constants))
    assert count_costs(model_bytes(nodes, constants, shape=(8, 3, 8, 8))) == dynamic


@pytest.mark.parametrize("weights_quantized_at_build", [False, True])
def test_quantized_tensors_count_a_byte_each(weights_quantized_at_build):
    scale, zero, zero8 = (
        np.float32(0.5).reshape(()),
        np.zeros((), np.uint8),
        np.zeros((), np.int8),
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "z8"], ["wd"]),
        conv(["xd", "wd"], "c"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    constants = {"s": scale, "z": zero, "z8": zero8}
    if weights_quantized_at_build:
        nodes.insert(1, helper.make_node("QuantizeLinear", ["w", "s", "z8"], ["wq"]))
        constants["w"] = np.zeros(W, np.float32)
    else:
        constants["wq"] = np.zeros(W, np.int8)
    costs = count_costs(
        model_bytes(nodes, constants, input_type=TensorProto.UINT8, output_type=TensorProto.UINT8)
    )
    assert costs.weight_bytes == 108 + 4 + 1 + 1  # weights, scale, two zero points
    assert costs.activation_bytes == 192 + 256
    assert (costs.input_bytes, costs.output_bytes) == (192, 256)


def test_what_cannot_be_counted_is_named():
    nodes = [conv(["x", "w"], "y")]
    costs = count_costs(model_bytes(nodes, {"w": np.zeros(W, np.float32)}, shape=("n", 3, "h", "w")))
    assert costs.macs == costs.activation_bytes == 0
    assert costs.unknown == ("y", "x")
    assert costs.to_dict()["unknown"] == ["y", "x"]


def test_int8_variant_of_a_run_has_the_macs_of_fp32_and_a_quarter_of_its_weights(tiny_run):
    stages = tiny_run[1]
    fp32, int8 = (
        read_json(next(stages.rglob(f"variant.{name}*/**/about.json")))["costs"] for name in ("fp32", "int8")
    )
    assert int8["macs"] == fp32["macs"] > 0
    assert (
        0.2 < int8["weight_bytes"] / fp32["weight_bytes"] < 0.45
    )  # scales and int32 biases of a tiny network
    assert int8["activation_bytes"] < 0.5 * fp32["activation_bytes"]
    assert int8["input_bytes"] == fp32["input_bytes"] == 32 * 32 * 3


@pytest.mark.slow
def test_resnet18_has_its_published_parameters(tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / "resnet18.onnx"
    torch.onnx.export(
        network, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, verbose=False, external_data=False
    )
    costs = count_costs(path.read_bytes())
    assert costs.macs == 1_814_073_344  # torchvision's documentation: 1.814 G
    # 11.69 M parameters of 4 bytes; the exporter folds the 9,600 of batch normalization into the biases.
    assert 46.6e6 < costs.weight_bytes < 46.9e6
    assert costs.input_bytes == 3 * 224 * 224 * 4
    assert costs.output_bytes == 4000
