"""The check itself: every rule on one graph. Knows what no rule looks for."""

from __future__ import annotations

import onnx

from edgekiln.export.precision.qdq_lint.finding import Finding
from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.rules import RULES

__all__ = ["lint_qdq"]


def lint_qdq(graph: onnx.GraphProto) -> tuple[Finding, ...]:
    """Check a graph with explicit Q/DQ against TensorRT's rules of placement.

    Args:
        graph: any ONNX graph, FP32 or FP16, checked or not; a graph without Q/DQ has no finding.

    Returns:
        Findings, grouped by rule and in the order of the graph's nodes; empty where nothing is wrong.
    """
    index = GraphIndex(graph)
    return tuple(finding for rule in RULES for finding in rule.check(index))
