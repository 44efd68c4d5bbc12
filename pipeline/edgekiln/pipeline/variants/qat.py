"""The stage ``qat.NAME``: trains a variant's network for INT8, and tells the variant's own stage what came of it.

A failure is this variant's, not the run's: it is written down, and the variant takes it over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.calibrating import choose_calibration_set
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    StageContext,
    read_json,
    write_json,
)
from edgekiln.runtime.errors import DataError, EngineError, GateError, MissingExtraError

__all__ = ["read_training", "tell_training", "train_variant"]


def train_variant(context: StageContext, variant: VariantSettings) -> None:
    """Write ``about.json``, and what ``train_quantized`` writes; goes on where an interrupted attempt stopped."""
    about: dict[str, Any] = {"failure": None, "unavailable": None}
    try:
        about["training"] = _train(context, variant)
    except (GateError, DataError, EngineError) as error:
        about["failure"] = str(error)
        context.progress.message(f"  {variant.name}: {error}")
    except MissingExtraError as error:
        about["unavailable"] = str(error)
        context.progress.message(f"  {variant.name} is not trained here: {error}")
    write_json(context.folder / ABOUT_NAME, about)


def _train(context: StageContext, variant: VariantSettings) -> dict[str, Any]:
    from edgekiln.export.precision.modelopt import import_modelopt
    from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, read_contract
    from edgekiln.pipeline.training.job import FinetuneJob
    from edgekiln.pipeline.training.qat import QatJob, train_quantized

    assert variant.qat is not None  # the stage exists for such variants alone
    import_modelopt("modelopt.torch.quantization")  # absent: nothing is chosen or loaded in vain
    recipe, data = context.recipe, context.inputs["data"]
    finetune = FinetuneJob(
        backbone=recipe.backbone,
        settings=recipe.finetune,
        contract=read_contract(context.inputs["finetune"]),
        train=load_split(data, "train"),
        val=load_split(data, "val"),
        seed=recipe.seed,
        advance=context.progress.advance,
        tell=lambda text: context.progress.message(f"  {text}"),
    )
    job = QatJob(
        finetune=finetune,
        checkpoint=context.inputs["finetune"] / CHECKPOINT_NAME,
        settings=variant.qat,
        calibration=choose_calibration_set(context, variant).frames,
        method=variant.calibration,
    )
    return train_quantized(job, context.folder)


def read_training(folder: Path) -> dict[str, Any]:
    """What the training found.

    Raises:
        GateError: it failed; MissingExtraError: it was not tried here. Both in the stage's own words.
    """
    about = read_json(folder / ABOUT_NAME)
    if about["unavailable"]:
        raise MissingExtraError(about["unavailable"])
    if about["failure"]:
        raise GateError(about["failure"])
    training: dict[str, Any] = about["training"]
    return training


def tell_training(name: str, training: Mapping[str, Any]) -> str:
    """The result in a sentence, for the report."""
    top1 = training["val_top1"]
    kept = training["best_epoch"]
    return (
        f"{name} was trained for INT8, epochs: {training['epochs']}; the state after epoch {kept} is kept. Top-1 on "
        f"{training['val_images']} val images {top1['trained']:.4f}; {top1['calibrated']:.4f} before the first step, "
        f"{top1['largest_ranges']:.4f} with plain calibration, {top1['float']:.4f} in float; told by fake "
        "quantization in PyTorch, not by an engine."
    )
