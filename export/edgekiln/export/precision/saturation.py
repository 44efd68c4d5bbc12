"""Weight scales with which no INT8 kernel of a CPU can saturate, and the proof from a finished file.

Without VNNI the kernels multiply pairs of uint8 by int8 with ``vpmaddubsw``, which adds two products in 16 bits and
saturates. Keeping every pair sum of weights within 128 keeps every sum within 255 * 128 = 32,640 < 32,767; it costs
nothing at run time, where ``reduce_range`` gives up a bit. Knows no activations and runs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekiln.runtime.errors import PrecisionError

__all__ = ["check_saturation", "largest_pair_sums", "saturation_safe_scales", "weight_overrides"]

MAX_PAIR_SUM = 128
"""255 * 128 = 32,640 is the largest product sum that fits 16 signed bits."""
_SIXTEEN_BITS = 2**15 - 1


def saturation_safe_scales(rows: NDArray[np.float32], *, paired: bool = True) -> NDArray[np.float32]:
    """Smallest weight scale per output channel with which no pair of products can saturate 16 bits.

    scale_c = max( max|w| / 127 , largest same-sign pair sum / 128 ), pairs (0, 1), (2, 3), ... in the order in
    which the kernel multiplies. After rounding no pair exceeds 128: two values whose sum is at most 128 can both
    round up only where the fractions reach 1/2 together, which rounding half to even prevents at 128 exactly.

    Args:
        rows: float32 (channels, K), each row in multiplication order.
        paired: ``False`` for depthwise convolutions, whose products are added in 32 bits.

    Returns:
        float32 (channels,), positive.
    """
    values = rows.astype(np.float64)
    scales = np.abs(values).max(axis=1) / 127
    if paired:
        scales = np.maximum(scales, _pair_sums(values).max(axis=1) / MAX_PAIR_SUM)
    # A channel of zeros needs some scale; this one keeps its bias well inside 32 bits.
    scales = np.where(scales > 0, scales, 1 / 127)
    # Rounded up to float32: one unit below would let the largest weight round past its limit.
    return np.nextafter(scales.astype(np.float32), np.float32(np.inf))


def _pair_sums(rows: NDArray[Any]) -> NDArray[Any]:
    """Per row and pair the largest |sum| that activations >= 0 can select: of the positives or the negatives."""
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = padded.reshape(len(padded), -1, 2)
    sums: NDArray[Any] = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2))
    return sums


def _kernel_rows(node: Any, weight: NDArray[Any]) -> tuple[NDArray[Any], int, bool]:
    """A weight as (channels, K) in multiplication order, its channel axis, and whether products pair up."""
    if node.op_type == "Conv":
        # onnxruntime's kernels walk (kernel y, kernel x, input channel).
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        # One input and one output channel per group takes the depthwise kernel, which adds in 32 bits. A single
        # input channel otherwise (grey, or a channel multiplier) takes the general one and pairs kernel positions.
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        depthwise = groups > 1 and weight.shape[1] == 1 and groups == len(weight)
        return rows, 0, not depthwise
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return (weight, 0, True) if transposed else (weight.T, 1, True)


def weight_overrides(graph: Any) -> dict[str, list[dict[str, Any]]]:
    """onnxruntime's TensorQuantOverrides for every constant weight of a product."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.input[1] not in weights:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        if weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        rows, axis, paired = _kernel_rows(node, weight)
        zero = np.array(0, np.int8)
        scales = saturation_safe_scales(rows, paired=paired)
        other = overrides.get(node.input[1])
        if other is not None:  # one weight, two users: the larger scale is safe for both
            same_axis = other[0]["axis"] == axis
            known = np.array([entry["scale"] for entry in other])
            scales = (
                np.maximum(scales, known)
                if same_axis
                else np.full_like(known, max(scales.max(), known.max()))
            )
            axis = other[0]["axis"]
        overrides[node.input[1]] = [{"axis": axis, "scale": scale, "zero_point": zero} for scale in scales]
    return overrides


def check_saturation(model: Any) -> None:
    """Prove it from an INT8 file.

    Raises:
        PrecisionError: a sum of two products can exceed 16 signed bits.
    """
    for name, largest in largest_pair_sums(model).items():
        if largest > _SIXTEEN_BITS:
            raise PrecisionError(
                f"A sum of two products in {name} can reach {largest}, over {_SIXTEEN_BITS}."
            )


def largest_pair_sums(model: Any) -> dict[str, int]:
    """For every paired product of an INT8 file: the largest |sum of two products| that any input can cause.

    Read from the int8 weights in the file; 32,767 is the limit of 16 signed bits.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    sums: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        dequantize = producers.get(node.input[1])
        if dequantize is None or dequantize.input[0] not in weights:
            continue
        weight = numpy_helper.to_array(weights[dequantize.input[0]]).astype(np.int64)
        rows, _, paired = _kernel_rows(node, weight)
        if paired:
            sums[node.name] = int(255 * _pair_sums(rows).max())
    return sums
