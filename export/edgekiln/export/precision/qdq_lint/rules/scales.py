"""What a scale may be, and how many of them an activation may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import input_name, join_labels
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["SMALLEST_FP16_SCALE", "NonpositiveScale", "PerChannelActivation"]

SMALLEST_FP16_SCALE = 2.0**-20
"""Below it an FP16 scale has fewer than five bits left (FP16's subnormals are multiples of 2**-24)."""


class NonpositiveScale(Rule):
    """Looks at the values of every pair's scales, in the type that they are kept in."""

    name = "nonpositive-scale"
    severity = "error"
    meaning = "a scale is 0, negative, not finite, or has no digit left in FP16"
    reason = "Values are divided by the scale, and TensorRT refuses one that is not positive."
    remedy = "calibrate again, or keep that tensor in float"
    example = "Q(x) with scale 0"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for pair in graph.pairs():
            faulty = [node for node in pair if not _is_usable(graph.scale(node))]
            if faulty:
                yield (
                    faulty,
                    f"{join_labels(faulty)} have a scale that is not positive and finite, or so small that FP16 has "
                    "hardly a digit of it; calibrate again, or keep that tensor in float.",
                )


def _is_usable(scale: NDArray[Any] | None) -> bool:
    if scale is None:
        return True
    smallest = SMALLEST_FP16_SCALE if scale.dtype == np.float16 else 0
    values = scale.astype(np.float64)
    return bool(np.all(np.isfinite(values) & (values > 0) & (values >= smallest)))


class PerChannelActivation(Rule):
    """Counts the scales of every pair that is not a constant's."""

    name = "per-channel-activation"
    severity = "error"
    meaning = "an activation has more than one scale"
    reason = (
        "A kernel sums over the input channels in int32, so their scale must be one factor of the whole sum."
    )
    remedy = "give it one"
    example = "Conv(DQ(Q(x)), w) with one scale per channel of x"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for pair in graph.pairs():
            if graph.is_constant(input_name(pair[0], 0)):
                continue
            faulty = [node for node in pair if graph.count_scales(node) > 1]
            if faulty:
                yield (
                    faulty,
                    f"{join_labels(faulty)} have one scale per channel of an activation, which no INT8 "
                    "kernel of TensorRT takes; give the tensor one scale.",
                )
