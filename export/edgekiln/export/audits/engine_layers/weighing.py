"""Weighs an engine's layers by the MACs of the products that each computes. Refuses nothing.

What is unknown of a product counts as unknown, and so never as achieved. Of an engine with several optimization
profiles a product counts as the widest type that any of them computes it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgekiln.export.audits.engine_layers.audit import EngineAudit, Evidence, list_some
from edgekiln.export.audits.engine_layers.classification import (
    compute_type,
    contradicts_tactic,
    is_opaque,
    is_reformat,
    operand_types,
    rank_layer,
    tactic_type,
)
from edgekiln.export.audits.engine_layers.datatypes import WANTED_WIDTH, WIDTHS, widest, width_of
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.runtime.spec import Precision

__all__ = ["layers_by_product", "weigh_layers"]


def weigh_layers(
    layers: Sequence[EngineLayer],
    products: Mapping[str, int],
    precision: Precision,
    evidence: Evidence,
    notes: Iterable[str] = (),
) -> EngineAudit:
    """Count MACs by what each product is computed with.

    Args:
        layers: all of an engine.
        products: ONNX name of each Conv, Gemm and MatMul to its MACs for one image.
        precision: what was wanted.
        evidence: where the layers come from.
        notes: that stand before those of the weighing.
    """
    makers = layers_by_product(layers, products)
    profiles = {layer.profile for layer in layers} or {0}
    found = {name: _type_in_all(makers.get(name, ()), profiles) for name in products}
    macs: dict[str, int] = {}
    for name, datatype in found.items():
        macs[datatype] = macs.get(datatype, 0) + products[name]
    chosen = {id(layer): layer for group in makers.values() for layer in group}
    nameless = [layer for layer in layers if _is_nameless_product(layer, products)]
    limit = WANTED_WIDTH[precision]
    islands = [layer.name for layer in (*chosen.values(), *nameless) if width_of(compute_type(layer)) > limit]
    missing = [name for name in products if name not in makers]
    return EngineAudit(
        precision.value,
        _share(macs, precision),
        macs,
        sum(is_reformat(layer) for layer in layers),
        tuple(dict.fromkeys(islands)),
        (*missing, *(layer.name for layer in nameless)),
        evidence,
        (*notes, *_notes(list(chosen.values()))),
    )


def layers_by_product(
    layers: Iterable[EngineLayer], products: Mapping[str, int]
) -> dict[str, list[EngineLayer]]:
    """For each product the layers that compute it: those that are products by kind, else the next best.

    A node's name also stands on the layers that move its input or scale its output; they prove nothing. Each
    optimization profile has layers of its own.
    """
    ranked: dict[tuple[str, int], list[tuple[int, EngineLayer]]] = {}
    for layer in layers:
        rank = rank_layer(layer)
        for name in layer.origins:
            if name in products and rank < 3:
                ranked.setdefault((name, layer.profile), []).append((rank, layer))
    makers: dict[str, list[EngineLayer]] = {}
    for (name, _), group in ranked.items():
        least = min(rank for rank, _ in group)
        makers.setdefault(name, []).extend(layer for rank, layer in group if rank == least)
    return makers


def _type_in_all(makers: Sequence[EngineLayer], profiles: set[int]) -> str:
    """What a product is computed in; ``unknown`` where a profile has no layer for it."""
    if {layer.profile for layer in makers} != profiles:
        return "unknown"
    return widest(compute_type(layer) for layer in makers)


def _is_nameless_product(layer: EngineLayer, products: Mapping[str, int]) -> bool:
    """A product that no ONNX product leads to: it is computed, and nobody knows for which node."""
    return rank_layer(layer) == 0 and not any(name in products for name in layer.origins)


def _share(macs: Mapping[str, int], precision: Precision) -> float | None:
    total = sum(macs.values())
    if not total:
        return None
    if precision is Precision.FP32:
        return 1.0  # nothing is wider, so even what is unknown keeps the promise
    limit = WANTED_WIDTH[precision]
    kept = (count for name, count in macs.items() if 0 < width_of(name) <= limit)
    # FP16 is as wide as BF16 and lacks its range, for which BF16 is asked.
    return (sum(kept) - (macs.get("fp16", 0) if precision is Precision.BF16 else 0)) / total


def _notes(products: Sequence[EngineLayer]) -> Iterator[str]:
    """What the judging had to lean on, and where a kernel's name contradicts its inputs."""
    visible = [layer for layer in products if not is_opaque(layer)]
    silent = [layer for layer in visible if not operand_types(layer)]
    named = sum(tactic_type(layer) is not None for layer in silent)
    weighed = sum(tactic_type(layer) is None and layer.weights in WIDTHS for layer in silent)
    if opaque := len(products) - len(visible):
        yield f"{opaque} foreign nodes hide what they compute with; their products count as unknown."
    if named:
        yield f"{named} layers report no input type and were judged by their kernel's name."
    if weighed:
        yield f"{weighed} layers report no input type or kernel and were judged by their weights."
    if any(layer.kind == "unknown" for layer in silent):
        yield "The engine was not built with ProfilingVerbosity.DETAILED: it lists names alone."
    odd = [layer.name for layer in visible if contradicts_tactic(layer)]
    if odd:
        yield f"The kernel's name contradicts the input type in {list_some(odd)}."
    tf32 = sum("tf32" in (layer.tactic or "") or "s1688gemm_" in (layer.tactic or "") for layer in visible)
    if tf32:
        yield f"{tf32} layers use TF32 kernels."
