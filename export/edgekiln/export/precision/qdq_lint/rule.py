"""What every rule has. Knows none of them.

A new rule is a class in ``rules/``, an entry of ``RULES`` there, a row of the table in ``docs/tensorrt.md`` and a row
of the test's table, with a graph that breaks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from edgekiln.export.precision.qdq_lint.finding import Finding, Severity
from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import Node, labels

__all__ = ["Fault", "Rule"]

Fault = tuple[Sequence[Node], str]
"""A place that breaks a rule: the nodes concerned; what was found, what it costs and what to do."""


class Rule(ABC):
    """One rule of placement: it looks for faults, and they become findings under its own name and severity.

    Attributes:
        name: stable, in kebab case.
        severity: of every finding.
        meaning: what is found.
        reason: why TensorRT needs it, a sentence.
        remedy: what to do.
        example: a graph that breaks it, in the direction of the data; Q and DQ stand for a pair's nodes.
    """

    name: ClassVar[str]
    severity: ClassVar[Severity]
    meaning: ClassVar[str]
    reason: ClassVar[str]
    remedy: ClassVar[str]
    example: ClassVar[str]

    @abstractmethod
    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        """All faults, in the order of the graph's nodes. Any node, name or value of it may be missing."""

    def check(self, graph: GraphIndex) -> Iterator[Finding]:
        """All findings, in the order of the graph's nodes."""
        for nodes, message in self.find(graph):
            yield Finding(self.name, labels(nodes), message, self.severity)
