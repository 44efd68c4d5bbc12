"""The scales of a product's weight: one for each output channel, along the axis of the output channels."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, attribute, input_name, label, only_qdq
from edgekiln.export.precision.qdq_lint.operators import MOVING, PRODUCTS, QDQ, RESHAPING
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["PerTensorWeight", "WeightAxis"]


class PerTensorWeight(Rule):
    """Counts the scales of every product's weight."""

    name = "per-tensor-weight"
    severity = "warning"
    meaning = "a weight has one scale for all output channels"
    reason = "A scale for each output channel costs no time, and one for all lets the largest channel coarsen the rest."
    remedy = "quantize it per output channel"
    example = "Conv(DQ(Q(x)), DQ(w)) with one scale for w"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for product in graph.nodes:
            weight = _weight_input(graph, product)
            dequantize = None if weight is None else graph.dequantizer(weight, MOVING)
            if weight is None or dequantize is None or graph.count_scales(dequantize) != 1:
                continue
            if _output_channels(graph, product, weight) != 1:
                yield (
                    [product, dequantize],
                    f"The weight of {label(product)} has one scale for all output channels, which costs accuracy "
                    "and gains no speed; quantize it per output channel.",
                )


class WeightAxis(Rule):
    """Compares the axis of a weight's scales with that of the product's output channels."""

    name = "weight-axis"
    severity = "error"
    meaning = "a weight's scales do not run along its output channels"
    reason = "A kernel applies the scale to the finished sum, which exists once for each output channel."
    remedy = "quantize along the output channels"
    example = "Conv(DQ(Q(x)), DQ(w)) with axis = 1 at w"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for product in graph.nodes:
            weight = _weight_input(graph, product)
            path = [] if weight is None else _channel_path(graph, product, weight)
            faulty = [
                node
                for node, axis, rank in path
                if node is not None and not _is_along(graph, node, axis, rank)
            ]
            if faulty:
                yield (
                    [product, *only_qdq(faulty)],
                    f"The scales of the weight of {label(product)} do not run along its output channels, so no "
                    "INT8 kernel can apply them after the sum; quantize per output channel.",
                )


def _weight_input(graph: GraphIndex, product: Node) -> str | None:
    """The constant operand of a product with a weight: the second; of a MatMul also the first."""
    if product.op_type not in PRODUCTS:
        return None
    sides = (1, 0) if product.op_type == "MatMul" else (1,)
    return next(
        (name for name in (input_name(product, side) for side in sides) if graph.is_constant(name)), None
    )


def _channel_path(graph: GraphIndex, product: Node, weight: str) -> list[tuple[Node, int, int]]:
    """Every Q and DQ from a product up to its constant weight, and None for the constant itself.

    Each with the axis of the output channels there and the tensor's rank. It ends early where a Reshape stands
    between, since where the channels went cannot be told without all shapes.
    """
    root, passed = graph.walk_back(weight, MOVING | QDQ)
    rank = len(graph.constants[root].dims) if graph.constants[root] is not None else 0
    axis = _output_axis(product, weight, rank)
    path: list[tuple[Node, int, int]] = []
    for node in [*passed, None]:
        if not 0 <= axis < rank or (node is not None and node.op_type in RESHAPING):
            break
        if node is None or node.op_type in QDQ:
            path.append((node, axis, rank))
        elif node.op_type == "Transpose":
            order = list(attribute(node, "perm", range(rank)[::-1]))
            axis = order[axis] if len(order) == rank else -1
    return path


def _output_axis(product: Node, weight: str, rank: int) -> int:
    """Axis of a weight that is the product's output channel, as its operand stands; negative where none is."""
    if rank < 2:
        return -1
    if product.op_type == "Conv":
        return 0
    if product.op_type == "Gemm":
        return 0 if attribute(product, "transB", 0) else 1
    return rank - 1 if weight == input_name(product, 1) else rank - 2


def _is_along(graph: GraphIndex, node: Node, axis: int, rank: int) -> bool:
    """Whether the scales of a Q or DQ run along an axis; one scale runs along any, blocks are not judged."""
    scale = graph.scale(node)
    if scale is None or scale.size < 2 or scale.ndim != 1:
        return True
    found = int(attribute(node, "axis", 1))
    return axis == (found + rank if found < 0 else found)


def _output_channels(graph: GraphIndex, product: Node, weight: str) -> int | None:
    """Length of a weight's output channel axis; None where unknown."""
    root = graph.walk_back(weight, MOVING | QDQ)[0]
    lengths = [
        graph.constants[root].dims[axis]
        for node, axis, _ in _channel_path(graph, product, weight)
        if node is None
    ]
    return int(lengths[0]) if lengths else None
