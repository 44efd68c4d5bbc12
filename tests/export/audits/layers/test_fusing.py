"""Which nodes of a file a node of onnxruntime's optimized graph computes, on graphs that the library optimizes here."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.layers.fusing import find_origins, is_inserted
from edgekiln.export.audits.onnxruntime import optimize_with_onnxruntime

RNG = np.random.default_rng(0)


def node(kind, name, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name, **attributes)


def graph_of(nodes, weights, shape=(1, 8, 8, 8)):
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in
            (("x", shape), (nodes[-1].output[0], None))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def conv(number, source):
    return node("Conv", f"conv{number}", [source, f"w{number}"], f"c{number}", pads=[1, 1, 1, 1])


SILU = ([conv(1, "x"), node("Sigmoid", "sigmoid", ["c1"], "s"), node("Mul", "mul", ["c1", "s"], "m"), conv(2, "m")],
        {"w1": weights(8, 8, 3, 3), "w2": weights(8, 8, 3, 3)})  # fmt: skip
RESIDUAL = ([conv(1, "x"), node("Relu", "relu1", ["c1"], "r1"), conv(2, "r1"), node("Add", "add", ["c2", "r1"], "a"),
             node("Relu", "relu2", ["a"], "r2"), conv(3, "r2")],
            {f"w{n}": weights(8, 8, 3, 3) for n in (1, 2, 3)})  # fmt: skip
NORM = ([
    node("ReduceMean", "mean", ["x", "axes"], "m", keepdims=1),
    node("Sub", "sub", ["x", "m"], "d"),
    node("Pow", "pow", ["d", "two"], "p"),
    node("ReduceMean", "variance", ["p", "axes"], "v", keepdims=1),
    node("Add", "epsilon", ["v", "eps"], "e"),
    node("Sqrt", "sqrt", ["e"], "q"),
    node("Div", "div", ["d", "q"], "n"),
    node("Mul", "scale", ["n", "g"], "s"),
    node("Add", "shift", ["s", "b"], "o"),
], {
    "axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5), "g": weights(8), "b": weights(8),
})  # fmt: skip


def origins(nodes, constants):
    model = graph_of(nodes, constants)
    optimized = optimize_with_onnxruntime(model.SerializeToString())
    return find_origins(model.graph, optimized.graph), optimized.graph


def parts(found):
    return sorted((set(names) for names in found.values() if names), key=sorted)


def test_an_activation_and_a_residual_belong_to_the_convolution_that_writes_them():
    found, _ = origins(*RESIDUAL)
    assert parts(found) == [{"add", "conv2", "relu2"}, {"conv1", "relu1"}, {"conv3"}]


def test_an_activation_of_two_nodes_is_one_layer_beside_its_convolution():
    found, _ = origins(*SILU)
    assert parts(found) == [{"conv1"}, {"conv2"}, {"mul", "sigmoid"}]


def test_a_decomposed_normalization_is_one_layer():
    found, _ = origins(*NORM)
    assert parts(found) == [
        {"mean", "sub", "pow", "variance", "epsilon", "sqrt", "div", "scale", "shift"},
    ]


@pytest.mark.parametrize("case", [RESIDUAL, SILU, NORM])
def test_no_node_is_lost_and_none_is_in_two_layers(case):
    found, _ = origins(*case)
    named = [name for names in found.values() for name in names]
    assert sorted(named) == sorted(part.name for part in case[0])


def test_what_the_library_puts_in_to_change_a_layout_has_no_node():
    found, optimized = origins(*RESIDUAL)
    inserted = [part for part in optimized.node if is_inserted(part, {p.name for p in RESIDUAL[0]})]
    assert all(found[part.name] == () for part in inserted)
    kept = onnx.helper.make_node("Transpose", ["a"], ["b"], "mine")
    assert not is_inserted(kept, {"mine"})
