"""A product runs in INT8 where both of its operands are quantized."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.export.precision.qdq_lint.graph_index import GraphIndex
from edgekiln.export.precision.qdq_lint.nodes import input_name, label
from edgekiln.export.precision.qdq_lint.operators import MOVING, PRODUCTS
from edgekiln.export.precision.qdq_lint.rule import Fault, Rule

__all__ = ["UnquantizedProduct"]


class UnquantizedProduct(Rule):
    """Looks for products with a pair on one operand and none on the other."""

    name = "unquantized-product"
    severity = "error"
    meaning = "only one operand of a Conv, Gemm or MatMul is quantized"
    reason = (
        "INT8 kernels multiply int8 by int8; with one operand in float the other is converted back to it."
    )
    remedy = "quantize both, or neither"
    example = "Conv(DQ(Q(x)), w), w in float"

    def find(self, graph: GraphIndex) -> Iterator[Fault]:
        for product in graph.nodes:
            if product.op_type not in PRODUCTS or len(product.input) < 2:
                continue
            pairs = [graph.dequantizer(input_name(product, side)) for side in (0, 1)]
            if (pairs[0] is None) == (pairs[1] is None):
                continue
            side = 0 if pairs[0] is not None else 1
            quantized, other = input_name(product, side), input_name(product, 1 - side)
            # A pair before a MaxPool is there for the MaxPool; the product behind it may stay in float.
            if graph.dequantizer(quantized, MOVING) is not None:
                yield (
                    [product, pairs[side]],
                    f"Only {quantized} of {label(product)} is quantized, so the product runs in float and "
                    f"the pair just costs time and accuracy; quantize {other} too, or neither.",
                )
