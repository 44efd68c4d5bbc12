"""A graph as the rules ask of it: who makes a tensor, who reads it, what its constant value is, which pair it has.

The graph may be odd: any name may be missing, any input may lead nowhere or in a circle. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from edgekiln.export.precision.qdq_lint.constants import cast_array, find_constants, read_array
from edgekiln.export.precision.qdq_lint.nodes import Node, attribute, input_name, label, output_name
from edgekiln.export.precision.qdq_lint.operators import (
    COMMUTING,
    DEQUANTIZE,
    MOVING,
    PLAIN,
    QDQ,
    QUANTIZE,
    TYPE_KEEPING,
)

__all__ = ["GraphIndex"]


class GraphIndex:
    """Tensors of a graph by name.

    Attributes:
        nodes: all, in the graph's order.
        constants: TensorProtos by name; None for constants of a kind that is not read.
        inputs: the graph's inputs by name, without constants.
        outputs: names of the graph's outputs.
        kept_float: names of the nodes that are in float on purpose.
        outliers: names of the residual Adds that join a tensor with outliers, and how far those reach.
    """

    def __init__(
        self, graph: Any, kept_float: Collection[str] = (), outliers: Mapping[str, float] | None = None
    ) -> None:
        self.kept_float, self.outliers = frozenset(kept_float), dict(outliers or {})
        self.nodes = list(graph.node)
        self.constants = find_constants(graph)
        self.inputs = {value.name: value for value in graph.input if value.name not in self.constants}
        self.outputs = [value.name for value in graph.output]
        self._producers: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            self._producers.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(filter(None, node.input)):
                self._readers.setdefault(name, []).append(node)

    def producer(self, name: str) -> Node:
        """The node that makes a tensor; None for constants, graph inputs and names that lead nowhere."""
        return None if name in self.constants else self._producers.get(name)

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def walk_back(self, name: str, through: frozenset[str]) -> tuple[str, list[Node]]:
        """Go up the first inputs while the operators are in ``through``: where it ends, the nodes passed."""
        passed: list[Node] = []
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            node = self.producer(name)
            if node is None or node.op_type not in through:
                break
            passed.append(node)
            name = input_name(node, 0)
        return name, passed

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, seen through its own Q/DQ, Casts and changes of layout."""
        return self.walk_back(name, MOVING | QDQ)[0] in self.constants

    def value(self, name: str) -> NDArray[Any] | None:
        """A small constant in the type that its reader sees; None where it cannot be told."""
        root, casts = self.walk_back(name, PLAIN)
        array = read_array(self.constants.get(root))
        for node in reversed(casts):
            if array is not None and node.op_type == "Cast":
                array = cast_array(array, attribute(node, "to", 0))
        return array

    def scale(self, node: Node) -> NDArray[Any] | None:
        """Scale of a Q or DQ; None where it is no constant, or empty."""
        scale = self.value(input_name(node, 1))
        return scale if scale is not None and scale.size and scale.dtype.kind not in "OSU" else None

    def count_scales(self, node: Node) -> int:
        """How many scales a Q or DQ has: 1, or one per channel; 0 where that cannot be told."""
        scale = self.scale(node)
        return 0 if scale is None else int(scale.size)

    def element_type(self, name: str) -> int:
        """Type of a tensor's elements, as ONNX numbers it; 0 where it cannot be told.

        Read from constants, graph inputs, Casts and DQs alone: the types that a graph notes beside its nodes may be
        those before a conversion.
        """
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            if name in self.constants:
                return int(getattr(self.constants[name], "data_type", 0))
            if name in self.inputs:
                return int(self.inputs[name].type.tensor_type.elem_type)
            node = self.producer(name)
            if node is None:
                return 0
            told = {"Cast": "to", DEQUANTIZE: "output_dtype"}.get(node.op_type)
            if told is not None and (kind := int(attribute(node, told, 0))):
                return kind
            if node.op_type != DEQUANTIZE and node.op_type not in TYPE_KEEPING:
                return 0
            name = input_name(
                node, 1 if node.op_type == DEQUANTIZE else 0
            )  # a DQ gives the type of its scale
        return 0

    def dequantizer(self, name: str, through: frozenset[str] = COMMUTING) -> Node:
        """The DequantizeLinear that a tensor comes from, or None."""
        node = self.producer(self.walk_back(name, through)[0])
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def with_quantize(self, dequantize: Node) -> list[Node]:
        """A DQ after its Q, where it has one; int8 constants have none."""
        node = self.producer(input_name(dequantize, 0))
        return [node, dequantize] if node is not None and node.op_type == QUANTIZE else [dequantize]

    def is_quantized(self, product: Node) -> bool:
        """Whether both operands of a product come from a DQ."""
        return all(self.dequantizer(input_name(product, side)) is not None for side in (0, 1))

    def pairs(self) -> list[list[Node]]:
        """Every Q with its DQs, every DQ of a constant alone: grouped by the int8 tensor between them."""
        groups: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.op_type in QDQ:
                stored = output_name(node) if node.op_type == QUANTIZE else input_name(node, 0)
                groups.setdefault(stored or label(node), []).append(node)
        return list(groups.values())
