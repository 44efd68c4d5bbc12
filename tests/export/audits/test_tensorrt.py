import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.tensorrt import (
    EngineLayer,
    audit_declared,
    audit_engine,
    audit_rtx_plan,
    normalize_datatype,
    parse_inspector,
    parse_rtx_plan,
)
from edgekiln.runtime.errors import EngineError, PrecisionError
from edgekiln.runtime.spec import Precision

FIXTURES = Path(__file__).parents[2] / "data" / "inspector"
PRODUCTS = {"/stem/Conv": 100, "/block/conv1/Conv": 400, "/block/conv2/Conv": 490, "/fc/Gemm": 10}
ISLAND = "/block/conv2/Conv + /block/Add + /block/relu_1/Relu"


def layers_of(name):
    return parse_inspector((FIXTURES / f"{name}.json").read_text())


def layer(kind="CaskConvolution", inputs=("fp16",), origins=("/stem/Conv",), **more):
    fields = {"name": "a", "outputs": ("fp16",), "tactic": None, **more}
    return EngineLayer(kind=kind, inputs=inputs, origins=origins, **fields)


# Parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("DataType.HALF", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("bfloat", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major INT8 format where column stride % 64 == 0", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear FP8 format", "fp8"),
        ("float8_e4m3", "fp8"),
        ("Row major linear Int32", "int32"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear BOOL", "bool"),
        ("N/A due to dynamic shapes", "unknown"),
        (None, "unknown"),
    ],
)
def test_every_spelling_of_a_datatype_has_one_name(text, expected):
    assert normalize_datatype(text) == expected


@pytest.mark.parametrize("name", ["v10_fp16", "v11_fp16"])
def test_both_schemas_give_the_fused_layer_its_origins_and_types(name):
    fused = next(found for found in layers_of(name) if found.name == ISLAND)
    assert fused.kind == "CaskConvolution"
    assert fused.origins == ("/block/conv2/Conv", "/block/Add", "/block/relu_1/Relu")
    assert fused.inputs == ("fp16", "fp16")
    assert fused.outputs == ("fp16",)
    assert fused.weights == "fp16"
    assert "f16f16" in fused.tactic


def test_without_metadata_the_fused_name_gives_the_origins():
    fused = layers_of("v10_no_metadata")[3]
    assert fused.origins == ("/block/conv2/Conv", "/block/Add", "/block/relu_1/Relu")
    assert layers_of("v10_no_metadata")[0].origins == ()  # a reformat's name only says for whom it is


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]__gemm_from_conv1x1\x1f[ONNX Layer: b[0]]", ("a", "b[0]")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: a]", ("a",)),
        ("[ONNX Layer: a", ("fused",)),  # not metadata: the name has to do
    ],
)
def test_metadata_gives_onnx_names(metadata, expected):
    text = json.dumps({"Layers": [{"Name": "fused", "LayerType": "gemm", "Metadata": metadata}]})
    assert parse_inspector(text)[0].origins == expected


def test_myelin_suffix_and_horizontal_fusion_are_taken_off_a_name():
    text = json.dumps({"Layers": ["/a/Conv || /b/Conv", "/fc/MatMul_myl0_10"]})
    assert [found.origins for found in parse_inspector(text)] == [("/a/Conv", "/b/Conv"), ("/fc/MatMul",)]


def test_layers_without_detail_are_of_unknown_type():
    found = layers_of("names_only")
    assert [entry.kind for entry in found] == ["unknown"] * 5
    assert found[1].origins == ("/stem/Conv", "/relu/Relu")


@pytest.mark.parametrize(
    "text", ["", "Layer(CaskConvolution): a", "[]", "{}", '{"Layers": {}}', '{"Layers": [3]}', "[" * 100_000]
)
def test_other_text_is_refused(text):
    with pytest.raises(EngineError, match="wanted the engine inspector's JSON"):
        parse_inspector(text)


# Judging


@pytest.mark.parametrize("name", ["v10_fp16", "v11_fp16", "v10_no_metadata"])
def test_fp16_engine_is_confirmed(name):
    audit = audit_engine(layers_of(name), PRODUCTS, Precision.FP16, 0.99)
    assert audit.share == 1.0
    assert audit.macs == {"fp16": 1000}
    assert audit.reformats == 1
    assert audit.islands == audit.unattributed == ()
    assert audit.evidence == "inspector"
    assert json.loads(json.dumps(audit.to_dict()))["macs"] == {"fp16": 1000}


def test_int8_engine_with_an_island_counts_by_macs_and_input_type():
    audit = audit_engine(layers_of("v10_int8_island"), PRODUCTS, Precision.INT8, 0.5)
    assert audit.share == 0.51  # conv1 takes INT8 and gives FP16: it is INT8
    assert audit.macs == {"int8": 510, "fp32": 490}
    assert audit.islands == (ISLAND,)
    assert audit.reformats == 3
    assert any("TF32" in note for note in audit.notes)


def test_island_below_the_wanted_share_is_refused_by_name():
    with pytest.raises(
        PrecisionError, match=r"Only 51\.0% .*fp32 49\.0%.*Computing wider: /block/conv2/Conv"
    ):
        audit_engine(layers_of("v10_int8_island"), PRODUCTS, Precision.INT8, 0.95)


@pytest.mark.parametrize("wanted", [Precision.FP16, Precision.INT8])
def test_fp32_engine_handed_in_as_less_is_refused(wanted):
    with pytest.raises(PrecisionError, match=r"Only 0\.0% of the MACs"):
        audit_engine(layers_of("v10_fp32"), PRODUCTS, wanted, 0.01)


def test_fp32_is_met_by_everything():
    for name in ("v10_fp32", "v10_fp16", "v10_int8_island", "names_only"):
        assert audit_engine(layers_of(name), PRODUCTS, Precision.FP32, 1.0).share == 1.0


def test_int8_meets_fp16():
    layers = [
        layer(inputs=(kind,), origins=(name,))
        for kind, name in zip(("int8", "fp8", "bf16", "fp16"), PRODUCTS, strict=True)
    ]
    assert audit_engine(layers, PRODUCTS, Precision.FP16, 1.0).share == 1.0


def test_names_alone_confirm_nothing():
    with pytest.raises(PrecisionError, match=r"unknown 100\.0%.*DETAILED"):
        audit_engine(layers_of("names_only"), PRODUCTS, Precision.FP16, 0.95)


def test_inside_of_a_foreign_node_counts_as_unknown():
    audit = audit_engine(layers_of("v10_foreign_node"), PRODUCTS, Precision.FP16, 0.1)
    assert audit.macs == {"fp16": 100, "unknown": 900}
    assert audit.share == 0.1
    assert any("foreign" in note for note in audit.notes)


def test_dynamic_shapes_leave_the_kernel_name_and_then_the_weights():
    audit = audit_engine(layers_of("v10_dynamic_shapes"), PRODUCTS, Precision.INT8, 0.95)
    assert audit.macs == {"int8": 990, "fp16": 10}
    assert audit.notes[:2] == (
        "3 layers report no input type and were judged by their kernel's name.",
        "1 layers report no input type or kernel and were judged by their weights.",
    )


def test_layer_that_only_moves_a_products_input_proves_nothing():
    layers = [
        layer("kgen", ("fp16",), name="__myl_MoveConc_myl0_1"),
        layer("Shuffle"),
        layer("kgen", tactic="pointwise"),
    ]
    audit = audit_engine(layers, {"/stem/Conv": 1}, Precision.FP32, 1.0)
    assert audit.macs == {"unknown": 1}
    assert audit.unattributed == ("/stem/Conv",)


def test_product_by_kind_outweighs_the_kernels_around_it():
    around = layer("kgen", ("fp32", "fp16"), name="__myl_MulSumCast_myl0_3")
    audit = audit_engine([around, layer("gemm", ("int8", "int8"))], {"/stem/Conv": 1}, Precision.INT8, 1.0)
    assert audit.macs == {"int8": 1}


def test_node_computed_by_two_layers_is_as_wide_as_the_wider():
    layers = [layer(inputs=("int8",)), layer(inputs=("fp32",), name="b")]
    audit = audit_engine(layers, {"/stem/Conv": 1}, Precision.FP16, 0.0)
    assert audit.macs == {"fp32": 1}
    assert audit.islands == ("b",)


def test_wide_residual_does_not_widen_a_convolution_but_a_wide_operand_widens_a_gemm():
    for kind, expected in (("CaskConvolution", "int8"), ("gemm", "fp16")):
        audit = audit_engine([layer(kind, ("int8", "fp16"))], {"/stem/Conv": 1}, Precision.FP16, 1.0)
        assert audit.macs == {expected: 1}


def test_kernel_name_decides_between_types_of_a_generated_kernel():
    for tactic, expected in (("sm80_xmma_gemm_i8i8_i8i32_f32_tn", "int8"), ("__myl_FcMulAdd_0x29", "fp16")):
        kernel = layer("fusion", ("fp16", "int8", "int8"), name="__myl_FcMulAdd_myl0_2", tactic=tactic)
        assert audit_engine([kernel], {"/stem/Conv": 1}, Precision.FP16, 1.0).macs == {expected: 1}


def test_kernel_name_that_contradicts_the_inputs_is_noted_and_not_believed():
    odd = layer(inputs=("fp32",), tactic="sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32")
    audit = audit_engine([odd], {"/stem/Conv": 1}, Precision.FP32, 1.0)
    assert audit.macs == {"fp32": 1}
    assert audit.notes == ("The kernel's name contradicts the input type in a.",)


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        ("ampere_int8x4_icudnn_int8x4_128x32_relu_interior_c32_nn_v1", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_n", "int8"),
        ("turing_fp16_s1688cudnn_fp16_128x128_ldg8_relu_f2f_exp", "fp16"),
        ("volta_h884cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1", "fp16"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn", "bf16"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn", "fp8"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32", "fp32"),
        ("volta_scudnn_128x64_relu_small_nn_v1", "fp32"),
        ("unheard_of", "unknown"),
    ],
)
def test_kernel_names(tactic, expected):
    audit = audit_engine([layer(inputs=("unknown",), tactic=tactic)], {"/stem/Conv": 1}, Precision.FP32, 1.0)
    assert audit.macs == {expected: 1}


def test_unattributed_products_are_never_achieved():
    layers = [layer(inputs=("int8",)), layer(inputs=("fp32",), origins=(), name="nameless")]
    with pytest.raises(PrecisionError, match=r"Attributed to no layer: /fc/Gemm, nameless"):
        audit_engine(layers, {"/stem/Conv": 90, "/fc/Gemm": 10}, Precision.INT8, 0.95)
    audit = audit_engine(layers, {"/stem/Conv": 90, "/fc/Gemm": 10}, Precision.INT8, 0.9)
    assert audit.macs == {"int8": 90, "unknown": 10}
    assert audit.islands == ("nameless",)


def test_many_islands_are_counted_beyond_eight():
    names = [f"conv{index}" for index in range(11)]
    layers = [layer(inputs=("fp32",), origins=(name,), name=name) for name in names]
    with pytest.raises(PrecisionError, match=r"conv7 and 3 more"):
        audit_engine(layers, dict.fromkeys(names, 1), Precision.INT8, 0.5)


def test_nothing_to_audit_is_refused():
    with pytest.raises(PrecisionError, match="no product"):
        audit_engine(layers_of("v10_fp16"), {}, Precision.FP16, 0.95)


def test_declared_types_refuse_but_never_confirm():
    audit = audit_declared(dict.fromkeys(PRODUCTS, "DataType.HALF"), PRODUCTS, Precision.FP16, 0.95)
    assert (audit.share, audit.evidence, audit.macs) == (None, "declared", {"fp16": 1000})
    assert "not confirm" in audit.notes[0]
    with pytest.raises(PrecisionError, match=r"fp32 100\.0%; declared"):
        audit_declared(dict.fromkeys(PRODUCTS, "FLOAT"), PRODUCTS, Precision.FP16, 0.95)
    with pytest.raises(PrecisionError, match=r"Attributed to no layer: /stem/Conv"):
        audit_declared({}, PRODUCTS, Precision.FP16, 0.95)


def test_module_needs_no_training_or_engine_library():
    code = (
        "import sys, edgekiln.export.audits.tensorrt; print(sorted({n.split('.')[0] for n in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"onnx", "torch", "pydantic", "tensorrt", "onnxruntime"} & set(
        json.loads(loaded.replace("'", '"'))
    )


# TensorRT-RTX plans

GRAPH_TEXT = b"""header {
  version = 5
  tf32=1
}
descriptors {
  tensor={ alignment=128 dims={ 2 4 64 64 } mem_prop=0 name="x" offset=0 rank0=0 strides={ 4 1 } type=int8 }
  tensor={ alignment=128 dims={ 8 4 3 3 } name="w" offset=0 rank0=0 type=int8 }
  tensor={ alignment=128 dims={ 1 } name="alpha" offset=0 rank0=1 type=float }
  sub_tensor={ base="x" name="y" offset=0 type=float }
}
main {
 label bb1:
  corrltn={ name="/net/a/Conv" output={"y" } input={"x" "w" "alpha" } stream=0 relu=false layers="[ONNX Layer: /net/a/Conv]\x1f[ONNX Layer: a_DQ]" }
  function={ name=__myl_MulCast fqn=__myl_MulCast_0x1 input_args={ "alpha" "y" } output_args={ "x" } layers="[ONNX Layer: /net/a/Conv]" }
}
"""  # noqa: E501


def test_graph_text_of_a_plan_is_read_between_any_bytes():
    found = parse_rtx_plan(b"vtrt\0\0\xff" + GRAPH_TEXT + b"\x03\0\0rest" + GRAPH_TEXT)
    assert len(found.kernels) == 4
    assert found.tf32
    assert found.kernels[0] == EngineLayer(
        "/net/a/Conv", "corrltn", ("/net/a/Conv", "a_DQ"), ("int8", "int8", "fp32"), ("fp32",), None
    )
    assert found.kernels[1].name == "__myl_MulCast"


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"ftrt" + bytes(1000),
        b"header {\n",
        b"header {\n" * 200_000,
        b'header {\n tensor={ name="' + b' name="a" ' * 200_000,
        b"header {\n corrltn={ name=" + b'"' * 200_000,
        np.random.default_rng(0).bytes(1_000_000),
    ],
)
def test_other_bytes_give_no_evidence_and_take_no_time(plan):
    found = parse_rtx_plan(plan)
    assert found is None or found.kernels[0].inputs == ()


def test_cut_text_gives_no_more_than_is_there():
    for length in range(0, len(GRAPH_TEXT), 7):
        found = parse_rtx_plan(GRAPH_TEXT[:length])
        assert found is None or len(found.kernels) <= 2


def test_plan_without_text_proves_nothing_either_way():
    audit = audit_rtx_plan(b"vtrt", PRODUCTS, Precision.FP16, 0.95)
    assert (audit.share, audit.evidence, audit.macs) == (None, "none", {"unknown": 1000})


KINDS = {"fp32": np.float32, "fp16": np.float16, "int8": np.float16}


def small_network(kind):
    """uint8 pixels, three convolutions (one depthwise) with a residual, a classifier; INT8 by explicit Q/DQ."""
    dtype = KINDS[kind]
    floating = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    random = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(operator, inputs, output, **attributes):
        nodes.append(
            helper.make_node(operator, inputs, [output], name=f"/net/{output}/{operator}", **attributes)
        )
        return output

    def quantized(tensor, name):
        if kind != "int8":
            return tensor
        scale = [constant(f"{name}_s", dtype(0.02)), constant(f"{name}_z", np.int8(0))]
        return node(
            "DequantizeLinear", [node("QuantizeLinear", [tensor, *scale], f"{name}_q"), *scale], f"{name}_dq"
        )

    def weights(name, shape):
        values = random.normal(size=shape) * 0.1
        if kind != "int8":
            return constant(name, values.astype(dtype))
        scale = [
            constant(f"{name}_s", np.full(shape[0], 0.004, dtype)),
            constant(f"{name}_z", np.zeros(shape[0], np.int8)),
        ]
        eight_bit = constant(f"{name}_i8", np.clip(np.round(values / 0.004), -127, 127).astype(np.int8))
        return node("DequantizeLinear", [eight_bit, *scale], name, axis=0)

    def conv(tensor, name, shape, groups=1):
        inputs = [
            quantized(tensor, f"{name}_in"),
            weights(f"{name}_w", shape),
            constant(f"{name}_b", np.zeros(shape[0], dtype)),
        ]
        return node("Conv", inputs, name, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=groups)

    pixels = node("Transpose", [node("Cast", ["image"], "floats", to=floating)], "nchw", perm=[0, 3, 1, 2])
    stem = node("Relu", [conv(pixels, "stem", (32, 3, 3, 3))], "stem_relu")
    deep = node("Relu", [conv(stem, "depthwise", (32, 1, 3, 3), groups=32)], "depthwise_relu")
    total = node(
        "Relu",
        [node("Add", [conv(deep, "last", (32, 32, 3, 3)), quantized(stem, "skip")], "sum")],
        "sum_relu",
    )
    flat = node("Flatten", [node("GlobalAveragePool", [total], "pool")], "flat", axis=1)
    logits = node(
        "Gemm",
        [quantized(flat, "fc_in"), weights("fc_w", (16, 32)), constant("fc_b", np.zeros(16, dtype))],
        "fc",
        transB=1,
    )
    node("Cast", [logits], "logits", to=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_the_same_in_every_precision_of_a_network(kind):
    counts = count_macs(small_network(kind))
    assert counts == {
        "/net/stem/Conv": 32 * 32 * 32 * 27,
        "/net/depthwise/Conv": 32 * 32 * 32 * 9,
        "/net/last/Conv": 32 * 32 * 32 * 288,
        "/net/fc/Gemm": 512,
    }
    assert counts.unknown == ()


def build_plan(rtx, model):
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 32, 32, 3), (4, 32, 32, 3), (8, 32, 32, 3))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module")
def plans():
    rtx = pytest.importorskip("tensorrt_rtx", reason="builds real TensorRT-RTX plans; needs no GPU")
    return {kind: (build_plan(rtx, small_network(kind)), count_macs(small_network(kind))) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_real_plan_runs_all_products_in_its_precision(plans, kind):
    plan, products = plans[kind]
    audit = audit_rtx_plan(plan, products, Precision(kind), 1.0)
    assert audit.macs == {kind: sum(products.values())}
    assert (audit.share, audit.evidence, audit.unattributed) == (1.0, "rtx-plan", ())


def test_real_plan_of_int8_warns_of_float_outputs(plans):
    audit = audit_rtx_plan(*plans["int8"], Precision.INT8, 1.0)
    assert any("3 of 3 INT8 convolutions emit float32" in note for note in audit.notes)
    assert not any(
        "emit float32" in note for note in audit_rtx_plan(*plans["fp16"], Precision.FP16, 1.0).notes
    )


@pytest.mark.parametrize(("kind", "wanted"), [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "int8")])
def test_real_plan_handed_in_as_less_is_refused(plans, kind, wanted):
    with pytest.raises(PrecisionError, match=rf"{kind} 100\.0%; rtx-plan.*Computing wider: /net/stem/Conv"):
        audit_rtx_plan(*plans[kind], Precision(wanted), 0.01)
