"""The products of a graph (Conv, Gemm, MatMul), which of them are quantized, and which belong together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekiln.runtime.errors import PrecisionError

__all__ = [
    "PRODUCTS",
    "Block",
    "check_kept",
    "float_neighbours",
    "group_products",
    "nearest_products",
    "quantized_products",
]

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
MAX_BLOCKS = 48
"""More are merged with their neighbours: ranking costs one evaluation per block."""
_INSIDE = re.compile(r"^((?:.*\.)?\d+)\.[A-Za-z_]")


@dataclass(frozen=True, slots=True)
class Block:
    """Products that are quantized together: what a person calls them, and their node names in the graph's order."""

    name: str
    products: tuple[str, ...]


def group_products(graph: Any, products: Collection[str], macs: Mapping[str, int]) -> tuple[Block, ...]:
    """Blocks of an exported FP32 graph, in its order; each of ``products`` is in exactly one.

    A product is called after its weight, as PyTorch names it: ``network.blocks.3.1.conv_pw.weight``. What stands
    below the same last number, ``blocks.3.1``, is one block (a residual block of timm, torchvision or one's own); a
    layer that is itself a number of a Sequential, or has no such name, is a block of its own. Over 48 blocks are
    merged, always the two neighbours with the fewest MACs together.
    """
    blocks: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS and node.name in products:
            blocks.setdefault(_block_name(node), []).append(node.name)
    groups = [Block(name, tuple(members)) for name, members in blocks.items()]
    while len(groups) > MAX_BLOCKS:
        sizes = [sum(macs.get(product, 0) for product in group.products) for group in groups]
        i = min(range(len(groups) - 1), key=lambda k: sizes[k] + sizes[k + 1])
        first, second = groups[i : i + 2]
        groups[i : i + 2] = [Block(f"{first.name}+{second.name}", first.products + second.products)]
    return tuple(groups)


def _block_name(node: Any) -> str:
    path = str(node.input[1]).removeprefix("network.")
    if "." not in path:  # no name of PyTorch's: the exporter's constants are called val_13
        return str(node.name)
    module = path.rpartition(".")[0]  # without ".weight"
    inside = _INSIDE.match(module)
    return inside.group(1) if inside else module


def quantized_products(graph: Any) -> tuple[str, ...]:
    """Names of the products whose both inputs are dequantized, in a graph with explicit Q/DQ."""
    made_by = {name: node for node in graph.node for name in node.output}
    return tuple(
        node.name
        for node in graph.node
        if node.op_type in PRODUCTS and all(_is_dequantized(name, made_by) for name in node.input[:2])
    )


def _is_dequantized(tensor: str, made_by: Mapping[str, Any]) -> bool:
    while tensor in made_by and made_by[tensor].op_type in {"Cast", "Reshape", "Transpose"}:
        tensor = made_by[tensor].input[0]
    return tensor in made_by and made_by[tensor].op_type == "DequantizeLinear"


def float_neighbours(graph: Any, keep_float: Collection[str]) -> frozenset[str]:
    """Names of the other nodes for which nothing is quantized: all their nearest products, on both sides, stay float.

    A pooling or residual Add between two products in float would otherwise put their values through 8 bits.
    """
    if not keep_float:
        return frozenset()
    above, below = nearest_products(graph)
    return frozenset(
        node.name
        for node in graph.node
        if node.op_type not in PRODUCTS
        and (near := above[node.output[0]] | below[node.output[0]])
        and near <= set(keep_float)
    )


def nearest_products(graph: Any) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """By a node's first output: names of the products that lie nearest before it, and nearest behind it."""
    made_by = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    above = _nearest(graph.node, lambda node: [made_by[n] for n in node.input if n in made_by])
    below = _nearest(reversed(graph.node), lambda node: [u for n in node.output for u in users.get(n, ())])
    return above, below


def _nearest(nodes: Iterable[Any], neighbours: Any) -> dict[str, frozenset[str]]:
    """By first output: the nearest products that ``neighbours`` leads to, along nodes that come after theirs."""
    found: dict[str, frozenset[str]] = {}
    for node in nodes:
        near: set[str] = set()
        for other in neighbours(node):
            near |= {other.name} if other.op_type in PRODUCTS else found[other.output[0]]
        found[node.output[0]] = frozenset(near)
    return found


def check_kept(quantized: Any, source: Any, keep_float: Collection[str]) -> None:
    """Refuse where what was to stay in float did not: quantizers pass over unknown names in silence.

    Raises:
        PrecisionError: names no product of the FP32 graph ``source``, or one that is quantized all the same.
    """
    unknown = set(keep_float) - {node.name for node in source.node if node.op_type in PRODUCTS}
    wrong = unknown | (set(keep_float) & set(quantized_products(quantized)))
    if wrong:
        raise PrecisionError(f"These cannot be kept in float: {', '.join(sorted(wrong)[:5])}.")
