"""Bias correction: rounded weights and activations shift the mean of a layer's answers; its bias takes the shift back.

The empirical bias correction of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(2019, section 4.2 and appendix D): layer after layer, from the input on, so that a layer sees its predecessors
corrected. On depthwise networks most of what INT8 loses is such shifts. No weight and no scale changes, so neither
speed nor saturation does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekiln.export.precision.onnxruntime_quantizer import refusals_told
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = ["correct_biases"]

_MOST_IMAGES = 32
_MEMORY = 1 << 28
"""Bytes of the largest answer of one layer, for all pictures together."""
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16})


@dataclass(frozen=True, slots=True)
class _Layer:
    """A product with a bias: the node whose output has it, the bias's tensor, its scale, and the channels' axis."""

    node: Any
    bias: Any
    scale: NDArray[np.float64]
    axis: int

    @property
    def output(self) -> str:
        return str(self.node.output[0])

    def add(self, shift: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add a shift, float64 (C,), to the bias as far as its type holds it; returns what was added."""
        before = numpy_helper.to_array(self.bias)
        wanted = before.astype(np.float64) + shift.reshape(before.shape) / self.scale
        if before.dtype.kind == "i":
            kind = np.iinfo(before.dtype)
            wanted = np.clip(np.rint(wanted), kind.min, kind.max)
        after = wanted.astype(before.dtype)
        self.bias.CopyFrom(numpy_helper.from_array(after, self.bias.name))
        added: NDArray[np.float64] = (after.astype(np.float64) - before.astype(np.float64)) * self.scale
        return added.reshape(shift.shape)


def correct_biases(quantized: Any, source: Any, frames: Frames) -> int:
    """Give every layer the mean that it has in FP32, channel by channel, by its bias, in place.

    Args:
        quantized: ModelProto with explicit Q/DQ.
        source: the FP32 ModelProto that it was made from; layers are matched by node name.
        frames: calibration pictures, uint8 (N, H, W, 3). Up to 32 of them are taken, evenly; fewer where a layer's
            answers to them would take over 256 MB.

    Returns:
        Number of layers with a corrected bias. Products without one are left.

    Raises:
        PrecisionError: onnxruntime cannot run a graph.
    """
    with refusals_told("simulation"):
        layers = {layer.node.name: layer for layer in _find_layers(quantized.graph)}
        wanted = {layer.node.name: layer for layer in _find_layers(source.graph) if layer.node.name in layers}
        if not wanted:
            return 0
        means, images = _measure_means(source, list(wanted.values()), frames)
        walk = _Walk(quantized, {INPUT_NAME: images})
        for name in [node.name for node in quantized.graph.node if node.name in means]:
            layer = layers[name]
            answers = walk.compute(layer.output)
            added = layer.add(means[name] - _channel_means(answers, layer.axis))
            walk.replace(
                layer.output, answers + _along(added, answers.ndim, layer.axis).astype(answers.dtype)
            )
    return len(means)


def _find_layers(graph: Any) -> Iterable[_Layer]:
    """Conv and Gemm with a constant bias, and MatMul with an Add of one that alone reads it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)

    def find_bias(name: str) -> tuple[Any, NDArray[np.float64]] | None:
        scale = np.ones(1)
        if name in made_by and made_by[name].op_type == "DequantizeLinear":
            name, scale_name = made_by[name].input[:2]
            scale = numpy_helper.to_array(constants[scale_name]).astype(np.float64)
        tensor = constants.get(name)
        whole = tensor is not None and tensor.data_type in _FLOATS | {onnx.TensorProto.INT32}
        return (tensor, scale) if whole and len(readers[name]) == 1 else None

    for node in graph.node:
        bias, biased, axis = None, node, 1
        if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2:
            bias = find_bias(node.input[2])
        elif node.op_type == "MatMul" and [n.op_type for n in readers.get(node.output[0], ())] == ["Add"]:
            biased, axis = readers[node.output[0]][0], -1
            (other,) = [name for name in biased.input if name != node.output[0]] or [""]
            bias = find_bias(other)
        if bias is not None and (axis == 1 or np.ndim(numpy_helper.to_array(bias[0])) == 1):
            yield _Layer(biased, *bias, axis)


def _measure_means(
    source: Any, layers: list[_Layer], frames: Frames
) -> tuple[dict[str, NDArray[np.float64]], Frames]:
    """Mean of each layer's FP32 answers by channel, float64 (C,), and the pictures that they were asked for."""
    session = _open(source.graph.node, source, {}, [layer.output for layer in layers])
    first = session.run(None, {INPUT_NAME: np.array(frames[:1])})
    count = min(_MOST_IMAGES, len(frames), max(1, _MEMORY // max(answer.nbytes for answer in first)))
    images = np.array(frames[np.linspace(0, len(frames) - 1, count).astype(int)])
    means = {layer.node.name: np.zeros(()) for layer in layers}
    for image in images:
        for layer, answer in zip(layers, session.run(None, {INPUT_NAME: image[None]}), strict=True):
            means[layer.node.name] = means[layer.node.name] + _channel_means(answer, layer.axis) / count
    return means, images


def _channel_means(answers: NDArray[Any], axis: int) -> NDArray[np.float64]:
    others = tuple(i for i in range(answers.ndim) if i != axis % answers.ndim)
    means: NDArray[np.float64] = answers.mean(axis=others, dtype=np.float64)
    return means


def _along(values: NDArray[np.float64], dimensions: int, axis: int) -> NDArray[np.float64]:
    """(C,) as an array that broadcasts along a channel axis."""
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


class _Walk:
    """Computes a graph from its input on, each node that depends on it once, as far as it is asked for."""

    def __init__(self, model: Any, values: Mapping[str, NDArray[Any]]) -> None:
        self._model, self._values = model, dict(values)
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._position = {node.output[0]: i for i, node in enumerate(model.graph.node)}
        self._unread = {name: 0 for node in model.graph.node for name in node.output}
        self._moving = self._find_moving()
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._unread[name] = self._unread.get(name, 0) + (node.output[0] in self._moving)

    def _find_moving(self) -> frozenset[str]:
        """Tensors that depend on the input; all others are constants, and computed wherever they are read."""
        moving = set(self._values)
        for node in self._model.graph.node:
            if moving.intersection(node.input):
                moving.update(node.output)
        return frozenset(moving)

    def compute(self, tensor: str) -> NDArray[Any]:
        """A tensor's values; what else is computed on the way and read later is kept."""
        segment = self._collect(tensor)
        for node in segment:
            if node.output[0] in self._moving:
                for name in dict.fromkeys(node.input):
                    self._unread[name] -= 1
        inputs = {n: v for n, v in self._values.items() if any(n in node.input for node in segment)}
        made = [name for node in segment for name in node.output if name in self._moving]
        outputs = list(dict.fromkeys([tensor, *(name for name in made if self._unread.get(name))]))
        session = _open(segment, self._model, inputs, outputs)
        self._values |= zip(outputs, session.run(None, inputs), strict=True)
        self._values = {n: v for n, v in self._values.items() if n == tensor or self._unread.get(n)}
        return self._values[tensor]

    def replace(self, tensor: str, values: NDArray[Any]) -> None:
        """Give a tensor other values, for what reads it."""
        self._values[tensor] = values

    def _collect(self, tensor: str) -> list[Any]:
        """The nodes that make a tensor of what is known, in the graph's order."""
        found: dict[str, Any] = {}
        left = [tensor]
        while left:
            name = left.pop()
            node = None if name in self._values else self._made_by.get(name)
            if node is not None and node.output[0] not in found:
                found[node.output[0]] = node
                left.extend(node.input)
        return sorted(found.values(), key=lambda node: self._position[node.output[0]])


def _open(nodes: Iterable[Any], model: Any, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> Any:
    """A session of some of a model's nodes, Q/DQ computed as written; without ``inputs`` those of the model."""
    nodes = list(nodes)
    read = {name for node in nodes for name in node.input}
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "segment",
        given or list(model.graph.input),
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    ort = import_onnxruntime("cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
