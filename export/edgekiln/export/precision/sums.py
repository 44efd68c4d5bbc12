"""How large do the sums inside a node get? In FP16 one may overflow although its result would fit.

A mean of 10,000 values is small and their sum is not; neither is the sum of squares inside an L2 norm, nor a product's
before its terms cancel. What is measured is the sum of the terms' absolute values: no order of adding exceeds it.
LayerNormalization is not asked: its file says that it accumulates in float32 (``stash_type`` 1), and TensorRT does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekiln.export.precision.ranges import FP16_MAX, ActivationPeak
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = ["SAFE_SUM", "measure_sums"]

SAFE_SUM = FP16_MAX / 2
"""Other pictures than the calibration's reach further."""
_SUMS = {"ReduceMean": "ReduceSum", "ReduceSum": "ReduceSum", "ReduceL1": "ReduceSum", "ReduceL2": "ReduceSumSquare",
         "ReduceSumSquare": "ReduceSumSquare"}  # fmt: skip
_POOLS = {
    "GlobalAveragePool": ("GlobalLpPool", 1),
    "AveragePool": ("LpPool", 1),
    "InstanceNormalization": ("GlobalLpPool", 2),
}
_KEPT = {
    "Conv": {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"},
    "Gemm": {"transA", "transB"},
    "MatMul": set(),
    "LpPool": {"auto_pad", "ceil_mode", "kernel_shape", "pads", "strides"},
    "GlobalLpPool": set(),
    "ReduceSum": {"axes", "keepdims", "noop_with_empty_axes"},
    "ReduceSumSquare": {"axes", "keepdims", "noop_with_empty_axes"},
}


def measure_sums(
    source: bytes, frames: Frames, peaks: Sequence[ActivationPeak], limit: float = SAFE_SUM
) -> tuple[ActivationPeak, ...]:
    """Nodes of an exported FP32 file with an inner sum over ``limit``, the largest first; ``value`` is the sum.

    Args:
        source: the ONNX file's bytes.
        frames: uint8 (N, H, W, 3); the few that drive activations to their peaks are enough.
        peaks: of all activations, on all calibration pictures.
        limit: FP16 ends at 65,504.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(source))
    largest = {peak.tensor: peak.value for peak in peaks}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    asked = {}
    for node in model.graph.node:
        if node.input and node.input[0] in largest and _bound(node, largest, constants) > limit:
            asked[node.name] = _sum_nodes(node, constants)
    asked = {name: nodes for name, nodes in asked.items() if nodes}
    found = _run(model, asked, frames)
    tensors = {node.name: node.output[0] for node in model.graph.node}
    sums = [ActivationPeak(name, tensors[name], value, image) for name, (value, image) in found.items()]
    return tuple(sorted((s for s in sums if s.value > limit), key=lambda s: -s.value))


def _bound(node: Any, largest: Mapping[str, float], constants: Mapping[str, Any]) -> float:
    """No sum of the node is larger: infinity where only running it tells; what has no sum has 0."""
    if node.op_type not in {*_SUMS, *_POOLS, "Conv", "Gemm", "MatMul"}:
        return 0.0
    if node.op_type in {*_SUMS, *_POOLS} or node.input[1] not in constants:
        return np.inf
    weight = np.abs(numpy_helper.to_array(constants[node.input[1]]).astype(np.float64))
    if node.op_type == "Conv":
        rows = weight.reshape(len(weight), -1)
    else:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        rows = weight if transposed else np.moveaxis(weight, -2, -1)
    return float(rows.sum(axis=-1).max(initial=0.0) * largest[node.input[0]])


def _sum_nodes(node: Any, constants: Mapping[str, Any]) -> list[Any]:
    """Nodes that compute the sum of the |terms| of ``node``; the last one's output is it (its root, of an L2 norm)."""
    more: dict[str, Any] = {}
    if node.op_type in _POOLS:
        operator, more["p"] = _POOLS[node.op_type]
        inputs, rest = [node.input[0]], []
    elif node.op_type in _SUMS:
        operator, inputs, rest = _SUMS[node.op_type], [node.input[0]], list(node.input[1:])
    else:
        operator, inputs, rest = node.op_type, list(node.input[:2]), []
    sizes = [f"{node.name}.sums.{i}" for i in range(len(inputs))]
    steps = [helper.make_node("Abs", [name], [size]) for name, size in zip(inputs, sizes, strict=True)]
    last = helper.make_node(operator, [*sizes, *rest], [f"{node.name}.sums"], **more)
    last.attribute.extend(a for a in node.attribute if a.name in _KEPT[operator])
    return [*steps, last]


def _run(model: Any, asked: Mapping[str, list[Any]], frames: Frames) -> dict[str, tuple[float, int]]:
    """By node: the largest sum, and the picture that made it."""
    if not asked:
        return {}
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    for nodes in asked.values():
        opened.graph.node.extend(nodes)
        name = nodes[-1].output[0]
        opened.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = import_onnxruntime("cpu").SessionOptions()
    options.log_severity_level = 3
    session = import_onnxruntime("cpu").InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    best: dict[str, tuple[float, int]] = {}
    for image in range(len(frames)):
        values = session.run(None, {INPUT_NAME: np.array(frames[image : image + 1])})
        for (name, nodes), value in zip(asked.items(), values, strict=True):
            root = nodes[-1].op_type == "GlobalLpPool" and any(
                a.name == "p" and a.i == 2 for a in nodes[-1].attribute
            )
            largest = float(np.max(value, initial=0.0)) ** (2 if root else 1)
            best[name] = max(best.get(name, (0.0, image)), (largest, image))
    return best
