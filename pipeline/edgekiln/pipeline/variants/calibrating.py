"""The calibration pictures of a variant: real, of train, none that judges, and looked at before they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekiln.pipeline.data import SplitName, load_split, read_classes
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.workspace.stage_files import MODEL_NAME, StageContext
from edgekiln.runtime.spec import Precision

if TYPE_CHECKING:
    from edgekiln.export.calibration import CalibrationSet

__all__ = ["choose_calibration_set", "examine_calibration_set"]


def choose_calibration_set(context: StageContext, variant: VariantSettings) -> CalibrationSet:
    """The pictures alone; the same for the same recipe and data. Raises DataError as ``choose_calibration`` does."""
    from edgekiln.export.calibration import choose_calibration

    train = load_split(context.inputs["data"], "train")
    return choose_calibration(
        train.frames, variant.calibration_images, context.recipe.seed, _hash_judging(context)
    )


def _hash_judging(context: StageContext) -> set[str]:
    """Hashes of the frames of val and test, to keep them out; nothing else of test is looked at."""
    from edgekiln.export.calibration import hash_frames

    judging: set[str] = set()
    judges: tuple[SplitName, ...] = ("val", "test")
    for name in judges:
        judging.update(hash_frames(load_split(context.inputs["data"], name).frames))
    return judging


def examine_calibration_set(
    context: StageContext, variant: VariantSettings, about: dict[str, Any]
) -> CalibrationSet:
    """The pictures; what they are goes into ``about``, and for INT8 what the calibration doctor finds."""
    from edgekiln.export.precision.calibration_doctor import describe_training, examine_calibration

    data = context.inputs["data"]
    train = load_split(data, "train")
    calibration = choose_calibration_set(context, variant)
    # An FP16 fallback comes second: what was found for INT8 stays.
    about.setdefault("calibration", {"images": len(calibration.frames), "digest": calibration.digest})
    if variant.precision is Precision.INT8 and "doctor" not in about["calibration"]:
        context.progress.advance(0, 1, "looking at the calibration images")
        found = examine_calibration(
            calibration.frames,
            train.labels[calibration.indices],
            training=describe_training(train.frames, train.labels, read_classes(data)),
            judging=_hash_judging(context),
            source=(context.inputs["export"] / MODEL_NAME).read_bytes(),
            left_out=calibration.left_out,
        )
        about["calibration"]["doctor"] = found.to_dict()
        for warning in found.warnings:
            context.progress.message(f"  {variant.name}, calibration: {warning}")
    return calibration
