"""What onnxruntime's quantizer leaves to do in its graph: pixels as input, shielded float products, float logits.

With (x - 127) / 128 a pixel is an exact quantization of the input, scale 1/128, zero point 127, so Cast, Mul, Add and
QuantizeLinear disappear from the graph. OpenVINO computes a first convolution in INT8 only where its input has no zero
point: its graphs get the pixel as int8, x - 127 with scale 1/128, and a pixel of 255 becomes 127 instead of 128.
Runs nothing and chooses no other scale.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekiln.export.to_onnx import entry_chain
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME

__all__ = ["adapt_graph", "finish_graph", "pixel_override"]

_NORMALIZATIONS = frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization"})
_PIXEL_SCALE = 1 / 128
_ZERO_POINTS = {False: np.array(127, np.uint8), True: np.array(0, np.int8)}
"""Of a pixel, by whether it is signed."""


def pixel_override(signed: bool = False) -> list[dict[str, Any]]:
    """A pixel's own quantization, uint8 or int8, as onnxruntime's TensorQuantOverrides has it."""
    kinds = import_extra("onnxruntime.quantization", "onnx").QuantType
    return [
        {
            "scale": np.array(_PIXEL_SCALE, np.float32),
            "zero_point": _ZERO_POINTS[signed],
            "quant_type": kinds.QInt8 if signed else kinds.QUInt8,
        }
    ]


def adapt_graph(
    graph: Any, float_graph: Any, keep_float: Collection[str], pixel_is_input: bool, signed: bool
) -> bool:
    """What the quantizer lacks: shielded products, float logits, pixels as input. Whether those feed directly.

    ``signed`` pixels are left to the library to convert: it does so in one pass.
    """
    _shield_kept(graph, keep_float)
    _free_normalized_concats(graph)
    pixels_feed_directly = pixel_is_input and (_find_pixels(graph, signed) is not None)
    if pixels_feed_directly and not signed:
        _feed_pixels(graph)
    _keep_float_logits(graph, float_graph)
    return pixels_feed_directly


def _find_pixels(graph: Any, signed: bool) -> Any:
    """The QuantizeLinear behind the entry chain, or None where another node reads its result too."""
    normalized = entry_chain(graph)[-1].output[0]
    readers = _readers(graph, normalized)
    if [node.op_type for node in readers] != ["QuantizeLinear"]:
        return None
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scale, zero_point = (constants[name] for name in readers[0].input[1:3])
    wanted = _ZERO_POINTS[signed]
    if float(scale) != _PIXEL_SCALE or (zero_point, zero_point.dtype) != (wanted, wanted.dtype):
        raise PrecisionError(
            f"The input was quantized with {scale}, {zero_point}; a pixel is {_PIXEL_SCALE}, {wanted}."
        )
    return readers[0]


def _feed_pixels(graph: Any) -> None:
    """Replace Cast, Transpose, Mul, Add, QuantizeLinear by one Transpose of uint8."""
    chain, quantize = entry_chain(graph), _find_pixels(graph, signed=False)
    pixels = helper.make_node(
        "Transpose", [INPUT_NAME], [quantize.output[0]], name="pixels", perm=[0, 3, 1, 2]
    )
    for node in (*chain, quantize):
        graph.node.remove(node)
    graph.node.insert(0, pixels)


def _shield_kept(graph: Any, keep_float: Collection[str]) -> None:
    """Keep onnxruntime from quantizing float weights after all.

    Between a DequantizeLinear and a QuantizeLinear its WeightBiasQuantization transformer puts the float weights of
    Conv and Gemm into int8 with one scale for the whole tensor (onnxruntime 1.31, qdq_transformer): worse than what
    the file was spared, and neither saturation-safe. It asks for a scalar input scale, so these nodes read the
    same 8-bit values through a DequantizeLinear that repeats scale and zero point for every channel.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [n for n in graph.node if n.name in keep_float and n.op_type in {"Conv", "Gemm"}]:
        dequantize = made_by.get(node.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        names = [f"{node.name}.input_{part}" for part in ("scale", "zero_point")]
        for name, old in zip(names, dequantize.input[1:], strict=True):
            repeated = np.full(_input_channels(node, constants), constants[old], constants[old].dtype)
            graph.initializer.append(numpy_helper.from_array(repeated, name))
        shielded = helper.make_node(
            "DequantizeLinear",
            [dequantize.input[0], *names],
            [f"{node.name}.input"],
            f"{node.name}.shield",
            axis=1,
        )
        graph.node.insert(list(graph.node).index(node), shielded)
        node.input[0] = shielded.output[0]
        if not any(dequantize.output[0] in other.input for other in graph.node):
            graph.node.remove(dequantize)


def _free_normalized_concats(graph: Any) -> None:
    """Drop the Q/DQ pair between a Concat and the normalizations that alone read it, which compute in float anyway.

    OpenVINO 2026.4 moves such a pair to the Concat's inputs (its pass MoveFakeQuantize) and then reads a node that is
    not there: every DenseNet ended the process with signal 11.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        concat = made_by.get(quantize.input[0])
        if concat is None or concat.op_type != "Concat":
            continue
        pairs = _readers(graph, quantize.output[0])
        last = [reader for pair in pairs for reader in _readers(graph, pair.output[0])]
        if not last or any(reader.op_type not in _NORMALIZATIONS for reader in last):
            continue
        for pair in pairs:
            for reader in _readers(graph, pair.output[0]):
                _replace_input(reader, pair.output[0], quantize.input[0])
            graph.node.remove(pair)
        graph.node.remove(quantize)


def _readers(graph: Any, tensor: str) -> list[Any]:
    return [node for node in graph.node if tensor in node.input]


def _replace_input(node: Any, old: str, new: str) -> None:
    for position, name in enumerate(node.input):
        if name == old:
            node.input[position] = new


def _input_channels(node: Any, constants: dict[str, NDArray[Any]]) -> int:
    attributes = {a.name: a.i for a in node.attribute}
    shape = constants[node.input[1]].shape
    if node.op_type == "Conv":
        return int(shape[1]) * int(attributes.get("group", 1))
    return int(shape[1] if attributes.get("transB") else shape[0])


def _keep_float_logits(graph: Any, float_graph: Any) -> None:
    """Drop the Q/DQ pair before the output: 256 steps of logit would make ties of near answers.

    Not where the network ends in a ReLU or Clip: the quantizer has folded it into the pair's own limits.
    """
    last = next(node.op_type for node in float_graph.node if OUTPUT_NAME in node.output)
    producers = {output: node for node in graph.node for output in node.output}
    dequantize = producers[OUTPUT_NAME]
    quantize = producers.get(dequantize.input[0])
    if dequantize.op_type != "DequantizeLinear" or quantize is None or quantize.op_type != "QuantizeLinear":
        return
    source = producers[quantize.input[0]]
    if source.op_type != last or sum(quantize.input[0] in node.input for node in graph.node) > 1:
        return
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    source.output[list(source.output).index(quantize.input[0])] = OUTPUT_NAME


def finish_graph(quantized: Any, source: Any) -> None:
    """Drop what nothing reads, take the source's contract and IR version, and check the model, in place."""
    used = {name for node in quantized.graph.node for name in node.input}
    kept = [tensor for tensor in quantized.graph.initializer if tensor.name in used]
    del quantized.graph.initializer[:]
    quantized.graph.initializer.extend(kept)
    del quantized.graph.value_info[:]  # inferred for the FP32 graph
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(source.metadata_props)
    quantized.ir_version = source.ir_version
    quantized.producer_name = "edgekiln"
    onnx.checker.check_model(quantized, full_check=True)
