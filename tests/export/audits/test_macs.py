import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.macs import count_macs


def model_of(nodes, inputs, constants, opset=19):
    """A model whose last node's first output is the graph's output, of unknown shape."""
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize(
    ("operator", "inputs", "constants", "attributes", "expected"),
    [
        (
            "Conv",
            {"x": ["n", 8, 16, 16]},
            {"w": (4, 8, 3, 3)},
            {"strides": [2, 2], "pads": [1] * 4},
            64 * 4 * 72,
        ),
        ("Conv", {"x": ["n", 8, 16, 16]}, {"w": (8, 1, 3, 3)}, {"group": 8, "pads": [1] * 4}, 256 * 8 * 9),
        ("ConvTranspose", {"x": ["n", 8, 4, 4]}, {"w": (8, 3, 2, 2)}, {"strides": [2, 2]}, 8 * 16 * 3 * 4),
        ("ConvTranspose", {"x": ["n", 8, 4, 4]}, {"w": (8, 3, 2, 2)}, {"group": 2}, 8 * 16 * 3 * 4),
        ("Gemm", {"x": ["n", 20]}, {"w": (10, 20)}, {"transB": 1}, 200),
        ("Gemm", {"x": [20, 1]}, {"w": (20, 10)}, {"transA": 1}, 200 // 20),
        ("MatMul", {"x": ["n", 7, 20]}, {"w": (20, 10)}, {}, 7 * 200),
        ("MatMul", {"x": ["n", 3, 7, 20], "w": ["n", 3, 20, 7]}, {}, {}, 3 * 7 * 7 * 20),
    ],
)
def test_one_product_for_one_image(operator, inputs, constants, attributes, expected):
    node = helper.make_node(operator, ["x", "w"], ["y"], name="/p", **attributes)
    assert count_macs(model_of([node], inputs, constants)) == {"/p": expected}


def test_fixed_batch_is_divided_out_and_the_model_left_alone():
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/p")
    model = model_of([node], {"x": [4, 8, 8, 8]}, {"w": (2, 8, 1, 1)})
    before = model.SerializeToString()
    assert count_macs(model) == {"/p": 64 * 2 * 8}
    assert model.SerializeToString() == before


def test_stale_symbolic_shapes_do_not_matter():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="/p"),
    ]
    model = model_of(nodes, {"x": ["n", 8, 8, 8]}, {"w": (2, 8, 1, 1)})
    stale = [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", "c", "h", "w"])]
    model.graph.value_info.extend(stale)
    assert count_macs(model) == {"/p": 64 * 2 * 8}


def test_unknown_shapes_are_named_and_left_out():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="/known"),
        helper.make_node("Conv", ["z", "w"], ["u"], name="/unknown"),
    ]
    model = model_of(nodes, {"x": ["n", 8, 8, 8], "z": ["n", 8, "h", "w"]}, {"w": (2, 8, 1, 1)})
    counts = count_macs(model)
    assert dict(counts) == {"/known": 64 * 2 * 8}
    assert counts.unknown == ("/unknown",)


def test_nameless_node_is_called_as_tensorrt_calls_it():
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"w": (4, 2)})
    assert count_macs(model) == {"node_of_y": 8}


@pytest.mark.slow
def test_resnet18_has_its_published_macs(tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / "resnet18.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, verbose=False)
    counts = count_macs(onnx.load(path))
    assert counts.unknown == ()
    assert len(counts) == 21
    assert sum(counts.values()) == 1_814_073_344  # torchvision's documentation: 1.814 G
