"""The ways of transfer that a study compares, each a recipe derived from the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekiln.pipeline.recipe import Recipe, VariantSettings
from edgekiln.runtime.errors import RecipeError, UsageError
from edgekiln.runtime.spec import Precision

__all__ = ["METHODS", "Method", "choose_methods", "derive_recipe", "tell_departures"]


@dataclass(frozen=True, slots=True)
class Method:
    """A way of transfer, in words."""

    name: str
    title: str
    about: str


METHODS = {
    method.name: method
    for method in (
        Method(
            "scratch",
            "from scratch",
            "random first weights, everything trained, BatchNorm statistics learned; no probe, no L2-SP",
        ),
        Method("probe", "linear probe", "the pretrained network frozen, a logistic regression as its head"),
        Method("full", "full fine-tuning", "the recipe as it stands, without its source task"),
        Method("combined", "combined loss", "the recipe with its source task beside the target's"),
    )
}


def choose_methods(recipe: Recipe, wanted: Sequence[str] = ()) -> tuple[tuple[str, ...], list[str]]:
    """The methods to compare, in the order of ``METHODS``, and sentences on what is left out.

    Args:
        recipe: whose transfer is studied.
        wanted: names; none means every method that the recipe allows.

    Raises:
        UsageError: an unknown name.
        RecipeError: the recipe has nothing to transfer, or not what a wanted method needs.
    """
    for name in wanted:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
            raise UsageError(
                f"There is no method {name!r}; there are: {', '.join(METHODS)}.",
                hint=f"Did you mean {near[0]!r}?" if near else "Give some of these.",
            )
    chosen, left_out = tuple(name for name in METHODS if name in (wanted or METHODS)), list[str]()
    if "combined" in chosen and not _has_source_task(recipe):
        text = "combined: the recipe has no [source_task] with an alpha above 0"
        if wanted:
            raise RecipeError(
                f"{text}.", hint="Add one (docs/transfer.md), or leave combined out of --methods."
            )
        chosen = tuple(name for name in chosen if name != "combined")
        left_out.append(f"{text}, so the combined loss is left out.")
    _check_transfer(recipe, chosen)
    return chosen, left_out


def _has_source_task(recipe: Recipe) -> bool:
    return recipe.source_task is not None and recipe.source_task.alpha > 0


def _check_transfer(recipe: Recipe, methods: Sequence[str]) -> None:
    if recipe.backbone.weights == "none":
        raise RecipeError(
            "backbone.weights = 'none': the recipe transfers nothing, so there is nothing to study.",
            hint="Name pretrained weights: imagenet, package:DISTRIBUTION, or a file of an earlier run.",
        )
    trained = [name for name in methods if name != "probe"]
    if trained and recipe.finetune.epochs == 0:
        raise RecipeError(
            f"finetune.epochs = 0: {' and '.join(trained)} would train nothing.",
            hint="Set --set finetune.epochs=4, or study --methods probe alone.",
        )
    if recipe.backbone.freeze == "backbone" and {"full", "combined"} & set(methods):
        raise RecipeError(
            "backbone.freeze = 'backbone' trains the head alone, which is no full fine-tuning.",
            hint="Set --set backbone.freeze=none, or study --methods scratch,probe.",
        )


def tell_departures(recipe: Recipe) -> list[str]:
    """Sentences on what of the recipe the study leaves aside or takes along, where a reader might expect otherwise."""
    told = []
    if recipe.teacher is not None:
        told.append("The recipe's teacher is left aside: from scratch it would be a transfer of its own.")
    if recipe.backbone.freeze.startswith("until:"):
        told.append(
            f"full and combined keep the recipe's backbone.freeze = {recipe.backbone.freeze!r}: not all is trained."
        )
    if recipe.finetune.patience:
        told.append(f"finetune.patience = {recipe.finetune.patience}: a method may stop before its budget.")
    return told


def derive_recipe(recipe: Recipe, method: str, share: float = 1.0, seed: int | None = None) -> Recipe:
    """The recipe of one cell.

    Args:
        recipe: whose transfer is studied.
        method: a key of ``METHODS``.
        share: of the images that the recipe trains on; multiplies its ``data.train_share``.
        seed: of training, of the share's images and of val. Test is cut by the recipe's own seed whatever this is.
    """
    wanted = recipe.seed if seed is None else seed
    data: dict[str, Any] = {"train_share": float(f"{recipe.data.train_share * share:.12g}")}
    if wanted != recipe.seed and recipe.data.test_seed is None:
        data["test_seed"] = recipe.seed
    return recipe.model_copy(
        update={
            "seed": wanted,
            "data": recipe.data.model_copy(update=data),
            "teacher": None,
            # Only PyTorch is judged; a recipe has to have a variant.
            "variants": (VariantSettings(name="fp32", precision=Precision.FP32),),
            **_change_method(recipe, method),
        }
    )


def _change_method(recipe: Recipe, method: str) -> dict[str, Any]:
    """The sections that a method changes."""
    backbone, finetune = recipe.backbone, recipe.finetune
    match method:
        case "scratch":
            # A fresh network has no statistics to keep, and nothing to freeze, to spare or to be pulled towards.
            fresh = {"weights": "none", "head": "keep", "freeze": "none", "freeze_batchnorm": False}
            return {
                "backbone": backbone.model_copy(update=fresh),
                "finetune": finetune.model_copy(
                    update={"probe": False, "l2_sp": 0.0, "gradual_unfreezing": 0.0, "layer_decay": 1.0}
                ),
                "source_task": None,
            }
        case "probe":
            # A file's own head was trained already; a probe fits one of its own.
            head = {"head": "replace"} if backbone.from_file else {}
            return {
                "backbone": backbone.model_copy(update=head),
                "finetune": finetune.model_copy(update={"probe": True, "epochs": 0}),
                "source_task": None,
            }
        case "full":
            return {"source_task": None}
        case "combined":
            return {}
        case _:
            raise UsageError(f"There is no method {method!r}.", hint=f"There are: {', '.join(METHODS)}.")
