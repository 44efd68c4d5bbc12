"""TensorRT's int8 is symmetric: zero is zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, attribute, input_name, join_labels
from edgekiln.export.precision.qdq_lint.operators import QUANTIZE
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["NonzeroZeroPoint"]


class NonzeroZeroPoint(Rule):
    """Looks at the type and value of every pair's zero point."""

    name = "nonzero-zero-point"
    severity = "error"
    meaning = "uint8, or a zero point that is not 0"
    reason = "INT8 is symmetric in TensorRT: it takes no uint8 and no zero point but 0."
    remedy = "quantize again, symmetric int8"
    example = "Q(x) with zero point 127 in uint8"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for pair in graph.pairs():
            faulty = [node for node in pair if not _is_symmetric_int8(graph, node)]
            if faulty:
                yield (
                    faulty,
                    f"{join_labels(faulty)} use uint8 or a zero point other than 0, and TensorRT takes "
                    "symmetric int8 only; quantize again with symmetric int8.",
                )


def _is_symmetric_int8(graph: GraphIndex, node: Node) -> bool:
    zero_point = graph.value(input_name(node, 2))
    if zero_point is not None:
        return bool(zero_point.dtype.kind != "u" and not np.any(zero_point))
    if input_name(node, 2):
        return True  # it is no constant: nothing to judge
    if node.op_type == QUANTIZE:  # ONNX's default is uint8; TensorRT would read int8, other engines not
        return bool(attribute(node, "output_dtype", 0) not in {0, onnx.TensorProto.UINT8})
    return bool(graph.element_type(input_name(node, 0)) != onnx.TensorProto.UINT8)
