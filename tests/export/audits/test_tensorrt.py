import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from inspector_support import PRODUCTS
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.tensorrt import audit_declared, audit_rtx_plan
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision


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
        "import sys, edgekiln.export.audits.tensorrt, edgekiln.export.audits.engine_layers.inspector\n"
        "print(sorted({n.split('.')[0] for n in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"onnx", "torch", "pydantic", "tensorrt", "onnxruntime"} & set(
        json.loads(loaded.replace("'", '"'))
    )


# TensorRT-RTX plans


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
