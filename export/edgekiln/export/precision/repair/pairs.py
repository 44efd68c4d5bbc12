"""Mends what ModelOpt leaves in a graph with explicit Q/DQ and TensorRT does not take: scales and missing pairs.

Each step mends what one rule of the lint finds. What cannot be mended stays, and the lint tells it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekiln.export.precision.blocks import check_kept
from edgekiln.export.precision.qdq_lint import SMALLEST_FP16_SCALE
from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import input_name, label, output_name
from edgekiln.export.precision.qdq_lint.operators import COMMUTING, PLAIN, PRODUCTS, QDQ, QUANTIZE
from edgekiln.export.precision.qdq_lint.rules.residual_adds import unquantized_skips

__all__ = ["hold_kept_products", "quantize_skips", "raise_small_scales", "unify_concat_scales"]


def hold_kept_products(graph: Any, source: Any, kept_float: Collection[str]) -> None:
    """Let products of two activations that stay in float read values that no other node's pair has rounded, in place.

    A quantizer puts its pairs behind a convolution, whoever reads them: where queries and keys come from convolutions,
    the product of attention would take 8-bit values, and libraries would compute it in INT8 after all.

    Args:
        graph: with explicit Q/DQ; ``source`` is the FP32 graph that it was made from.
        kept_float: names of the products that are in float on purpose.

    Raises:
        PrecisionError: one of them is no product, or is quantized all the same.
    """
    _free_products(graph, kept_float)
    check_kept(graph, source, kept_float)


def _free_products(graph: Any, kept_float: Collection[str]) -> None:
    index = GraphIndex(graph)
    bypassed: list[Any] = []
    for product in [node for node in graph.node if node.op_type in PRODUCTS and node.name in kept_float]:
        if any(index.is_constant(name) for name in product.input[:2]):
            continue
        for side in (0, 1):
            bypassed += _bypass_pair(graph, index, product, side)
    answers = {value.name for value in graph.output}
    for node in bypassed:  # a reader stands in the list before what it reads
        unread = not any(node.output[0] in reader.input for reader in graph.node)
        if unread and node.output[0] not in answers and node in graph.node:
            graph.node.remove(node)
    if bypassed:
        read = {name for node in graph.node for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
            graph.initializer.remove(tensor)


def _bypass_pair(graph: Any, index: GraphIndex, product: Any, side: int) -> list[Any]:
    """Feed one operand from before its pair, through copies of what stands between; returns what it read before."""
    root, between = index.walk_back(product.input[side], COMMUTING)
    pair = index.with_quantize(dequantize) if (dequantize := index.dequantizer(root)) is not None else []
    if len(pair) < 2:
        return []
    tensor = input_name(pair[0], 0)
    for number, node in enumerate(reversed(between)):
        copied = type(node)()
        copied.CopyFrom(node)
        copied.name = f"{product.name}.operand_{side}.{number}"
        copied.input[0], copied.output[0] = tensor, f"{copied.name}.output"
        graph.node.insert(list(graph.node).index(product), copied)
        tensor = copied.output[0]
    product.input[side] = tensor
    return [*between, *reversed(pair)]


def raise_small_scales(graph: Any) -> tuple[int, tuple[str, ...]]:
    """Give dead and nearly dead channels and activations the smallest scale that is safe, in place.

    In FP16 that is 2**-20, below which hardly a digit is left. No value of such a channel or activation exceeds
    127 * 2**-20 = 0.0001; raising the scale moves it by half of 2**-20 at most. In FP32 it is the smallest normal
    number. Scales that are negative or no number are left to the lint.

    Returns:
        Number of weight channels, and names of the activations, whose scale was raised.
    """
    index = GraphIndex(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    channels, activations = 0, []
    for pair in index.pairs():
        # Q and DQ have a scale tensor each, or share one: both are raised, and the pair is counted once.
        raised = max(_raise(tensors.get(input_name(node, 1))) for node in pair)
        root = index.walk_back(input_name(pair[0], 0), PLAIN)[0]
        if root in index.constants:
            channels += raised
        elif raised:
            activations.append(root)
    return channels, tuple(activations)


def _raise(tensor: Any) -> int:
    """How many scales of a tensor were raised."""
    if tensor is None:
        return 0
    values = numpy_helper.to_array(tensor)
    if values.dtype not in {np.dtype(np.float16), np.dtype(np.float32)}:
        return 0
    smallest = SMALLEST_FP16_SCALE if values.dtype == np.float16 else np.finfo(np.float32).tiny
    tiny = (values >= 0) & (values < smallest)
    if tiny.any():
        _replace(tensor, np.where(tiny, values.dtype.type(smallest), values))
    return int(tiny.sum())


def _replace(tensor: Any, values: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))


def unify_concat_scales(graph: Any) -> None:
    """Give all quantized inputs of a Concat the largest scale among them, in place.

    Once more for each Concat that reads another: a scale may rise again.
    """
    concats = [node for node in graph.node if node.op_type == "Concat"]
    for _ in concats:
        index = GraphIndex(graph)
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        changed = [_unify(index, tensors, concat) for concat in concats]
        if not any(changed):
            return


def _unify(index: GraphIndex, tensors: Mapping[str, Any], concat: Any) -> bool:
    pairs = [pair for name in concat.input if (pair := index.dequantizer(name)) is not None]
    names = {input_name(node, 1) for pair in pairs for node in index.with_quantize(pair)}
    scales = {name: numpy_helper.to_array(tensors[name]) for name in names if name in tensors}
    if len(scales) < len(names) or any(scale.size != 1 for scale in scales.values()):
        return False
    largest = max((float(scale) for scale in scales.values()), default=0.0)
    lower = [name for name, scale in scales.items() if float(scale) < largest]
    for name in lower:
        _replace(tensors[name], np.full_like(scales[name], largest))
    return bool(lower)


def quantize_skips(
    graph: Any, peaks: Mapping[str, float], dtype: type[np.floating[Any]], kept_float: Collection[str]
) -> None:
    """Put a pair on the identity branch of residual Adds that lack it, in place.

    Args:
        graph: with explicit Q/DQ.
        peaks: largest |value| of each tensor on the calibration pictures.
        dtype: of the tensors that are not quantized, and so of the scale.
        kept_float: names of the Adds that are in float on purpose.
    """
    index = GraphIndex(graph, kept_float)
    for add, skip in list(unquantized_skips(index)):
        peak = peaks.get(index.walk_back(skip, PLAIN)[0])
        if peak is None or any(node.op_type in QDQ for node in index.walk_back(skip, PLAIN)[1]):
            continue
        name = f"{label(add)}.skip"
        scale = np.array(max(peak / 127, SMALLEST_FP16_SCALE), dtype)
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), f"{name}_zero_point"))
        parameters = [f"{name}_scale", f"{name}_zero_point"]
        quantize = helper.make_node(QUANTIZE, [skip, *parameters], [f"{name}_quantized"], f"{name}_q")
        dequantize = helper.make_node(
            "DequantizeLinear", [output_name(quantize), *parameters], [f"{name}_dequantized"], f"{name}_dq"
        )
        position = next(i for i, node in enumerate(graph.node) if output_name(node) == output_name(add))
        graph.node.insert(position, quantize)
        graph.node.insert(position + 1, dequantize)
        target = graph.node[position + 2]
        target.input[list(target.input).index(skip)] = output_name(dequantize)
