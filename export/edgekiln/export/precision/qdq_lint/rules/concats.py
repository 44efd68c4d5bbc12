"""A Concat costs nothing in int8 where all its inputs are written in place, with one scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, label
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["ConcatMixed", "ConcatScalesDiffer"]


class ConcatScalesDiffer(Rule):
    """Compares the scales of a Concat's quantized inputs."""

    name = "concat-scales-differ"
    severity = "error"
    meaning = "inputs of a Concat have differing scales"
    reason = (
        "Producers write int8 straight into their part of the result only where all parts have its scale."
    )
    remedy = "give them all the largest scale"
    example = "Concat(DQ(Q(a)), DQ(Q(b))), scales 0.1 and 0.2"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for concat, sources in _concats(graph):
            pairs = [node for node in sources if node is not None]
            scales = [scale for scale in map(graph.scale, pairs) if scale is not None]
            if any(not _same_scale(scales[0], scale) for scale in scales[1:]):
                yield (
                    [concat, *pairs],
                    f"Inputs of {label(concat)} have differing scales, so each is requantized instead of written in "
                    "place; give them all the largest scale.",
                )


class ConcatMixed(Rule):
    """Counts the quantized inputs of a Concat."""

    name = "concat-mixed"
    severity = "warning"
    meaning = "some inputs of a Concat are quantized, some not"
    reason = (
        "A Concat has one type: with one input in float all of it is, and the others are converted for it."
    )
    remedy = "all with one scale, or none"
    example = "Concat(DQ(Q(a)), b)"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for concat, sources in _concats(graph):
            pairs = [node for node in sources if node is not None]
            if 0 < len(pairs) < len(sources):
                yield (
                    [concat, *pairs],
                    f"{len(pairs)} of {len(sources)} inputs of {label(concat)} are quantized, so it runs in float "
                    "behind reformats; quantize all of them with one scale, or none.",
                )


def _concats(graph: GraphIndex) -> Iterator[tuple[Node, list[Node]]]:
    """Each Concat, with the DQ of each input that is no constant, or None."""
    for concat in graph.nodes:
        if concat.op_type == "Concat":
            data = [name for name in concat.input if name and not graph.is_constant(name)]
            yield concat, [graph.dequantizer(name) for name in data]


def _same_scale(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Equal in the coarser of their types: a scale kept in FP32 and its FP16 rounding are the same scale."""
    coarser = min((one.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    with np.errstate(all="ignore"):
        return np.array_equal(one.astype(coarser).ravel(), other.astype(coarser).ravel())
