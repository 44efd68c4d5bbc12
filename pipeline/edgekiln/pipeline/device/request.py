"""What is asked for on a target: which variants of a bundle, with which settings, under which gate.

It is read from the parent's manifest and the caller's wishes. Knows nothing of building and judging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.report.table import describe_static_batches
from edgekiln.export.engines.options import TENSORRT_ALONE
from edgekiln.pipeline.device.building import EngineRequest, plan_builds
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import BundleError, UsageError
from edgekiln.runtime.spec import Precision

__all__ = [
    "TargetRequest",
    "choose_variants",
    "graph_facts",
    "graph_precision",
    "inherited_figures",
    "read_gate",
    "read_wishes",
]

_DEFAULT_GATE = {
    "metric": "top1",
    "max_drop": 0.01,
    "confidence": 0.95,
    "min_top1": None,
    "inconclusive": "fail",
}
_DEFAULT_SHARE = 0.8
_FOUND_ELSEWHERE = frozenset({
    "accuracy", "agreement", "balanced_drop", "confidence", "counts", "drop", "drop_by_split", "images_to_decide",
    "judged_images", "judged_on", "kl_nats", "latency", "max_drop", "max_logit_difference", "mcnemar_p",
    "mean_logit_difference", "metric", "profiles", "simulated", "speedup", "static_batches",
    "warnings", VERDICT_KIND,
})  # fmt: skip
"""Figures of a variant that were found by running it, on a machine that is not this one."""
_RAN_AND_FAILED = "failed while running"


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """What to build where.

    Attributes:
        data: folder with (some of) the parent's test pictures, in any layout; ``None`` leaves the engines unverified.
        variants: names; empty is every variant of the parent that engines can be built from.
        backend: another flavour than the variant's own; ``None`` keeps it.
        settings: overrides of the variant's ``build`` section.
    """

    bundle: Path
    out: Path
    data: Path | None = None
    variants: tuple[str, ...] = ()
    backend: Flavour | None = None
    settings: Mapping[str, Any] | None = None


def choose_variants(parent: Bundle, request: TargetRequest) -> list[VariantRecord]:
    """The variants to build.

    Raises:
        UsageError: there is no such variant, or none that an engine can be built from.
    """
    buildable = [v for v in parent.variants if v.source is not None]
    if request.variants:
        buildable = [parent.variant(name) for name in dict.fromkeys(request.variants)]
    if not buildable:
        raise UsageError(
            f"{parent.path} holds no graph to build an engine from.",
            hint="Its recipe needs a variant with backend = 'tensorrt' or 'tensorrt-rtx'; it need not build there.",
            path=parent.path,
        )
    for variant in buildable:
        if variant.source is None:
            raise UsageError(
                f"Variant {variant.name!r} is run by {variant.backend}: there is no engine to build."
            )
    return buildable


def graph_precision(variant: VariantRecord) -> Precision:
    """Of ``source``; an engine of the parent may have fallen back to another."""
    return Precision(variant.figures.get("asked_precision", variant.precision.value))


def inherited_figures(variant: VariantRecord) -> dict[str, Any]:
    """What the figures of a variant say of its graph, not of an engine: another build may begin from it."""
    kept, costs = variant.figures.get("kept_share"), variant.figures.get("costs")
    return {
        "products": variant.figures.get("products") or {},
        "asked_precision": graph_precision(variant).value,
        **({} if kept is None else {"kept_share": kept}),
        **({} if costs is None else {"costs": costs}),
    }


def graph_facts(variant: VariantRecord) -> dict[str, Any]:
    """What the figures of a variant say of its files: how they were made and audited, not what was found by running."""
    facts = {key: value for key, value in variant.figures.items() if key not in _FOUND_ELSEWHERE}
    told = {f"{variant.name}: {warning}." for warning in variant.figures.get("warnings") or ()}
    told |= set(describe_static_batches(variant.name, variant.figures.get("static_batches") or ()))
    facts["notices"] = [notice for notice in facts.get("notices") or () if notice not in told]
    if str(facts.get("failure") or "").startswith(_RAN_AND_FAILED):
        facts["failure"] = None
    return facts


def read_gate(parent: Bundle, name: str) -> dict[str, Any]:
    """What a variant may lose, as the parent's manifest says; raises BundleError where that makes no sense."""
    try:
        gate = {**_DEFAULT_GATE, **(parent.manifest.get("gate") or {})}
        own = _wish(parent, name).get("max_drop")
        limits = {
            "max_drop": float(gate["max_drop"] if own is None else own),
            "confidence": float(gate["confidence"]),
            "min_top1": None if gate["min_top1"] is None else _share(gate["min_top1"]),
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise _cannot_use(parent, name, error) from error
    return {**gate, **limits}


def read_wishes(
    parent: Bundle, variant: VariantRecord, request: TargetRequest, folder: Path
) -> tuple[EngineRequest, dict[str, Any]]:
    """What the parent's manifest and the caller wish for; raises BundleError where the manifest makes no sense."""
    assert variant.source is not None
    flavour: Any = request.backend or variant.backend
    try:
        wish = _wish(parent, variant.name)
        share = wish.get("min_precision_share")
        inherited = inherited_figures(variant)
        build = EngineRequest(
            name=variant.name,
            model=folder / variant.source,
            flavour=flavour,
            precision=graph_precision(variant),
            settings=_merge_settings(flavour, wish.get("build") or {}, request.settings or {}),
            products={str(k): int(v) for k, v in inherited["products"].items()},
            minimum_share=_DEFAULT_SHARE if share is None else float(share),
            kept_share=_share(inherited.get("kept_share", 0.0)),
        )
        plan_builds(build)
        return build, read_gate(parent, variant.name)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _cannot_use(parent, variant.name, error) from error


def _cannot_use(parent: Bundle, name: str, error: Exception) -> BundleError:
    return BundleError(
        f"{parent.path / 'manifest.json'}: the settings of {name!r} cannot be used: {error}.",
        path=parent.path,
    )


def _share(value: Any) -> float:
    """A share of a manifest; raises ValueError where it is none, since a larger one would ask for nothing."""
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{value} is no share from 0 to 1")
    return share


def _wish(parent: Bundle, name: str) -> Mapping[str, Any]:
    """The variant's part of the recipe that made the parent."""
    recipe = (parent.manifest.get("provenance") or {}).get("recipe") or {}
    variants = recipe.get("variants")
    entries = [v for v in variants if isinstance(v, dict)] if isinstance(variants, list) else []
    return next((v for v in entries if v.get("name") == name), {})


def _merge_settings(
    flavour: Flavour, settings: Mapping[str, Any], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """A recipe's settings without those that another flavour alone knows, and the caller's own over them."""
    foreign = {
        "tensorrt": {"capabilities"},
        "tensorrt-rtx": set(TENSORRT_ALONE),
    }[flavour]
    known = {key: value for key, value in settings.items() if key not in foreign}
    if "batch" in wishes:
        known.pop("static_batches", None)  # a range instead of the recipe's sizes
    return known | dict(wishes)
