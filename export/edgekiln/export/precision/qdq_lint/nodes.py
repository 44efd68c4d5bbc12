"""One node of a graph that may be odd: its inputs and attributes, and what a message calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnx import helper

from edgekiln.export.precision.qdq_lint.operators import QDQ

__all__ = ["Node", "attribute", "input_name", "join_labels", "label", "labels", "only_qdq", "output_name"]

Node = Any
"""An ``onnx.NodeProto``, which ships no types."""


def label(node: Node) -> str:
    """The node's name; its first output's where it has none."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def labels(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Each label once."""
    return tuple(dict.fromkeys(label(node) for node in nodes))


def join_labels(nodes: Iterable[Node]) -> str:
    """Labels as a sentence has them."""
    return " and ".join(labels(nodes))


def input_name(node: Node, position: int) -> str:
    """Name of an input; empty where the node has none there."""
    return str(node.input[position]) if len(node.input) > position else ""


def output_name(node: Node) -> str:
    """Name of the first output; empty where the node has none."""
    return str(node.output[0]) if node.output else ""


def attribute(node: Node, name: str, default: Any) -> Any:
    """An attribute's value."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def only_qdq(nodes: Iterable[Node]) -> list[Node]:
    """The Q and DQ nodes of a walk back, in the direction of the data."""
    return [node for node in nodes if node.op_type in QDQ][::-1]
