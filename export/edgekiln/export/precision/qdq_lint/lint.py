"""The check itself: every rule on one graph. Knows what no rule looks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import onnx

from edgekiln.export.precision.qdq_lint.finding import Finding
from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.rules import RULES

__all__ = ["lint_qdq"]

_NONE: Mapping[str, float] = MappingProxyType({})


def lint_qdq(
    graph: onnx.GraphProto, *, kept_float: Collection[str] = (), outliers: Mapping[str, float] = _NONE
) -> tuple[Finding, ...]:
    """Check a graph with explicit Q/DQ against TensorRT's rules of placement.

    Args:
        graph: any ONNX graph, FP32 or FP16, checked or not; a graph without Q/DQ has no finding.
        kept_float: names of the nodes that are in float on purpose: a residual Add of them wants no Q/DQ.
        outliers: names of the residual Adds that join a tensor with outliers, with the ratio of its largest |value| to
            its high percentile on calibration pictures; a graph alone does not show it.

    Returns:
        Findings, grouped by rule and in the order of the graph's nodes; empty where nothing is wrong.
    """
    index = GraphIndex(graph, kept_float, outliers)
    return tuple(finding for rule in RULES for finding in rule.check(index))
