"""Each step mends what one rule of the lint finds; the graphs are made by hand, and whole networks go through it."""

import numpy as np
import onnx
import pytest
from export_support import edit_weights, export_residual, make_calibration, tensors_of
from onnx import helper, numpy_helper

from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.qdq_lint import SMALLEST_FP16_SCALE, lint_qdq
from edgekiln.export.precision.repair.pairs import (
    hold_kept_products,
    quantize_skips,
    raise_small_scales,
    unify_concat_scales,
)
from edgekiln.export.precision.simulation import simulate
from edgekiln.runtime.backends import open_session


def pair(name, data, scale, dtype=np.float32):
    """Nodes and constants of a Q/DQ pair called ``name``."""
    constants = [
        numpy_helper.from_array(np.array(scale, dtype), f"{name}_scale"),
        numpy_helper.from_array(np.zeros(np.shape(scale), np.int8), f"{name}_zero"),
    ]
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [data, *parameters], [f"{name}_int8"], f"{name}_q", axis=0),
        helper.make_node("DequantizeLinear", [f"{name}_int8", *parameters], [name], f"{name}_dq", axis=0),
    ], constants


def graph_of(nodes, constants, dtype=np.float32):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [
        helper.make_tensor_value_info(name, kind, ["n", 4, 8, 8]) for name in ("image", nodes[-1].output[0])
    ]
    return helper.make_graph(nodes, "net", values[:1], values[1:], constants)


def scales_of(graph):
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("_scale")}


@pytest.mark.parametrize(("dtype", "smallest"), [(np.float16, SMALLEST_FP16_SCALE), (np.float32, 2.0**-126)])
@pytest.mark.parametrize("scale", [0.0, 1e-45])
def test_an_activation_that_is_dead_gets_the_smallest_safe_scale(dtype, smallest, scale):
    nodes, constants = pair("x", "image", scale, dtype)
    graph = graph_of(nodes, constants, dtype)
    assert {finding.rule for finding in lint_qdq(graph)} >= (
        {"nonpositive-scale"} if dtype(scale) == 0 else set()
    )
    assert raise_small_scales(graph) == (0, ("image",))
    assert scales_of(graph)["x_scale"] == dtype(smallest)
    assert "nonpositive-scale" not in {finding.rule for finding in lint_qdq(graph)}


@pytest.mark.parametrize("scale", [-0.1, np.nan, np.inf])
def test_a_scale_that_is_wrong_is_left_to_the_lint(scale):
    nodes, constants = pair("x", "image", scale)
    graph = graph_of(nodes, constants)
    assert raise_small_scales(graph) == (0, ())
    assert "nonpositive-scale" in {finding.rule for finding in lint_qdq(graph)}


def test_inputs_of_concats_get_one_scale_also_through_another_concat():
    first, second, third = (
        pair(name, "image", scale) for name, scale in (("a", 0.1), ("b", 0.2), ("c", 0.4))
    )
    inner = helper.make_node("Concat", ["a", "b"], ["ab"], "inner", axis=1)
    middle = pair("m", "ab", 0.3)
    outer = helper.make_node("Concat", ["m", "c"], ["out"], "outer", axis=1)
    nodes = [*first[0], *second[0], inner, *middle[0], *third[0], outer]
    graph = graph_of(nodes, [*first[1], *second[1], *middle[1], *third[1]])
    assert [finding.rule for finding in lint_qdq(graph)].count("concat-scales-differ") == 2
    unify_concat_scales(graph)
    got = {name: float(scale) for name, scale in scales_of(graph).items()}
    assert got == pytest.approx({"a_scale": 0.2, "b_scale": 0.2, "m_scale": 0.4, "c_scale": 0.4})
    assert "concat-scales-differ" not in {finding.rule for finding in lint_qdq(graph)}


def residual():
    """A quantized convolution and a shortcut in float, summed."""
    weight = pair("w", "weight", np.full(4, 0.01))
    data = pair("x", "image", 0.1)
    constants = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "weight"), *weight[1], *data[1]]
    nodes = [*weight[0], *data[0], helper.make_node("Conv", ["x", "w"], ["branch"], "conv")]
    relu = helper.make_node("Relu", ["image"], ["skip"], "relu")
    return graph_of([*nodes, relu, helper.make_node("Add", ["branch", "skip"], ["sum"], "add")], constants)


def test_an_identity_branch_without_a_pair_gets_one():
    graph = residual()
    assert [finding.rule for finding in lint_qdq(graph)] == ["unquantized-skip"]
    quantize_skips(graph, {"skip": 12.7}, np.float32, ())
    assert lint_qdq(graph) == ()
    assert scales_of(graph)["add.skip_scale"] == pytest.approx(0.1)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    order = [node.name for node in graph.node]
    assert order.index("relu") < order.index("add.skip_q") < order.index("add.skip_dq") < order.index("add")


def attention(*, quantized_sides):
    """A tensor whose pair another convolution reads too, and a product of two activations that reads it."""
    made = pair("made", "image", 0.1)
    weight = pair("w", "weight", np.full(4, 0.01))
    constants = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "weight"), *weight[1], *made[1]]
    nodes = [*made[0], *weight[0], helper.make_node("Conv", ["made", "w"], ["other"], "conv")]
    sides = ["made" if side in quantized_sides else "image" for side in (0, 1)]
    nodes.append(helper.make_node("Transpose", sides[1:], ["turned"], "turn", perm=[0, 1, 3, 2]))
    nodes.append(helper.make_node("MatMul", [sides[0], "turned"], ["scores"], "product"))
    return graph_of([*nodes, helper.make_node("Add", ["scores", "other"], ["sum"], "add")], constants)


@pytest.mark.parametrize("quantized_sides", [{0}, {1}, {0, 1}])
def test_a_product_that_stays_in_float_reads_values_that_nobody_rounded(quantized_sides):
    graph = attention(quantized_sides=quantized_sides)
    hold_kept_products(graph, graph, {"product"})
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    made_by = {name: node for node in graph.node for name in node.output}
    product = made_by["scores"]
    assert product.input[0] == "image"
    turned = made_by[product.input[1]]
    assert (turned.op_type, list(turned.input), turned.attribute[0].ints) == (
        "Transpose",
        ["image"],
        [0, 1, 3, 2],
    )
    assert "made" in made_by["other"].input  # the pair's other reader keeps it
    assert sum(node.op_type == "Transpose" for node in graph.node) == 1


def test_a_pair_that_only_the_product_read_goes_and_other_products_are_left():
    graph = attention(quantized_sides={0, 1})
    del graph.node[4]  # the convolution
    graph.node[-1].input[1] = "scores"
    hold_kept_products(graph, graph, {"product"})
    assert [node.op_type for node in graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "Transpose",
        "MatMul",
        "Add",
    ]
    left = attention(quantized_sides={0, 1})
    hold_kept_products(left, left, ())
    assert left == attention(quantized_sides={0, 1})


def test_a_branch_that_is_in_float_on_purpose_or_of_unknown_size_is_left():
    for peaks, kept in (({"skip": 12.7}, {"add"}), ({}, set())):
        graph = residual()
        quantize_skips(graph, peaks, np.float32, kept)
        assert graph == residual()


@pytest.mark.parametrize("factor", [0.0, 1e-12, 1e-6])
def test_a_network_with_a_dead_stem_is_quantized_for_all(tmp_path, factor):
    pytest.importorskip("modelopt", reason="quantizes with nvidia-modelopt")
    calibration = make_calibration()
    shrink = {f"stem_{part}": lambda w: (w * factor).astype(np.float32) for part in ("weight", "bias")}
    source = edit_weights(export_residual(tmp_path / "m.onnx"), **shrink)
    expected = simulate(source.read_bytes(), calibration.frames)
    report = quantize_for_tensorrt(source, tmp_path / "q.onnx", calibration)
    assert report.raised_activations == (("relu",) if factor else ())  # ModelOpt itself gives 1 to zeros
    assert simulate((tmp_path / "q.onnx").read_bytes(), calibration.frames) == pytest.approx(
        expected, abs=2e-3
    )
    quantize_for_cpu(source, tmp_path / "c.onnx", calibration)
    scales = [v for k, v in tensors_of(onnx.load(tmp_path / "c.onnx")).items() if k.endswith("_scale")]
    assert min(scale.min() for scale in scales) > 0
    got = open_session("onnxruntime-cpu", (tmp_path / "c.onnx").read_bytes()).run(calibration.frames)
    assert got == pytest.approx(expected, abs=2e-3)
