"""Convolution, BatchNormalization and activation become one kernel: no pair may stand between them."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, input_name, label, labels, only_qdq
from edgekiln.export.precision.qdq_lint.operators import ACTIVATIONS, GATES, NORMALIZATION, PLAIN, QDQ
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["QdqInsideConvChain"]


class QdqInsideConvChain(Rule):
    """Looks from each BatchNormalization and activation back to a Conv, with Q/DQ on the way."""

    name = "qdq-inside-conv-chain"
    severity = "error"
    meaning = "a pair between Conv and its BatchNormalization or activation"
    reason = "TensorRT fuses the chain into one INT8 kernel only where nothing rounds inside it."
    remedy = "move the pair behind the activation"
    example = "Conv -> Q -> DQ -> Relu"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        broken: dict[tuple[str, ...], list[Node]] = {}
        for node in graph.nodes:
            for name in _chain_inputs(graph, node):
                root, passed = graph.walk_back(name, PLAIN | QDQ)
                between, conv = only_qdq(passed), _conv_of_chain(graph, root)
                if between and conv is not None:
                    broken.setdefault(labels(between), [conv, *between]).append(node)
        for between_labels, nodes in broken.items():
            yield (
                nodes,
                f"{' and '.join(between_labels)} stand between {label(nodes[0])} and its {nodes[-1].op_type}, which "
                "then cannot fuse into one INT8 kernel; move the pair behind the activation.",
            )


def _chain_inputs(graph: GraphIndex, node: Node) -> list[str]:
    """The inputs through which a node would fuse with a convolution before it."""
    if node.op_type == NORMALIZATION or node.op_type in ACTIVATIONS:
        return [input_name(node, 0)]
    if node.op_type == "Mul" and _is_gated(graph, node):
        return [input_name(node, 0), input_name(node, 1)]
    return []


def _is_gated(graph: GraphIndex, multiply: Node) -> bool:
    """Whether a Mul is x * sigmoid(x), with or without Q/DQ in it."""
    roots = [graph.walk_back(input_name(multiply, side), PLAIN | QDQ)[0] for side in (0, 1)]
    for gated, plain in (roots, roots[::-1]):
        gate = graph.producer(gated)
        if gate is not None and gate.op_type in GATES:
            return graph.walk_back(input_name(gate, 0), PLAIN | QDQ)[0] == plain
    return False


def _conv_of_chain(graph: GraphIndex, name: str) -> Node:
    """The Conv behind a tensor with at most a BatchNormalization and a gate in between, or None."""
    conv = graph.producer(graph.walk_back(name, PLAIN | QDQ | GATES | {NORMALIZATION})[0])
    return conv if conv is not None and conv.op_type == "Conv" else None
