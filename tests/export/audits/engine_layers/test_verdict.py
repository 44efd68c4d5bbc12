"""Layers weighed by MACs and judged, whichever library told of them."""

import json
from dataclasses import replace

import pytest
from inspector_support import ISLAND, PRODUCTS, layer, layers_of

from edgekiln.export.audits.engine_layers.verdict import audit_engine
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision


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


def test_fp16_does_not_meet_bf16_and_bf16_meets_fp16():
    for had, wanted, share in (
        ("fp16", "bf16", 0),
        ("bf16", "bf16", 1),
        ("bf16", "fp16", 1),
        ("int8", "bf16", 1),
    ):
        audit = audit_engine([layer(inputs=(had,))], {"/stem/Conv": 1}, Precision(wanted), 0.0)
        assert audit.share == share, (had, wanted)


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


def test_a_product_is_as_wide_as_in_the_widest_profile_and_unknown_where_one_lacks_it():
    conv = layer(inputs=("int8",))
    fused = replace(layer("kgen", ("fp16", "fp16"), name="__myl_FcAddCast"), profile=1)
    audit = audit_engine([conv, fused], {"/stem/Conv": 1}, Precision.INT8, 0.0)
    assert audit.macs == {
        "fp16": 1
    }  # the second profile's kernel counts, although the first one's is the better told
    other = replace(layer(inputs=("int8",), name="b"), origins=("/fc/Gemm",), profile=1)
    audit = audit_engine([conv, other], {"/stem/Conv": 1}, Precision.INT8, 0.0)
    assert audit.macs == {"unknown": 1}


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
