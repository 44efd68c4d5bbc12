"""Will TensorRT fuse it? Reads a graph with explicit Q/DQ and names the nodes that would cost a fusion.

TensorRT does exactly what Q/DQ nodes say: one pair in a wrong place and a layer silently runs in floating point
between two reformats, or the builder refuses the network. The rules are NVIDIA's, from "Working with Quantized
Types" in the TensorRT documentation: symmetric int8, one scale per activation tensor, one per output channel of a
weight, no pair inside Conv + BatchNormalization + activation, and the identity branch of a residual Add quantized.

Only the graph is read. Whether the engine really fused is seen in the engine alone; subgraphs of If and Loop are
not looked into, and a scale that is not a constant of the graph is not judged.

``lint.py`` is the check, ``finding.py`` what it gives, ``rule.py`` what a rule is, ``rules/`` all of them.
``graph_index.py`` answers their questions about the graph, with ``constants.py``, ``nodes.py`` and ``operators.py``.
May import numpy and onnx, and nothing else of edgekiln.
"""

from edgekiln.export.precision.qdq_lint.finding import Finding
from edgekiln.export.precision.qdq_lint.lint import lint_qdq
from edgekiln.export.precision.qdq_lint.rules import RULES
from edgekiln.export.precision.qdq_lint.rules.scales import SMALLEST_FP16_SCALE

__all__ = ["RULES", "SMALLEST_FP16_SCALE", "Finding", "lint_qdq"]
