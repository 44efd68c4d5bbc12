"""What the runtime tells of an ONNX file without an ONNX library, held against the library itself."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.pipeline.doctor.tiny_model import make_tiny_model
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.onnx_files.summary import summarize_onnx


def weights(lowest=0, *, shape=(4, 4), dtype=np.int8, raw=True):
    """A tensor of which ``lowest`` elements are the lowest that INT8 has, and the others are its neighbours."""
    values = np.resize(np.array([-127, 127, 0, -1]), shape).astype(dtype)
    values.reshape(-1)[:lowest] = np.int8(-128).view(dtype)
    if raw:
        return numpy_helper.from_array(values, "w")
    return helper.make_tensor("w", TensorProto.INT8, shape, values.reshape(-1).tolist())


def product(tensor, *, constant=False, integer=True):
    """Pixels (N, 4) times the tensor, in INT8 or, with the weights made floats before, in float."""
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)] if constant else []
    if integer:
        nodes += [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w"], ["y"]),
        ]
    else:
        nodes += [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ]
    scale = [numpy_helper.from_array(np.float32(1), "s")]
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32 if integer else TensorProto.FLOAT, ["n", "c"])],
        scale if constant else [tensor, *scale],
    )


def model_of(graph):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def inside_a_branch(graph):
    """The same graph, run where a condition holds."""
    cases = [
        helper.make_graph(graph.node, name, [], graph.output, graph.initializer) for name in ("then", "else")
    ]
    chosen = helper.make_node("If", ["c"], ["z"], then_branch=cases[0], else_branch=cases[1])
    inputs = [*graph.input, helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    return helper.make_graph(
        [chosen], "outer", inputs, [helper.make_tensor_value_info("z", TensorProto.INT32, ["n", "c"])]
    )


@pytest.mark.parametrize(
    ("graph", "lowest"),
    [
        (product(weights(0)), 0),
        (product(weights(3)), 3),
        (product(weights(3, raw=False)), 3),
        (product(weights(3), constant=True), 3),
        (inside_a_branch(product(weights(3))), 6),
        (product(weights(3), integer=False), 0),  # only saves space: nothing is added up in INT8
        (product(weights(128, shape=(4, 128), dtype=np.uint8)), 0),  # 128 is that byte too
        (product(weights(4, shape=(4,))), 0),  # a vector: zero points and biases, not weights
    ],
)
def test_lowest_weights_are_counted_where_integers_are_added_up(graph, lowest):
    data = model_of(graph)
    check_onnx(data)
    summary = summarize_onnx(data)
    assert summary.lowest_weights == lowest
    assert (summary.warning or "").startswith(f"{lowest} of its INT8 weights are -128") == (lowest > 0)


def test_one_lowest_weight_alone_cannot_overflow():
    """127 * 128 + 128 * 128 is less than 2^15."""
    assert summarize_onnx(model_of(product(weights(1)))).warning is None


def test_what_onnxruntimes_own_quantizer_writes_is_warned_of(tmp_path):
    """Its default for weights uses the whole range of INT8 where values are not symmetric."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    values = np.linspace(-1, 1 - 2 / 255, 64 * 8, dtype=np.float32).reshape(64, 8)
    values[:4] = -1
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(values, "w")],
    )
    (tmp_path / "float.onnx").write_bytes(model_of(graph))
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": False},
    )
    data = (tmp_path / "int8.onnx").read_bytes()
    held = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer]
    expected = sum(int((array == -128).sum()) for array in held if array.dtype == np.int8 and array.ndim > 1)
    assert expected >= 2
    assert summarize_onnx(data).lowest_weights == expected
    onnxruntime.InferenceSession(data)  # a file that people run


def test_versions_and_operators_are_the_librarys():
    for data in (make_tiny_model(), model_of(inside_a_branch(product(weights())))):
        model, summary = onnx.load_from_string(data), summarize_onnx(data)
        assert summary.ir_version == model.ir_version
        assert summary.opset == {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        assert summary.operators == dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a\x50abc"])
def test_other_bytes_are_refused(data):
    with pytest.raises(EngineError):
        summarize_onnx(data)
