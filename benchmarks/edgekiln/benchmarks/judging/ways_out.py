"""What decides an undecided verdict: the cheapest ways, each the change of one key, reckoned for the case at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Way", "find_ways", "val_judges"]

_MOST_WAYS = 3
_STEP = 0.0025  # budgets are told in quarters of a point
_LARGEST_DROP = 0.2  # a larger budget says nothing
_MAY_GROW = 2.0  # times as many test images, until other ways are told before


@dataclass(frozen=True, slots=True)
class Way:
    """One way.

    Attributes:
        setting: ``key=value`` as ``--set`` takes it; ``None`` where pictures are wanted, and the same command again.
        why: what comes of it.
    """

    setting: str | None
    why: str


def find_ways(report: Mapping[str, Any], variant: Mapping[str, Any]) -> list[Way]:
    """At most three ways, the cheapest first; none for a variant that is not *inconclusive*.

    They rest on the flips that were seen: with other images there are others. Choosing among seeds until one passes
    is no way.

    Args:
        report: of the run, with its recipe, and ``data.counts`` by split.
        variant: one of its rows.
    """
    if variant["verdict"] != "inconclusive":
        return []
    return list(_ways(report, variant))[:_MOST_WAYS]


def _ways(report: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[Way]:
    drop = variant["balanced_drop" if variant["metric"] == "balanced" else "drop"]
    images, needed = variant["counts"]["images"], variant["images_to_decide"]
    # More images make sure of the drop that was seen: they help where that is inside the budget.
    helps = needed is not None and drop["value"] < variant["max_drop"]
    few = helps and needed <= _MAY_GROW * images
    if helps:
        yield from _ask_val(report, images, needed)
    if few:
        yield _more_pictures(images, needed)
    if not helps:
        yield from _change_engine(report, variant)
    yield from _allow_more(report, variant, drop["high"])
    if helps:
        yield from _change_engine(report, variant)
    if helps and not few:
        yield _more_pictures(images, needed)
    if variant["required"]:
        yield Way(
            "gate.inconclusive=warn", "the run exits 0; the engine stays undecided, and is not deployable"
        )


def _ask_val(report: Mapping[str, Any], images: int, needed: int) -> Iterator[Way]:
    val = report["data"]["counts"].get("val", 0)
    if images + val < needed or not val_judges(report["recipe"]):
        return
    yield Way(
        "gate.evidence=test+val",
        f"val judges too, {images + val} images in all: about {needed} decide at the flips seen",
    )


def val_judges(recipe: Mapping[str, Any]) -> bool:
    """Whether ``gate.evidence = "test+val"`` could be asked for: not yet asked, and no variant was chosen on val."""
    variants: Sequence[Mapping[str, Any]] = recipe.get("variants", ())
    asked = recipe["gate"].get("evidence", "test") != "test"
    allowed = (recipe.get("data") or {}).get("leaks") != "allow"
    return (
        bool(variants) and allowed and not asked and not any(_searches(v) or v.get("qat") for v in variants)
    )


def _searches(variant: Mapping[str, Any]) -> bool:
    """As ``VariantSettings.searches``, of the recipe as it ships."""
    asked = variant.get("search")
    wanted = variant.get("max_drop") is not None and not variant.get("qat") if asked is None else asked
    return bool(wanted) and variant.get("precision") == "int8"


def _more_pictures(images: int, needed: int) -> Way:
    more = f"once there are about {needed - images} more test pictures"
    return Way(None, f"{more}: {needed} images decide at the flips seen")


def _allow_more(report: Mapping[str, Any], variant: Mapping[str, Any], high: float) -> Iterator[Way]:
    """The smallest budget that the interval lies below."""
    budget = round((math.floor(high / _STEP) + 1) * _STEP, 4)
    if budget > _LARGEST_DROP:
        return
    own = _wish(report, variant).get("max_drop") is not None
    key = f"variants.{variant['name']}.max_drop" if own else "gate.max_drop"
    yield Way(
        f"{key}={budget:g}",
        f"the answers seen pass at {100 * budget:g} points: only if your product can bear losing as much",
    )


def _change_engine(report: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[Way]:
    """Fewer flips instead of more images."""
    wish = _wish(report, variant)
    on_test = report["recipe"]["gate"].get("evidence", "test") == "test"
    if variant["precision"] != "int8" or variant["counts"]["broken"] == 0 or not wish or not on_test:
        return
    name = variant["name"]
    if wish.get("qat") or _searches(wish):
        return
    yield Way(f"variants.{name}.search=true", "keeps the blocks in float that cost most on val; some minutes")
    if variant["backend"] in {"tensorrt", "tensorrt-rtx"}:
        yield Way(f"variants.{name}.qat={{epochs=2}}", "trains the network for INT8 (docs/qat.md)")


def _wish(report: Mapping[str, Any], variant: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variant's part of the recipe; nothing where the report does not tell it."""
    variants: Sequence[Mapping[str, Any]] = report["recipe"].get("variants", ())
    return next((v for v in variants if v.get("name") == variant["name"]), {})
