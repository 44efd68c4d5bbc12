"""Each rule has a graph that breaks it and nothing else, made from one that breaks none."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.precision.qdq_lint import RULES, Finding, lint_qdq

CHANNELS = 4


class Net:
    """A graph in the making. Every method adds one step, names its nodes after it and returns its output."""

    def __init__(self, dtype=np.float32):
        self.dtype = dtype
        self.nodes, self.constants = [], []

    def constant(self, name, value, dtype=None):
        self.constants.append(numpy_helper.from_array(np.array(value, dtype or self.dtype), name))
        return name

    def add(self, operator, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantize(self, name, data, scale=0.1, zero_point=0, kind=np.int8, **attributes):
        zero_points = np.full(np.shape(scale), zero_point)
        parameters = [
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", zero_points, kind),
        ]
        return self.add("QuantizeLinear", f"{name}_q", data, *parameters, **attributes)

    def dequantize(self, name, data, **attributes):
        return self.add("DequantizeLinear", f"{name}_dq", data, f"{name}_scale", f"{name}_zero", **attributes)

    def pair(self, name, data, scale=0.1, **options):
        axis = {"axis": options["axis"]} if "axis" in options else {}
        return self.dequantize(name, self.quantize(name, data, scale, **options), **axis)

    def weight(self, name, shape=(CHANNELS, CHANNELS, 1, 1), axis=0, scale=None):
        """An int8 constant and its DQ."""
        scales = np.full(shape[axis], 0.01) if scale is None else np.array(scale)
        self.constant(f"{name}_scale", scales)
        self.constant(f"{name}_zero", np.zeros(scales.shape), np.int8)
        return self.dequantize(name, self.constant(f"{name}_int8", np.ones(shape), np.int8), axis=axis)

    def conv(self, name, data, weight=None):
        """A quantized convolution with its own pair in front."""
        return self.add("Conv", name, self.pair(f"{name}_x", data), weight or self.weight(f"{name}_w"))

    def norm(self, name, data):
        statistics = [self.constant(f"{name}_{i}", np.ones(CHANNELS)) for i in range(4)]
        return self.add("BatchNormalization", name, data, *statistics)

    def graph(self, *outputs, source=None):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        image = helper.make_tensor_value_info("image", source or kind, [None] * 4)
        answers = [helper.make_tensor_value_info(name, kind, [None] * 2) for name in outputs]
        return helper.make_graph(self.nodes, "net", [image], answers, self.constants)


def only(graph, **evidence):
    """The one finding of a graph."""
    findings = lint_qdq(graph, **evidence)
    assert len(findings) == 1, [(f.rule, f.nodes) for f in findings]
    return findings[0]


def found(graph, **evidence):
    """Rule, nodes and severity of the one finding, which must also say something."""
    finding = only(graph, **evidence)
    assert finding.message.endswith(".")
    assert "  " not in finding.message
    assert "None" not in finding.message
    return finding.rule, finding.nodes, finding.severity


def residual(net, conv_pair=False, skip_pair=True, source="image"):
    """relu(conv1) -> conv2 + skip -> relu, with a pair on either input of the sum or not."""
    stem = net.add("Relu", "relu1", net.norm("norm1", net.conv("conv1", source)))
    branch = net.norm("norm2", net.conv("conv2", stem))
    branch = net.pair("branch", branch) if conv_pair else branch
    skip = net.pair("skip", stem) if skip_pair else stem
    return net.add("Relu", "relu2", net.add("Add", "sum", branch, skip))


def entry(net, on_pixels=False):
    """uint8 NHWC to normalized NCHW, as edgekiln exports it."""
    pixels = net.add("Cast", "cast", "image", to=helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype)))
    pixels = net.pair("pixels", pixels) if on_pixels else pixels
    moved = net.add("Transpose", "nchw", pixels, perm=[0, 3, 1, 2])
    scaled = net.add("Mul", "scale", moved, net.constant("std", 1 / 128))
    return net.add("Add", "shift", scaled, net.constant("mean", -127 / 128))


def classifier(net, source, weight=None, **attributes):
    pooled = net.add("Flatten", "flat", net.add("GlobalAveragePool", "pool", net.pair("pool_x", source)))
    weight = weight or net.weight("fc_w", (10, CHANNELS))
    return net.add("Gemm", "fc", net.pair("fc_x", pooled), weight, **(attributes or {"transB": 1}))


# -- what is right


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_network_in_correct_placement_has_no_finding(dtype):
    net = Net(dtype)
    logits = classifier(net, residual(net, source=entry(net)))
    graph = net.graph(logits, source=TensorProto.UINT8)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    onnx.checker.check_model(model, full_check=True)  # the rules are tried on a graph that is one
    assert lint_qdq(graph) == ()


def test_a_float_network_has_no_finding():
    net = Net()
    stem = net.add("Conv", "conv", "image", net.constant("w", np.ones((CHANNELS, CHANNELS, 1, 1))))
    assert lint_qdq(net.graph(net.add("Add", "sum", stem, "image"))) == ()


def test_weights_quantized_in_the_graph_are_read_through_casts_and_transposes():
    net = Net(np.float16)
    weight = net.add("Cast", "to16", net.constant("w", np.ones((10, CHANNELS)), np.float32), to=10)
    weight = net.pair("w", weight, np.full(10, 0.01), axis=0)
    weight = net.add("Transpose", "turned", net.add("Cast", "to32", weight, to=1), perm=[1, 0])
    assert lint_qdq(net.graph(classifier(net, "image", weight, transB=0))) == ()


def test_scales_may_be_constant_nodes_behind_casts():
    net = Net()
    graph = net.graph(net.conv("conv", "image"), source=TensorProto.FLOAT16)
    scale = next(t for t in graph.initializer if t.name == "conv_x_scale")
    graph.initializer.remove(scale)
    value = helper.make_node("Constant", [], ["raw"], value_float=-1.0)
    graph.node.extend([value, helper.make_node("Cast", ["raw"], ["conv_x_scale"], to=10)])
    assert found(graph) == ("nonpositive-scale", ("conv_x_q", "conv_x_dq"), "error")


def test_a_downsampling_block_needs_one_of_its_two_convolutions_in_float():
    net = Net()
    total = net.add("Add", "sum", net.conv("conv1", "image"), net.pair("skip", net.conv("conv2", "image")))
    assert lint_qdq(net.graph(total)) == ()


def test_a_linear_bottleneck_shares_the_pair_of_its_input():
    net = Net()
    shared = net.pair("shared", net.conv("conv1", "image"))
    branch = net.add("Conv", "conv2", shared, net.weight("w2"))
    assert lint_qdq(net.graph(net.add("Add", "sum", branch, shared))) == ()


def test_a_quantized_input_of_a_block_whose_own_convolution_stays_in_float_is_no_lost_fusion():
    net = Net()
    shared = net.pair("shared", net.conv("conv1", "image"))
    inner = net.add("Relu", "relu", net.add("Conv", "conv2", shared, net.weight("w2")))
    branch = net.add("Conv", "sensitive", inner, net.constant("w3", np.ones((CHANNELS, CHANNELS, 1, 1))))
    assert lint_qdq(net.graph(net.add("Add", "sum", branch, shared))) == ()


# -- every rule


def quantized_conv(**pair):
    net = Net()
    return net.graph(net.add("Conv", "conv", net.pair("x", "image", **pair), net.weight("w")))


def quantized_conv_of(source):
    """A network in FP32 whose input is of another type."""
    net = Net()
    return net.graph(net.conv("conv", "image"), source=source)


def conv_then(step):
    net = Net()
    return net.graph(step(net, net.conv("conv", "image")))


BREAKS = {
    "qdq-inside-conv-chain": lambda: conv_then(lambda net, x: net.add("Relu", "act", net.pair("inside", x))),
    "both-add-inputs-quantized": lambda: (net := Net()).graph(residual(net, conv_pair=True)),
    "unquantized-skip": lambda: (net := Net()).graph(residual(net, skip_pair=False)),
    "outlier-residual": lambda: (net := Net()).graph(residual(net)),
    "concat-scales-differ": lambda: (net := Net()).graph(joined(net, 0.1, 0.2)),
    "concat-mixed": lambda: (net := Net()).graph(joined(net, 0.1, None)),
    "quantized-entry": lambda: (net := Net()).graph(residual(net, source=entry(net, on_pixels=True))),
    "nonzero-zero-point": lambda: quantized_conv(zero_point=3),
    "per-tensor-weight": lambda: (net := Net()).graph(net.conv("conv", "image", net.weight("w", scale=0.01))),
    "weight-axis": lambda: product("Conv", 1),
    "per-channel-activation": lambda: quantized_conv(scale=np.full(CHANNELS, 0.1), axis=1),
    "unquantized-product": lambda: (net := Net()).graph(net.add("Conv", "conv", "image", net.weight("w"))),
    "quantized-output": lambda: conv_then(lambda net, x: net.pair("logits", x)),
    "nonpositive-scale": lambda: quantized_conv(scale=0.0),
    "scale-type": lambda: quantized_conv_of(TensorProto.FLOAT16),
    "dangling-quantize": lambda: (net := Net()).graph(net.quantize("x", "image")),
}
"""A row for each rule: a graph that breaks it and nothing else."""
EVIDENCE = {"outlier-residual": {"outliers": {"sum": 500.0}}}
"""What a graph alone does not show."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_graph_that_breaks_one_rule_has_its_finding_alone(rule):
    assert found(BREAKS[rule.name](), **EVIDENCE.get(rule.name, {}))[::2] == (rule.name, rule.severity)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_tells_its_reason_its_remedy_and_an_example(rule):
    assert rule.reason.endswith(".")
    assert all((rule.meaning, rule.remedy, rule.example))


def test_each_rule_has_a_name_of_its_own():
    assert [rule.name for rule in RULES] == list(BREAKS)


# -- around convolutions


@pytest.mark.parametrize("operator", ["Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_qdq_before_an_activation(operator, dtype):
    net = Net(dtype)
    convolved = net.pair("inside", net.norm("norm", net.conv("conv", "image")))
    expected = ("qdq-inside-conv-chain", ("conv", "inside_q", "inside_dq", "act"), "error")
    assert found(net.graph(net.add(operator, "act", convolved))) == expected


def test_qdq_between_convolution_and_normalization():
    net = Net()
    normalized = net.norm("norm", net.pair("inside", net.conv("conv", "image")))
    expected = ("qdq-inside-conv-chain", ("conv", "inside_q", "inside_dq", "norm"), "error")
    assert found(net.graph(net.add("Relu", "act", normalized))) == expected


def test_qdq_behind_a_cast_is_still_inside():
    net = Net()
    convolved = net.add("Cast", "cast", net.conv("conv", "image"), to=10)
    net.dtype = np.float16  # of the pair between the two Casts
    activated = net.add("Relu", "act", net.add("Cast", "back", net.pair("inside", convolved), to=1))
    assert found(net.graph(activated, source=TensorProto.FLOAT))[:2] == (
        "qdq-inside-conv-chain",
        ("conv", "inside_q", "inside_dq", "act"),
    )


@pytest.mark.parametrize("place", ["both", "plain", "gate_in", "gate_out"])
def test_qdq_inside_silu(place):
    net = Net()
    x = net.conv("conv", "image")
    x = net.pair("inside", x) if place == "both" else x
    gate = net.add("Sigmoid", "gate", net.pair("inside", x) if place == "gate_in" else x)
    gate = net.pair("inside", gate) if place == "gate_out" else gate
    plain = net.pair("inside", x) if place == "plain" else x
    rule, nodes, _ = found(net.graph(net.add("Mul", "silu", plain, gate)))
    last = {"both": ("gate", "silu"), "gate_in": ("gate",)}.get(place, ("silu",))
    assert (rule, nodes) == ("qdq-inside-conv-chain", ("conv", "inside_q", "inside_dq", *last))


def test_silu_and_excitation_in_float_are_fine():
    net = Net()
    x = net.conv("conv", "image")
    silu = net.add("Mul", "silu", net.add("Sigmoid", "gate", x), x)
    squeezed = net.conv("excite", net.add("GlobalAveragePool", "pool", silu))
    excited = net.add("Mul", "excited", net.pair("map", silu), net.add("Sigmoid", "gate2", squeezed))
    assert lint_qdq(net.graph(net.conv("next", excited))) == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_unquantized_skip(dtype):
    net = Net(dtype)
    graph = net.graph(residual(net, skip_pair=False))
    assert found(graph) == ("unquantized-skip", ("sum",), "error")
    assert "relu1_out" in only(graph).message


def test_a_pair_on_the_wrong_branch():
    net = Net()
    graph = net.graph(residual(net, conv_pair=True, skip_pair=False))
    assert found(graph) == ("unquantized-skip", ("sum", "branch_dq"), "error")
    assert "relu1_out" in only(graph).message


def test_both_inputs_of_a_sum_quantized():
    net = Net()
    expected = ("both-add-inputs-quantized", ("sum", "branch_dq", "skip_dq"), "warning")
    assert found(net.graph(residual(net, conv_pair=True))) == expected


def test_a_sum_with_outliers_is_told_where_it_is_quantized():
    net = Net()
    graph = net.graph(residual(net))
    evidence = {"outliers": {"sum": 500.0, "elsewhere": 90.0}}
    assert found(graph, **evidence) == ("outlier-residual", ("sum", "skip_dq"), "warning")
    assert "500 times" in only(graph, **evidence).message


def test_a_sum_that_is_in_float_on_purpose_wants_no_pair():
    net = Net()
    graph = net.graph(residual(net, skip_pair=False))
    assert lint_qdq(graph, kept_float={"sum"}, outliers={"sum": 500.0}) == ()
    assert found(graph, kept_float={"another"}) == ("unquantized-skip", ("sum",), "error")


def test_a_sum_without_a_quantized_convolution_is_not_judged():
    net = Net()
    net.conv("elsewhere", "image")
    one = net.add("Relu", "one", "image")
    assert lint_qdq(net.graph(net.add("Add", "sum", one, net.add("Tanh", "two", "image")))) == ()


# -- elsewhere


def joined(net, *scales):
    return net.add(
        "Concat",
        "concat",
        *(
            f"relu{i}_out" if scale is None else net.pair(f"part{i}", f"relu{i}_out", scale)
            for i, scale in enumerate(scales)
            if net.add("Relu", f"relu{i}", "image")
        ),
        axis=1,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_concat_of_differing_scales(dtype):
    net = Net(dtype)
    expected = ("concat-scales-differ", ("concat", "part0_dq", "part1_dq", "part2_dq"), "error")
    assert found(net.graph(joined(net, 0.1, 0.1, 0.2))) == expected


def test_concat_of_one_scale():
    net = Net()
    assert lint_qdq(net.graph(joined(net, 0.1, 0.1))) == ()


def test_concat_of_one_scale_in_two_precisions():
    net = Net()
    joined(net, 0.1, 0.1)
    net.constants[0].CopyFrom(numpy_helper.from_array(np.array(0.1, np.float16), net.constants[0].name))
    quantize = next(node for node in net.nodes if node.name == "part0_q")
    quantize.input[0] = net.add("Cast", "cast", "relu0_out", to=TensorProto.FLOAT16)
    assert lint_qdq(net.graph("concat_out")) == ()


def test_concat_of_quantized_and_float():
    net = Net()
    assert found(net.graph(joined(net, 0.1, None))) == ("concat-mixed", ("concat", "part0_dq"), "warning")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantized_entry(dtype):
    net = Net(dtype)
    graph = net.graph(residual(net, source=entry(net, on_pixels=True)), source=TensorProto.UINT8)
    assert found(graph) == ("quantized-entry", ("pixels_q", "pixels_dq", "scale"), "error")


def test_quantized_constant_of_the_entry():
    net = Net()
    shifted = net.add("Sub", "shift", "image", net.pair("mean", net.constant("m", 0.5)))
    assert found(net.graph(net.conv("conv", shifted))) == (
        "quantized-entry",
        ("mean_q", "mean_dq", "shift"),
        "error",
    )


def test_a_cast_between_the_first_pair_and_the_first_convolution_is_no_entry():
    net = Net()
    data = net.add("Cast", "cast", net.pair("x", "image"), to=1)
    assert lint_qdq(net.graph(net.add("Conv", "conv", data, net.weight("w")))) == ()


def test_quantized_output():
    net = Net()
    logits = net.pair("logits", classifier(net, "image"))
    expected = ("quantized-output", ("logits_q", "logits_dq"), "warning")
    assert found(net.graph(net.add("Cast", "float", logits, to=1))) == expected


@pytest.mark.parametrize("operator", ["MaxPool", "Relu"])
def test_dangling_quantize_with_another_reader(operator):
    net = Net()
    stored = net.quantize("x", "image")
    net.add("Conv", "conv", net.dequantize("x", stored), net.weight("w"))
    pooled = net.add(operator, "other", stored)
    assert found(net.graph("conv_out", pooled)) == ("dangling-quantize", ("x_q", "other"), "error")


@pytest.mark.parametrize("outputs", [[], ["x_q_out"]])
def test_dangling_quantize_without_a_reader(outputs):
    net = Net()
    net.quantize("x", "image")
    assert found(net.graph(*outputs)) == ("dangling-quantize", ("x_q",), "error")


# -- scales and zero points


@pytest.mark.parametrize(("zero_point", "kind"), [(3, np.int8), (127, np.uint8), (0, np.uint8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_asymmetric_quantization(zero_point, kind, dtype):
    net = Net(dtype)
    data = net.pair("x", "image", zero_point=zero_point, kind=kind)
    graph = net.graph(net.add("Conv", "conv", data, net.weight("w")))
    assert found(graph) == ("nonzero-zero-point", ("x_q", "x_dq"), "error")


def test_a_quantize_without_zero_point_is_uint8():
    net = Net()
    data = net.pair("x", "image")
    del net.nodes[0].input[2]
    graph = net.graph(net.add("Conv", "conv", data, net.weight("w")))
    assert found(graph) == ("nonzero-zero-point", ("x_q",), "error")
    graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert lint_qdq(graph) == ()


def test_a_uint8_input_dequantized_without_zero_point():
    net = Net()
    net.constant("x_scale", 0.1)
    data = net.add("DequantizeLinear", "x_dq", "image", "x_scale")
    graph = net.graph(net.add("Conv", "conv", data, net.weight("w")), source=TensorProto.UINT8)
    assert found(graph) == ("nonzero-zero-point", ("x_dq",), "error")


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_impossible_scales(scale, dtype):
    net = Net(dtype)
    graph = net.graph(net.add("Conv", "conv", net.pair("x", "image", scale), net.weight("w")))
    assert found(graph) == ("nonpositive-scale", ("x_q", "x_dq"), "error")


def test_a_scale_is_too_small_in_its_own_precision_only():
    for dtype, findings in ((np.float32, 0), (np.float16, 1)):
        net = Net(dtype)
        weight = net.weight("w", scale=[0.01, 2.0**-21, 0.01, 0.01])  # FP16 holds multiples of 2**-24
        faulty = [(f.rule, f.nodes) for f in lint_qdq(net.graph(net.conv("conv", "image", weight)))]
        assert faulty == [("nonpositive-scale", ("w_dq",))] * findings


def test_the_scale_of_another_type_than_its_tensor_names_both():
    graph = quantized_conv_of(TensorProto.FLOAT16)
    assert found(graph) == ("scale-type", ("conv_x_q",), "error")
    assert "(FLOAT for FLOAT16)" in only(graph).message


@pytest.mark.parametrize("between", ["Relu", "Reshape", "Add", "MaxPool", "BatchNormalization"])
def test_the_type_is_followed_through_what_keeps_it(between):
    net = Net()
    more = {
        "Add": [net.constant("one", 1)],
        "BatchNormalization": [net.constant(f"n{i}", [1]) for i in range(4)],
    }
    kept = net.add(between, "between", "image", *more.get(between, []))
    assert found(net.graph(net.conv("conv", kept), source=TensorProto.FLOAT16))[0] == "scale-type"
    cast = net.add("Cast", "cast", "between_out", to=TensorProto.FLOAT)
    next(node for node in net.nodes if node.name == "conv_x_q").input[0] = cast
    assert lint_qdq(net.graph("conv_out", source=TensorProto.FLOAT16)) == ()


def test_a_dequantize_may_not_give_another_type_than_its_scale_has():
    net = Net()
    graph = net.graph(net.conv("conv", "image"))
    dequantize = next(node for node in graph.node if node.name == "conv_x_dq")
    dequantize.attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT))
    assert lint_qdq(graph) == ()
    dequantize.attribute[-1].i = TensorProto.FLOAT16
    assert found(graph) == ("scale-type", ("conv_x_dq",), "error")


def test_the_type_behind_an_operator_that_is_not_known_is_not_judged():
    net = Net()
    graph = net.graph(net.conv("conv", net.add("Bogus", "bogus", "image")), source=TensorProto.FLOAT16)
    assert lint_qdq(graph) == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_per_channel_activation(dtype):
    net = Net(dtype)
    data = net.pair("x", "image", np.full(CHANNELS, 0.1), axis=1)
    graph = net.graph(net.add("Conv", "conv", data, net.weight("w")))
    assert found(graph) == ("per-channel-activation", ("x_q", "x_dq"), "error")


# -- products and weights


@pytest.mark.parametrize("scale", [0.01, [0.01]])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_per_tensor_weight(scale, dtype):
    net = Net(dtype)
    graph = net.graph(net.conv("conv", "image", net.weight("w", scale=scale)))
    assert found(graph) == ("per-tensor-weight", ("conv", "w_dq"), "warning")


def test_one_scale_for_one_output_channel_is_per_channel():
    net = Net()
    weight = net.weight("w", (1, CHANNELS, 1, 1), scale=0.01)
    assert lint_qdq(net.graph(net.conv("conv", "image", weight))) == ()


def product(operator, axis, dtype=np.float32, **attributes):
    net = Net(dtype)
    shape = (CHANNELS, CHANNELS, 1, 1) if operator == "Conv" else (CHANNELS, CHANNELS)
    weight = net.weight("w", shape, axis)
    return net.graph(net.add(operator, "product", net.pair("x", "image"), weight, **attributes))


RIGHT_AXES = [
    ("Conv", 0, {}),
    ("Gemm", 1, {}),
    ("Gemm", 0, {"transB": 1}),
    ("MatMul", 1, {}),
    ("MatMul", -1, {}),
]


@pytest.mark.parametrize(("operator", "axis", "attributes"), RIGHT_AXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weight_axis(operator, axis, attributes, dtype):
    assert lint_qdq(product(operator, axis, dtype, **attributes)) == ()
    wrong = product(operator, 1 - abs(axis), dtype, **attributes)
    assert found(wrong) == ("weight-axis", ("product", "w_dq"), "error")


def test_weight_axis_of_a_pair_behind_a_transpose():
    net = Net()
    weight = net.pair("w", net.constant("raw", np.ones((10, CHANNELS))), np.full(CHANNELS, 0.1), axis=1)
    weight = net.add("Transpose", "turned", weight)
    graph = net.graph(net.add("MatMul", "product", net.pair("x", "image"), weight))
    assert found(graph) == ("weight-axis", ("product", "w_q", "w_dq"), "error")


def test_the_weight_of_a_matmul_may_stand_first():
    net = Net()
    weight = net.weight("w", (10, CHANNELS), axis=0)
    assert lint_qdq(net.graph(net.add("MatMul", "product", weight, net.pair("x", "image")))) == ()


def test_scales_in_blocks_are_not_judged_by_their_axis():
    graph = product("MatMul", 0)
    block = next(t for t in graph.initializer if t.name == "w_scale")
    block.CopyFrom(numpy_helper.from_array(np.full((2, CHANNELS), 0.1, np.float32), "w_scale"))
    assert lint_qdq(graph) == ()


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_product_with_one_operand_quantized(operator, dtype):
    shape = (CHANNELS, CHANNELS, 1, 1) if operator == "Conv" else (CHANNELS, CHANNELS)
    net = Net(dtype)
    float_weight = net.graph(
        net.add(operator, "product", net.pair("x", "image"), net.constant("w", np.ones(shape)))
    )
    assert found(float_weight) == ("unquantized-product", ("product", "x_dq"), "error")
    net = Net(dtype)
    float_data = net.graph(
        net.add(operator, "product", "image", net.weight("w", shape, int(operator != "Conv")))
    )
    assert found(float_data) == ("unquantized-product", ("product", "w_dq"), "error")


def test_a_pair_reaches_its_product_through_a_max_pool_and_may_stop_there():
    for quantized in (True, False):
        net = Net()
        pooled = net.add("MaxPool", "pool", net.pair("x", "image"), kernel_shape=[2, 2])
        weight = net.weight("w") if quantized else net.constant("w", np.ones((CHANNELS, CHANNELS, 1, 1)))
        assert lint_qdq(net.graph(net.add("Conv", "conv", pooled, weight))) == ()


# -- odd graphs


def test_an_empty_graph():
    assert lint_qdq(onnx.GraphProto()) == ()


def test_nameless_nodes_are_called_by_their_output():
    net = Net()
    graph = net.graph(residual(net, conv_pair=True))
    for node in graph.node:
        node.name = ""
    assert only(graph).nodes == ("sum_out", "branch_dq_out", "skip_dq_out")


OPERATORS = [
    "QuantizeLinear",
    "DequantizeLinear",
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "Sub",
    "Concat",
    "Relu",
]
OPERATORS += [
    "Sigmoid",
    "BatchNormalization",
    "Cast",
    "Transpose",
    "Reshape",
    "MaxPool",
    "Constant",
    "If",
    "Bogus",
]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("inputs", [[], [""], ["", "", ""], ["nowhere", "nothing"], ["self"] * 3])
@pytest.mark.parametrize("outputs", [[], [""], ["self"]])
def test_a_broken_node_does_not_crash(operator, inputs, outputs):
    node = helper.make_node(operator, inputs, outputs)
    graph = helper.make_graph([node, node], "odd", [], [helper.make_tensor_value_info("self", 1, None)])
    assert all(isinstance(finding, Finding) for finding in lint_qdq(graph))


@pytest.mark.parametrize("seed", range(20))
def test_any_part_of_a_graph_may_be_missing(seed):
    random = np.random.default_rng(seed)
    net = Net()
    graph = net.graph(classifier(net, residual(net, source=entry(net))), source=TensorProto.UINT8)
    for items in (graph.initializer, graph.node, graph.input):
        kept = [item for item in items if random.random() > 0.2]
        del items[:]
        items.extend(kept)
    for node in graph.node:
        node.input[int(random.integers(len(node.input)))] = str(random.choice(["", "image", "conv2_out"]))
    assert all(isinstance(finding, Finding) for finding in lint_qdq(graph))


def test_constants_that_cannot_be_read_are_not_judged():
    net = Net()
    graph = net.graph(net.conv("conv", "image"))
    for tensor in graph.initializer:
        if tensor.name in {"conv_x_scale", "conv_w_scale"}:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="not-here.bin")
        if tensor.name == "conv_x_zero":
            tensor.raw_data = b"\0\0\0"  # three bytes for one value
    assert lint_qdq(graph) == ()


def test_subgraphs_are_left_alone():
    net = Net()
    inner = Net()
    branch = inner.graph(residual(inner, skip_pair=False))
    net.add("If", "choice", "image", then_branch=branch, else_branch=branch)
    assert lint_qdq(net.graph("choice_out")) == ()
