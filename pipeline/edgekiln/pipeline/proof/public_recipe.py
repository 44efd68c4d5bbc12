"""The recipe as it ships: without the folders of the machine that it ran on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekiln.pipeline.recipe import Recipe

__all__ = ["public_recipe"]


def public_recipe(recipe: Recipe, *, as_given: bool = False) -> dict[str, Any]:
    """The recipe as JSON values, without the folders of this machine; ``as_given`` leaves out all defaults."""
    values = recipe.model_dump(mode="json", exclude_unset=as_given)
    for section in (values["data"], (values.get("source_task") or {}).get("data") or {}):
        if section.get("path"):
            section["path"] = Path(section["path"]).name
        if section.get("sensor_bits") is None:
            section.pop("sensor_bits", None)  # as "ship" below
    _drop_unused(recipe, values)
    if recipe.teacher is not None:
        values["teacher"]["checkpoint"] = recipe.teacher.checkpoint.name
    if recipe.backbone.from_file:
        values["backbone"]["weights"] = Path(recipe.backbone.weights).name
    if recipe.gate.min_top1 is None:
        values.get("gate", {}).pop("min_top1", None)
    if not recipe.gate.judges_val:
        values.get("gate", {}).pop("evidence", None)  # as below
    if not recipe.ship.baseline:
        values.pop(
            "ship", None
        )  # a bundle that has nothing more is the one that it was before there was the key
    return values


def _drop_unused(recipe: Recipe, values: dict[str, Any]) -> None:
    """Take out keys of engines' builds that were added later and are not used, as "ship" above."""
    for variant, written in zip(recipe.variants, values["variants"], strict=True):
        for key in variant.build.unused:
            written.get("build", {}).pop(key, None)
