"""How large do the activations of a network get on real pictures, and how small its weights?

FP16 holds at most 65,504 and nothing below 6e-8. onnxruntime's CPU kernels keep the values between FP16 nodes in
float32, so an overflow never shows there: it is looked for here, on the FP32 model, before any engine is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = [
    "FP16_MAX",
    "ActivationPeak",
    "float_tensors",
    "measure_peaks",
    "refuse_non_finite",
    "vanishing_weights",
]

FP16_MAX = 65504.0
FP16_TINY = 2.0**-24
"""Smallest positive FP16 number (subnormal, IEEE 754-2008 binary16)."""
_BATCH = 8  # images per call: bounds the memory of all activations together
_MAX_OPSET_WITH_AXES_ATTRIBUTE = 17


@dataclass(frozen=True, slots=True)
class ActivationPeak:
    """The largest |value| that one tensor took, the node that makes it, and the image that did it (an index)."""

    node: str
    tensor: str
    value: float
    image: int


def measure_peaks(source: bytes, frames: Frames) -> tuple[ActivationPeak, ...]:
    """Largest |activation| of every float tensor of an FP32 file over real pictures, largest first.

    Args:
        source: the ONNX file's bytes.
        frames: uint8 (N, H, W, 3).
    """
    ort = import_onnxruntime("cpu")
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(source))
    makers = float_tensors(model.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        _with_peak_outputs(model, list(makers)), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    best, where = np.full(len(makers), -1.0), np.zeros(len(makers), np.int64)
    for start in range(0, len(frames), _BATCH):
        batch = np.array(frames[start : start + _BATCH])
        values = session.run(names, {INPUT_NAME: batch})
        peaks = np.array([_peak(value, len(batch)) for value in values])  # (tensors, 2)
        better = peaks[:, 0] > best
        best[better], where[better] = peaks[better, 0], start + peaks[better, 1].astype(np.int64)
    found = [
        ActivationPeak(node, tensor, float(best[i]), int(where[i]))
        for i, (tensor, node) in enumerate(makers.items())
    ]
    return tuple(sorted(found, key=lambda peak: -peak.value))


def refuse_non_finite(peak: ActivationPeak) -> None:
    """Stop where the largest activation is no number: no other precision would mend that.

    Raises:
        PrecisionError: it is NaN or infinity.
    """
    if not np.isfinite(peak.value):
        raise PrecisionError(
            f"The FP32 model gives NaN or infinity at {peak.node} for calibration image {peak.image}."
        )


def _peak(per_row: NDArray[np.float32], images: int) -> tuple[float, int]:
    """Largest value, and the image within the batch that made it."""
    # NaN and infinity are the worst peaks of all.
    cleaned = np.where(np.isfinite(per_row), per_row, np.inf)
    # Windows and heads multiply the leading axis: rows of one image then lie together.
    return float(cleaned.max()), int(cleaned.argmax()) * images // len(cleaned)


def float_tensors(graph: onnx.GraphProto) -> dict[str, str]:
    """Float activations with a leading batch axis, and the node that makes each."""
    known = {
        value.name: value.type.tensor_type
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    return {
        name: node.name or name
        for node in graph.node
        for name in node.output
        if name in known and _leads_with(known[name], batch)
    }


def _leads_with(tensor: onnx.TypeProto.Tensor, batch: str) -> bool:
    # Symbols are renamed by some exporters ("batch", "unk__0"): any unknown leading axis is the batch.
    dims = tensor.shape.dim
    return len(dims) > 0 and (dims[0].dim_param == batch or not dims[0].HasField("dim_value"))


def _with_peak_outputs(model: onnx.ModelProto, tensors: list[str]) -> bytes:
    """The model with max|x| over all but the batch axis of each tensor as its outputs, float32 (N,)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), "peaks.shape"))
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    axes_inputs = ["peaks.axes"] if opset > _MAX_OPSET_WITH_AXES_ATTRIBUTE else []
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "peaks.axes"))
    attributes = {} if axes_inputs else {"axes": [1]}
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "peaks.zero"))
    for tensor in tensors:
        flat, size, largest, nothing, total, peak = (
            f"{tensor}.peaks.{part}" for part in ("flat", "size", "largest", "nothing", "total", "peak")
        )
        graph.node.extend(
            [
                helper.make_node("Reshape", [tensor, "peaks.shape"], [flat]),
                helper.make_node("Abs", [flat], [size]),
                helper.make_node("ReduceMax", [size, *axes_inputs], [largest], keepdims=0, **attributes),
                # onnxruntime's ReduceMax overlooks NaN; a sum does not: x * 0 is 0, or NaN where x is not finite.
                helper.make_node("Mul", [flat, "peaks.zero"], [nothing]),
                helper.make_node("ReduceSum", [nothing, "peaks.axes"], [total], keepdims=0),
                helper.make_node("Add", [largest, total], [peak]),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, [None]))
    data: bytes = copy.SerializeToString()
    return data


def vanishing_weights(source: bytes) -> dict[str, float]:
    """Share of each float tensor's non-zero weights that FP16 turns into zero; only tensors where there are any."""
    shares = {}
    for tensor in onnx.load_from_string(source).graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        weights = np.abs(numpy_helper.to_array(tensor))
        nonzero = weights > 0
        lost = nonzero & (weights <= FP16_TINY / 2)  # rounds to zero, halfway to even
        if lost.any():
            shares[tensor.name] = float(lost.sum() / nonzero.sum())
    return shares
