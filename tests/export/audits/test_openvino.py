"""What OpenVINO really computes with: counted by MACs on its runtime model, by the names of the ONNX file."""

import numpy as np
import onnx
import pytest
from export_support import export_residual, make_calibration

from edgekiln.export.audits import openvino as audits
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.openvino import _datatype, audit_openvino, names_in_openvino, to_engine_layer
from edgekiln.export.calibration import choose_calibration
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.export.to_onnx import ask_for_static_batches
from edgekiln.pipeline.data import load_split
from edgekiln.runtime.backends import open_session
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
    """(FP32 bytes, INT8 bytes, INT8 bytes with the second convolution in float, its name); signed pixels."""
    folder = tmp_path_factory.mktemp("residual")
    source = export_residual(folder / "fp32.onnx")
    graph = onnx.load(source).graph
    kept = [node.name for node in graph.node if node.op_type == "Conv"][1]
    for name, keep in (("int8", ()), ("kept", (kept,))):
        target = folder / f"{name}.onnx"
        assert quantize_for_cpu(source, target, make_calibration(), keep_float=keep, signed_pixels=True)
    return (*((folder / f"{name}.onnx").read_bytes() for name in ("fp32", "int8", "kept")), kept)


def test_all_run_in_int8_also_the_first_convolution(residual):
    source, quantized, _, _ = residual
    audit = audit_openvino(source, quantized, 1.0)
    assert audit.macs == {"int8": sum(count_macs(onnx.load_from_string(source)).values())}
    assert (audit.share, audit.islands, audit.evidence, audit.unattributed) == (1.0, (), "openvino", ())


def test_models_for_single_batch_sizes_are_audited_too(residual, monkeypatch):
    source, quantized, _, _ = residual
    asking = ask_for_static_batches(quantized, [8, 2])
    assert audit_openvino(source, asking, 1.0) == audit_openvino(source, quantized, 1.0)
    read = audits.read_layers

    def only_one_picture_in_int8(model):
        found = read(model)
        assert list(found) == [1, 2, 8]
        return {**found, 8: read(source)[1]}

    monkeypatch.setattr(audits, "read_layers", only_one_picture_in_int8)
    with pytest.raises(PrecisionError, match=r"Only 0.0% of the MACs run in int8"):
        audit_openvino(source, asking, 0.8)


def test_pixels_without_a_sign_cost_the_first_convolution(residual, tmp_path):
    source = residual[0]
    (tmp_path / "fp32.onnx").write_bytes(source)
    quantize_for_cpu(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", make_calibration())
    audit = audit_openvino(source, (tmp_path / "int8.onnx").read_bytes(), 0.8)
    macs = count_macs(onnx.load_from_string(source))
    first = next(iter(macs.values()))
    assert audit.macs == {"int8": sum(macs.values()) - first, "fp32": first}
    assert audit.share == pytest.approx(1 - first / sum(macs.values()))
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
    assert audit.macs["fp32"] == macs[kept]


def test_what_runs_in_int8_although_it_was_to_stay_in_float_is_refused(residual):
    source, quantized, _, kept = residual
    with pytest.raises(PrecisionError, match=f"in INT8 of products that were to stay in float: {kept}"):
        audit_openvino(source, quantized, 0.8, keep_float=[kept])


@pytest.mark.parametrize(
    ("precision", "primitive", "datatype"),
    [
        ("u8", "jit_avx2_1x1_I8", "int8"),
        ("i8", "brgemm_avx512_I8", "int8"),
        ("i8", "brgconv_avx512_amx_i8", "int8"),  # of a signed input
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
    names = {"/a/conv": "/a/conv", "logits": "head", "head": "head"}
    layer = RuntimeLayer(
        "l",
        "Convolution",
        "u8",
        "x_I8",
        ("/a/conv/WithoutBiases", "/a/conv", "/a/other", "relu", "head_original"),
    )
    assert to_engine_layer(layer, names) == EngineLayer(
        "l", "Convolution", ("/a/conv", "head"), ("int8",), (), "x_I8"
    )
    assert to_engine_layer(RuntimeLayer("r", "Reorder", "f32", "x", ("logits",)), names).kind == "Reformat"


def test_a_node_without_a_name_is_found_by_its_output():
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "g", [], [])
    assert names_in_openvino(graph)["y"] == "node_of_y"


@pytest.mark.slow
def test_the_whole_lite0_runs_in_int8_and_answers_as_with_pixels_without_a_sign(lite0_run, tmp_path):
    data = lite0_run.stages["data"].folder
    quantize_for_cpu(
        lite0_run.bundle / "fp32.onnx",
        tmp_path / "int8.onnx",
        choose_calibration(load_split(data, "train").frames, 128, 0),
        signed_pixels=True,
    )
    source, signed = (lite0_run.bundle / "fp32.onnx").read_bytes(), (tmp_path / "int8.onnx").read_bytes()
    audit = audit_openvino(source, signed, 1.0)
    assert (audit.share, audit.islands, audit.unattributed) == (1.0, (), ())
    frames = np.array(load_split(data, "test").frames)
    got, same = (
        open_session("openvino", model).run(frames).argmax(axis=1)
        for model in (signed, (lite0_run.bundle / "int8.onnx").read_bytes())
    )
    assert (got == same).mean() >= 0.99
