"""Did I really get INT8? Counts what onnxruntime's own optimized graph computes with, node by node."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from edgekiln.export.precision.blocks import float_neighbours
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.errors import PrecisionError

__all__ = [
    "PrecisionAudit",
    "audit_int8",
    "is_product_kind",
    "is_quantized_kind",
    "optimize_with_onnxruntime",
    "residual_adds",
]

_PRODUCTS = {"Conv": "Conv", "FusedConv": "Conv", "Gemm": "Gemm", "FusedGemm": "Gemm", "MatMul": "MatMul",
             "FusedMatMul": "MatMul", "ConvTranspose": "ConvTranspose"}  # fmt: skip
_QUANTIZED = {"QLinearConv": "Conv", "QGemm": "Gemm", "QLinearMatMul": "MatMul", "MatMulIntegerToFloat": "MatMul",
              "DynamicQuantizeMatMul": "MatMul", "ConvInteger": "Conv", "QLinearAdd": "Add"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrecisionAudit:
    """What an optimized graph computes with.

    Attributes:
        quantized: INT8 nodes by kind: Conv, Gemm, MatMul, Add (residual ones only).
        expected: the same kinds in the FP32 source.
        floating: names of nodes of these kinds that still compute in floating point.
        minimum: smallest share that was accepted.
        kept_float: products, and residual Adds between them, that were left in float on purpose; they count as
            floating, and ``minimum`` is lowered by their share.
    """

    quantized: dict[str, int]
    expected: dict[str, int]
    floating: tuple[str, ...]
    minimum: float = 0.0
    kept_float: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Quantized nodes over all nodes of these kinds, 0 to 1."""
        done = sum(min(self.quantized.get(kind, 0), count) for kind, count in self.expected.items())
        total = max(1, sum(self.expected.values()))
        # A surplus of quantized nodes, bias additions for instance, must not hide one that stayed in float.
        return max(0.0, min(done / total, 1 - len(self.floating) / total))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "floating": list(self.floating),
            "kept_float": list(self.kept_float),
            "share": self.share,
        }


def audit_int8(
    source: bytes, quantized: bytes, minimum_share: float, *, keep_float: Collection[str] = ()
) -> PrecisionAudit:
    """Audit an INT8 file against the FP32 file that it was made from.

    Args:
        source: the FP32 ONNX file.
        quantized: the INT8 ONNX file.
        minimum_share: of what was not left in float on purpose; below it the variant fails.
        keep_float: names of nodes that were: products, and others of which residual Adds count.

    Raises:
        PrecisionError: too much stayed in floating point; the nodes are named.
    """
    graph = onnx.load_from_string(source).graph
    adds = residual_adds(graph)
    expected = Counter(_PRODUCTS[node.op_type] for node in graph.node if node.op_type in _PRODUCTS)
    expected["Add"] = len(adds)
    optimized = optimize_with_onnxruntime(quantized).graph
    got = Counter(_QUANTIZED[node.op_type] for node in optimized.node if node.op_type in _QUANTIZED)
    left_adds = set(residual_adds(optimized))
    floating = tuple(
        node.name for node in optimized.node if node.op_type in _PRODUCTS or node.name in left_adds
    )
    wanted = {kind: count for kind, count in expected.items() if count}
    kept_products = {n.name for n in graph.node if n.op_type in _PRODUCTS and n.name in keep_float}
    kept_adds = (float_neighbours(graph, kept_products) | set(keep_float)) & set(adds)
    kept = (*sorted(kept_products), *sorted(kept_adds))
    products = sum(count for kind, count in got.items() if kind != "Add")
    if kept_products and products + len(kept_products) > sum(expected.values()) - expected["Add"]:
        raise PrecisionError(
            f"onnxruntime computes {products} products in INT8 although {len(kept_products)} of "
            f"{sum(expected.values()) - expected['Add']} were to stay in float."
        )
    minimum = minimum_share * (1 - len(kept) / max(1, sum(wanted.values())))
    audit = PrecisionAudit(dict(got), wanted, floating, minimum, kept)
    if audit.share < minimum:
        raise PrecisionError(
            f"Only {audit.share:.0%} of the {sum(wanted.values())} products and residual adds run in INT8, "
            f"wanted {minimum:.0%}. In floating point: {', '.join(floating[:8]) or 'not attributable'}"
            f"{f' and {len(floating) - 8} more' if len(floating) > 8 else ''}.",
            hint="Lower min_precision_share only where that is acceptable: the variant would be INT8 in name.",
        )
    return audit


def optimize_with_onnxruntime(model: bytes) -> Any:
    """The graph that onnxruntime's CPU provider really runs, as an onnx ModelProto."""
    ort = import_onnxruntime("cpu")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = (
            3  # it warns that the file is specific to this machine: that is the point
        )
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def is_quantized_kind(kind: str) -> bool:
    """Whether a node of this kind computes with 8-bit integers."""
    return kind in _QUANTIZED or kind.startswith("QLinear")


def is_product_kind(kind: str) -> bool:
    """Whether a node of this kind computes products in floating point."""
    return kind in _PRODUCTS


def residual_adds(graph: Any) -> list[str]:
    """Names of floating-point Adds that join two activations; an Add of a constant is a bias."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Add" and not any(name in constants for name in node.input)
    ]
