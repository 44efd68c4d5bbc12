"""Where a graph begins and ends: pixels are normalized before the first pair, and answers leave in float."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, input_name, join_labels, label, labels, only_qdq
from edgekiln.export.precision.qdq_lint.operators import ANSWER, ARITHMETIC, LAYOUT, QDQ
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["QuantizedEntry", "QuantizedOutput"]


class QuantizedEntry(Rule):
    """Looks for Q/DQ before the arithmetic that normalizes the graph's input."""

    name = "quantized-entry"
    severity = "error"
    meaning = "pixels are quantized before they are normalized"
    reason = (
        "Arithmetic with constants has no INT8 kernel: the pair only rounds, and a second one must follow it."
    )
    remedy = "put the first pair right before the first product"
    example = "image -> Cast -> Q -> DQ -> Mul -> Add -> Conv"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        reported: set[tuple[str, ...]] = set()
        for node in graph.nodes:
            data = _data_input(graph, node)
            if node.op_type not in ARITHMETIC or data is None or not _comes_from_input(graph, data):
                continue
            walks = [graph.walk_back(input_name(node, side), LAYOUT | QDQ)[1] for side in (0, 1)]
            between = [pair for walk in walks for pair in only_qdq(walk)]
            if between and labels(between) not in reported:
                reported.add(labels(between))
                yield (
                    [*between, node],
                    f"{join_labels(between)} quantize pixels before {label(node)} has normalized them, which costs "
                    "accuracy and gains no INT8 kernel; the first pair belongs right before the first product.",
                )


def _data_input(graph: GraphIndex, node: Node) -> str | None:
    """The one input that is no constant, of a node with two."""
    data = [name for name in node.input if not graph.is_constant(name)]
    return str(data[0]) if len(node.input) == 2 and len(data) == 1 else None


def _comes_from_input(graph: GraphIndex, name: str) -> bool:
    """Whether only Casts, layout, arithmetic with constants and Q/DQ lie between the graph's input and a tensor."""
    seen: set[str] = set()
    while name and name not in seen:
        seen.add(name)
        name = graph.walk_back(name, LAYOUT | QDQ)[0]
        if name in graph.inputs:
            return True
        node = graph.producer(name)
        if node is None or node.op_type not in ARITHMETIC:
            return False
        name = _data_input(graph, node) or ""
    return False


class QuantizedOutput(Rule):
    """Looks for a pair behind the last product."""

    name = "quantized-output"
    severity = "warning"
    meaning = "the logits are quantized: 256 steps make ties"
    reason = "A pair is for the INT8 kernel that reads it, and nothing reads the logits."
    remedy = "drop that pair"
    example = "Gemm -> Q -> DQ -> logits"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for name in graph.outputs:
            dequantize = graph.dequantizer(name, ANSWER)
            if dequantize is not None:
                yield (
                    graph.with_quantize(dequantize),
                    f"The output {name} is quantized: 256 steps make ties of near answers, and nothing is "
                    "computed from them in INT8; drop the pair.",
                )
