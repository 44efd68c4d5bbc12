"""A scale is of the type of the float tensor that it scales."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, attribute, input_name, join_labels
from edgekiln.export.precision.qdq_lint.operators import QUANTIZE
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["ScaleType"]


class ScaleType(Rule):
    """Compares the type of every scale with that of the tensor before its Q, or behind its DQ.

    Source: ``addQuantize`` and ``addDequantize`` in TensorRT 10.3's ``NvInfer.h``, the oldest release that must read
    the graph. TensorRT-RTX 1.7.1 builds such graphs too. ONNX lets the types differ from opset 23 on.
    """

    name = "scale-type"
    severity = "error"
    meaning = "a scale's type is not that of the tensor that is quantized, or comes out dequantized"
    reason = "TensorRT 10.3 wants one type for both in a strongly typed network, where it converts nothing by itself."
    remedy = "give the scale that tensor's type"
    example = "Q(x in FP16) with scale in FP32"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for pair in graph.pairs():
            faulty = [node for node in pair if not _is_of_one_type(graph, node)]
            if faulty:
                yield (
                    faulty,
                    f"{join_labels(faulty)} have a scale of another type than the float tensor that they scale "
                    f"({_tell_types(graph, faulty[0])}), which TensorRT 10.3 does not take in a strongly typed "
                    "network; give the scale the tensor's type.",
                )


def _types(graph: GraphIndex, node: Node) -> tuple[int, int]:
    """Of the scale and of the float tensor, as ONNX numbers them; 0 where unknown."""
    scale = graph.element_type(input_name(node, 1))
    if node.op_type == QUANTIZE:
        return scale, graph.element_type(input_name(node, 0))
    return scale, int(attribute(node, "output_dtype", 0)) or scale


def _is_of_one_type(graph: GraphIndex, node: Node) -> bool:
    scale, scaled = _types(graph, node)
    return not scale or not scaled or scale == scaled


def _tell_types(graph: GraphIndex, node: Node) -> str:
    names = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
    scale, scaled = (names.get(kind, f"type {kind}") for kind in _types(graph, node))
    return f"{scale} for {scaled}"
