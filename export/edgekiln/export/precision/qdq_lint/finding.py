"""What the lint gives. Knows no graph and no rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Severity"]

Severity = Literal["error", "warning"]
"""``error`` where INT8 or the whole build is lost, ``warning`` where accuracy or a little speed is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a graph that TensorRT would refuse, or run slower than INT8 should.

    Attributes:
        rule: stable kebab-case name of the rule.
        nodes: names of the ONNX nodes concerned; the first output's name where a node has none.
        message: what was found, what it costs, what to do.
        severity: ``error`` where INT8 or the whole build is lost, ``warning`` where accuracy or a little speed is.
    """

    rule: str
    nodes: tuple[str, ...]
    message: str
    severity: Severity
