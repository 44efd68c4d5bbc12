"""Q and DQ come in pairs."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import label, labels, output_name
from edgekiln.export.precision.qdq_lint.operators import DEQUANTIZE, QUANTIZE
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["DanglingQuantize"]


class DanglingQuantize(Rule):
    """Looks at who reads the int8 tensor of every QuantizeLinear."""

    name = "dangling-quantize"
    severity = "error"
    meaning = "a QuantizeLinear has no DequantizeLinear behind it"
    reason = "A pair tells the scale that its neighbours run in, and TensorRT takes Q and DQ in pairs only."
    remedy = "put one right behind it"
    example = "Q -> MaxPool"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for node in graph.nodes:
            if node.op_type != QUANTIZE:
                continue
            readers = graph.readers(output_name(node))
            others = [reader for reader in readers if reader.op_type != DEQUANTIZE]
            if others or not readers or output_name(node) in graph.outputs:
                users = ", ".join(labels(others)) or (
                    "the graph's output" if readers else "no DequantizeLinear"
                )
                yield (
                    [node, *others],
                    f"The int8 tensor of {label(node)} goes to {users}; TensorRT takes Q and DQ in pairs only, so put "
                    "a DequantizeLinear right behind it.",
                )
