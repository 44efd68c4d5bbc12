"""One layer alone: what it is and computes in. What a whole engine makes of it is in ``test_verdict``."""

import pytest
from inspector_support import layer

from edgekiln.export.audits.engine_layers.classification import compute_type, is_reformat, rank_layer


@pytest.mark.parametrize(
    ("one", "rank"),
    [
        (layer("CaskConvolution"), 0),
        (layer("kgen", name="__myl_FcMulAdd_myl0_2"), 1),
        (layer("Myelin"), 2),
        (layer("unknown"), 2),
        (layer("Reformat"), 3),
        (layer("kgen", name="/conv1/Conv"), 3),  # a generated kernel with an ONNX name may be anything
    ],
)
def test_how_surely_a_layer_computes_products(one, rank):
    assert rank_layer(one) == rank


def test_a_generated_kernel_that_only_moves_is_a_reformat():
    assert is_reformat(layer("kgen", name="__myl_MoveConc_myl0_1"))
    assert not is_reformat(layer("kgen", name="__myl_MoveMulSum_myl0_1"))


def test_operands_decide_before_the_kernels_name_and_that_before_the_weights():
    tactic = "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32"
    assert compute_type(layer(inputs=("fp16",), tactic=tactic, weights="fp32")) == "fp16"
    assert compute_type(layer(inputs=("unknown",), tactic=tactic, weights="fp32")) == "int8"
    assert compute_type(layer(inputs=("unknown",), weights="fp32")) == "fp32"
    assert compute_type(layer("Myelin", weights="fp32")) == "unknown"
