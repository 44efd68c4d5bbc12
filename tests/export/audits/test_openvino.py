"""What OpenVINO really computes with: counted by MACs on its runtime model, by the names of the ONNX file."""

import onnx
import pytest
from export_support import export_residual, make_calibration

from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.openvino import _datatype, _names_in_openvino, _to_engine_layer, audit_openvino
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.runtime.backends.openvino import RuntimeLayer, import_openvino
from edgekiln.runtime.errors import MissingExtraError, PrecisionError


@pytest.fixture(scope="module", autouse=True)
def installed():
    """Through edgekiln's own door: a plain import would report to Intel."""
    try:
        import_openvino()
    except MissingExtraError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """(FP32 bytes, INT8 bytes, INT8 bytes with the second convolution in float, its name)."""
    folder = tmp_path_factory.mktemp("residual")
    source = export_residual(folder / "fp32.onnx")
    graph = onnx.load(source).graph
    kept = [node.name for node in graph.node if node.op_type == "Conv"][1]
    for name, keep in (("int8", ()), ("kept", (kept,))):
        quantize_for_cpu(source, folder / f"{name}.onnx", make_calibration(), "minmax", keep_float=keep)
    return (*((folder / f"{name}.onnx").read_bytes() for name in ("fp32", "int8", "kept")), kept)


def test_all_but_the_first_convolution_run_in_int8(residual):
    source, quantized, _, _ = residual
    audit = audit_openvino(source, quantized, 0.8)
    macs = count_macs(onnx.load_from_string(source))
    first = next(iter(macs.values()))
    assert audit.macs == {"int8": sum(macs.values()) - first, "fp32": first}
    assert audit.share == pytest.approx(1 - first / sum(macs.values()))
    assert (audit.evidence, audit.unattributed) == ("openvino", ())
    assert [name.partition("/")[0] for name in audit.islands] == [next(iter(macs))]


def test_the_fp32_file_is_no_int8(residual):
    source, _, _, _ = residual
    with pytest.raises(
        PrecisionError, match=r"Only 0\.0% of the MACs run in int8 \(fp32 100\.0%; openvino\)"
    ):
        audit_openvino(source, source, 0.8)


def test_what_was_left_in_float_on_purpose_is_not_asked_for(residual):
    source, _, quantized, kept = residual
    macs = count_macs(onnx.load_from_string(source))
    with pytest.raises(PrecisionError, match=f"Computing wider: .*{kept}"):
        audit_openvino(source, quantized, 0.8)
    audit = audit_openvino(source, quantized, 0.8, keep_float=[kept])
    assert audit.macs["fp32"] == macs[kept] + next(iter(macs.values()))


def test_what_runs_in_int8_although_it_was_to_stay_in_float_is_refused(residual):
    source, quantized, _, kept = residual
    with pytest.raises(PrecisionError, match=f"in INT8 of products that were to stay in float: {kept}"):
        audit_openvino(source, quantized, 0.8, keep_float=[kept])


@pytest.mark.parametrize(
    ("precision", "primitive", "datatype"),
    [
        ("u8", "jit_avx2_1x1_I8", "int8"),
        ("i8", "brgemm_avx512_I8", "int8"),
        ("u8", "brgconv_avx2_f32", "fp32"),  # 8-bit input, float arithmetic
        ("u8", "unknown", "unknown"),
        ("f32", "brgconv_avx512_f32", "fp32"),
        ("bf16", "brgconv_avx512_amx_bf16", "bf16"),
        ("f16", "jit_f16", "fp16"),
        ("", "", "unknown"),
    ],
)
def test_8_bits_are_believed_only_where_layer_and_kernel_agree(precision, primitive, datatype):
    assert _datatype(RuntimeLayer("x", "Convolution", precision, primitive, ())) == datatype


def test_parts_of_a_node_are_its_own_and_those_of_others_are_not():
    names = {"/a/conv": "/a/conv", "logits": "head"}
    layer = RuntimeLayer(
        "l", "Convolution", "u8", "x_I8", ("/a/conv/WithoutBiases", "/a/conv", "/a/other", "relu")
    )
    assert _to_engine_layer(layer, names) == EngineLayer(
        "l", "Convolution", ("/a/conv",), ("int8",), (), None
    )
    assert _to_engine_layer(RuntimeLayer("r", "Reorder", "f32", "x", ("logits",)), names).kind == "Reformat"


def test_a_node_without_a_name_is_found_by_its_output():
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "g", [], [])
    assert _names_in_openvino(graph, {"node_of_y": 5})["y"] == "node_of_y"


@pytest.mark.slow
def test_lite0_runs_in_int8_but_for_its_first_convolution(lite0_run):
    source, quantized = ((lite0_run.bundle / f"{name}.onnx").read_bytes() for name in ("fp32", "int8"))
    audit = audit_openvino(source, quantized, 0.95)
    assert audit.unattributed == ()
    assert len(audit.islands) == 1
    assert audit.macs["fp32"] == 32 * 32 * 32 * 27  # 32 channels of 32 x 32, each of 3 x 3 x 3 products
