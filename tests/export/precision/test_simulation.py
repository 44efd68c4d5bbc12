import numpy as np
import onnx
import pytest
from export_support import export_residual, make_frames
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.precision.simulation import check_simulated_parity, simulate
from edgekiln.runtime.errors import EngineError, NonFiniteError, ParityError


def make_model(nodes, **tensors):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def test_pairs_are_computed_as_they_are_written():
    """White pictures and weights of 127: pairs of products exceed 16 bits, where fused kernels may saturate."""
    node = helper.make_node
    weight = np.full((12, 2), 127, np.int8)
    model = make_model(
        [
            node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            node("Reshape", ["d", "shape"], ["flat"]),
            node("DequantizeLinear", ["weight", "weight_scale"], ["w"]),
            node("MatMul", ["flat", "w"], ["y"]),
            node("QuantizeLinear", ["y", "y_scale", "zero"], ["yq"]),
            node("DequantizeLinear", ["yq", "y_scale", "zero"], ["logits"]),
        ],
        scale=np.float32(1.0),
        zero=np.uint8(0),
        shape=np.array([0, -1], np.int64),
        weight=weight,
        weight_scale=np.float32(0.5),
        y_scale=np.float32(1000.0),
    )
    frames = np.concatenate([np.full((1, 2, 2, 3), 255, np.uint8), make_frames(3, 2)])
    product = frames.reshape(4, 12).astype(np.float64) @ (weight * 0.5)
    expected = np.clip(np.rint(product / 1000), 0, 255) * 1000
    assert expected[0, 0] == 194_000  # 12 * 255 * 63.5 = 194,310; saturated pairs give 98,000 at most
    assert simulate(model, frames) == pytest.approx(expected)


def test_batches_do_not_show(tmp_path):
    model = export_residual(tmp_path / "m.onnx").read_bytes()
    frames = make_frames(70)  # two batches of 32 and a rest
    parts = np.concatenate([simulate(model, frames[i : i + 7]) for i in range(0, 70, 7)])
    assert simulate(model, frames) == pytest.approx(parts, abs=1e-5)  # kernels differ with the batch


def test_answer_that_is_no_number_is_told_by_its_picture():
    node = helper.make_node
    model = make_model(
        [
            node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
            node("Reshape", ["x", "shape"], ["flat"]),
            node("Div", ["flat", "flat"], ["logits"]),  # 0 / 0 for black
        ],
        shape=np.array([0, -1], np.int64),
    )
    frames = np.full((40, 2, 2, 3), 9, np.uint8)
    assert (simulate(model, frames) == 1).all()
    frames[[33, 35]] = 0
    with pytest.raises(NonFiniteError, match="for 2 of 40 images; the first is number 33"):
        simulate(model, frames)


def test_what_onnxruntime_refuses_is_told():
    with pytest.raises(EngineError, match="onnxruntime cannot run the converted graph"):
        simulate(b"no model", make_frames(1, 2))


def test_parity_names_the_worst_picture(tmp_path):
    model = export_residual(tmp_path / "m.onnx").read_bytes()
    other = export_residual(tmp_path / "o.onnx", seed=1).read_bytes()
    assert check_simulated_parity(model, model, make_frames(5), 1e-6).max_difference == 0
    with pytest.raises(ParityError, match=r"Worst image: calibration image [0-4]\.") as caught:
        check_simulated_parity(model, other, make_frames(5), 0.01)
    assert str(caught.value).startswith(
        "The converted graph differs from the FP32 graph by"
    )  # and not from PyTorch
    assert "export.fp16_tolerance" in caught.value.hint
