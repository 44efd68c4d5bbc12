"""The sum of a residual block fuses into a convolution that feeds it in float, with the other input in int8."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, label, only_qdq, output_name
from edgekiln.export.precision.qdq_lint.operators import NORMALIZATION, PLAIN, QDQ
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["BothAddInputsQuantized", "OutlierResidual", "UnquantizedSkip", "unquantized_skips"]


class BothAddInputsQuantized(Rule):
    """Looks for sums of two quantized tensors, one of them a convolution's."""

    name = "both-add-inputs-quantized"
    severity = "warning"
    meaning = "both branches of a residual Add are quantized"
    reason = (
        "The sum fuses into a convolution that hands it its result in float, before any rounding to int8."
    )
    remedy = "take the pair off the convolution's branch"
    example = "Add(DQ(Q(Conv(x))), DQ(Q(x)))"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for add in _fusible_adds(graph):
            pairs = [graph.dequantizer(name) for name in add.input]
            if all(pair is not None for pair in pairs):
                yield (
                    [add, *pairs],
                    f"Both inputs of {label(add)} are quantized, so its convolution writes int8 before the sum and "
                    "the two do not fuse; take the pair off the convolution's branch.",
                )


class UnquantizedSkip(Rule):
    """Looks for sums of a quantized convolution and something in float."""

    name = "unquantized-skip"
    severity = "error"
    meaning = "the identity branch of a residual Add has no pair"
    reason = "The sum fuses into an INT8 convolution only where its other operand comes in int8."
    remedy = "quantize that branch"
    example = "Add(Conv(DQ(Q(x))), x)"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for add, skip in unquantized_skips(graph):
            pairs = [pair for name in add.input if (pair := graph.dequantizer(name)) is not None]
            yield (
                [add, *pairs],
                f"The identity branch {skip} of {label(add)} has no Q/DQ, so the sum does not fuse into the "
                "INT8 convolution; quantize that branch, and leave the convolution's own branch in float.",
            )


class OutlierResidual(Rule):
    """Looks for pairs at sums of which calibration showed that they join a tensor with outliers."""

    name = "outlier-residual"
    severity = "warning"
    meaning = "a residual Add with outliers is quantized"
    reason = "Its step is made for the largest value, and all usual ones round to a few steps or to zero."
    remedy = "keep that Add in float"
    example = "Add(Conv(DQ(Q(x))), DQ(Q(x))), x with a value of 1,000 among values of 1"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for add in graph.nodes:
            pairs = [pair for name in add.input if (pair := graph.dequantizer(name)) is not None]
            if add.op_type == "Add" and label(add) in graph.outliers and pairs:
                yield (
                    [add, *pairs],
                    f"{label(add)} is quantized, and its largest value is {graph.outliers[label(add)]:.0f} times as "
                    "large as nine in ten of the others: they share a few steps; keep that Add in float.",
                )


def unquantized_skips(graph: GraphIndex) -> Iterator[tuple[Node, str]]:
    """Each Add that a quantized convolution could take in, and its identity branch, which has no pair."""
    for add in _fusible_adds(graph):
        if label(add) in graph.kept_float:
            continue
        pairs = [graph.dequantizer(name) for name in add.input]
        fusible = [_ends_in_quantized_conv(graph, name) for name in add.input]
        fuses = any(fusible[i] and pairs[i] is None and pairs[1 - i] is not None for i in (0, 1))
        if not fuses and any(pair is None for pair in pairs):
            yield add, add.input[fusible.index(True) - 1]  # of two: 0 gives the last, 1 gives the first


def _fusible_adds(graph: GraphIndex) -> Iterator[Node]:
    """Sums of two tensors, at least one of them a quantized convolution's."""
    for add in graph.nodes:
        if add.op_type != "Add" or len(add.input) != 2 or any(graph.is_constant(name) for name in add.input):
            continue
        if any(_ends_in_quantized_conv(graph, name) for name in add.input):
            yield add


def _ends_in_quantized_conv(graph: GraphIndex, name: str) -> bool:
    """Whether a branch is a quantized Conv, with at most a BatchNormalization behind it.

    An activation ends the chain: TensorRT adds before it activates, never the other way round. So does a quantized
    tensor that others read too: it is the input of a block, whichever node made it.
    """
    root, passed = graph.walk_back(name, PLAIN | QDQ | {NORMALIZATION})
    conv = graph.producer(root)
    if conv is None or conv.op_type != "Conv" or not graph.is_quantized(conv):
        return False
    shared = any(len(graph.readers(output_name(node))) > 1 for node in [conv, *passed])
    return not (shared and only_qdq(passed))
