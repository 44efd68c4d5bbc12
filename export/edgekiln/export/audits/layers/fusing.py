"""Which nodes of an ONNX file each node of onnxruntime's optimized graph computes. Knows no session and no time.

The library keeps no record of that. What it keeps are names: a node that it fused keeps the name of one of its parts,
or that of the last tensor; layouts add ``_nchwc`` and ``_token_N``. What left no name behind is found by the tensors:
a tensor that is gone was inside a fused node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln.export.audits.onnxruntime import is_product_kind, is_quantized_kind

__all__ = ["find_origins", "is_inserted"]

_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w*Fusion\w*/?)$")
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_WITHOUT_WORK = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear"})
"""Nodes of a file that name no layer: what they do is part of the product that they feed or follow."""

_EPILOGUES = frozenset({
    "Add", "Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "QuantizeLinear", "Relu", "Sigmoid", "Sum",
    "Tanh",
})  # fmt: skip
"""What a library computes while it writes the result of the node before."""


def find_origins(source: Any, optimized: Any) -> dict[str, tuple[str, ...]]:
    """Names of the source's nodes by the name of the optimized node that computes them.

    Args:
        source: the GraphProto that the library loaded; every node has a name.
        optimized: the GraphProto that it saved.

    Returns:
        For every optimized node, in the source's order; empty for one that the library put in. Constants and Q/DQ
        nodes stand only where they are all that there is.
    """
    owners = _find_owners(source, optimized)
    found: dict[str, list[Any]] = {node.name: [] for node in optimized.node}
    for node in source.node:
        if node.name in owners:
            found[owners[node.name]].append(node)
    return {name: _shown(nodes) for name, nodes in found.items()}


def is_inserted(node: Any, names: set[str]) -> bool:
    """Whether the library put it in to change a layout: it is none of the file's."""
    return node.op_type in _LAYOUT and _base(node.name) not in names


def _shown(nodes: list[Any]) -> tuple[str, ...]:
    working = [node.name for node in nodes if node.op_type not in _WITHOUT_WORK]
    return tuple(working or (node.name for node in nodes))


def _base(name: str) -> str:
    """A name without what the library's optimizers add to it."""
    shorter = _SUFFIX.sub("", name)
    return name if shorter == name else _base(shorter)


def _find_owners(source: Any, optimized: Any) -> dict[str, str]:
    """The optimized node of each source node."""
    makers = {output: node.name for node in source.node for output in node.output}
    names = {node.name for node in source.node}
    owners: dict[str, str] = {}
    for node in optimized.node:
        if not is_inserted(node, names):
            for name in _claims(node, makers, names):
                owners.setdefault(name, node.name)
    _follow_tensors(source, optimized, makers, owners)
    _precede(source, owners)
    return owners


def _claims(node: Any, makers: Mapping[str, str], names: set[str]) -> Iterator[str]:
    base = _base(node.name)
    if base in names:
        yield base
    elif base in makers:  # layouts name a node after its output
        yield makers[base]
    yield from (makers[output] for output in node.output if output in makers)


def _follow_tensors(source: Any, optimized: Any, makers: Mapping[str, str], owners: dict[str, str]) -> None:
    """An epilogue whose input no longer exists was fused into what made that input.

    Not where what reads it was fused into a node of another kind, a product aside: then it is a part of that one, as
    Sigmoid is of x * Sigmoid(x).
    """
    kinds = {node.name: node.op_type for node in optimized.node}
    readers = {name: node for node in source.node for name in node.input}
    kept = {name for node in optimized.node for name in (*node.input, *node.output)}
    place = {node.name: number for number, node in enumerate(optimized.node)}
    for node in source.node:
        if node.name in owners or node.op_type not in _EPILOGUES:
            continue
        reader = readers.get(node.output[0])
        kind = kinds.get(owners.get(reader.name, "")) if reader is not None else None
        if kind is not None and reader is not None and kind != reader.op_type and not _is_product(kind):
            continue
        inside = [
            owners[makers[name]] for name in node.input if name not in kept and makers.get(name) in owners
        ]
        if inside:
            owners[node.name] = max(inside, key=lambda name: place[name])


def _is_product(kind: str) -> bool:
    return is_product_kind(kind) or is_quantized_kind(kind)


def _precede(source: Any, owners: dict[str, str]) -> None:
    """All else belongs to the first node that reads it; what nobody reads any more was computed when it loaded."""
    readers: dict[str, list[str]] = {}
    for node in source.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    for node in reversed(source.node):
        if node.name not in owners:
            after = [owners[r] for output in node.output for r in readers.get(output, ()) if r in owners]
            if after:
                owners[node.name] = after[0]
