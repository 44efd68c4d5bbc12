"""The calibration pictures of a variant: real, of train, none that judges, and looked at before they are used."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.pipeline.data import SplitName, load_split, read_classes
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.workspace.stage_files import MODEL_NAME, StageContext
from edgekiln.runtime.spec import Frames, Precision

if TYPE_CHECKING:
    from edgekiln.export.calibration import CalibrationSet

__all__ = ["MOST_HELD_OUT", "choose_calibration_set", "examine_calibration_set", "hold_out"]

MOST_HELD_OUT = 256
"""Training pictures that methods of calibration are compared on."""


def choose_calibration_set(context: StageContext, variant: VariantSettings) -> CalibrationSet:
    """The pictures alone; the same for the same recipe and data. Raises DataError as ``choose_calibration`` does."""
    from edgekiln.export.calibration import choose_calibration

    train = load_split(context.inputs["data"], "train")
    return choose_calibration(
        train.frames, variant.calibration_images, context.recipe.seed, _hash_judging(context.inputs["data"])
    )


def hold_out(context: StageContext, calibration: CalibrationSet) -> Frames:
    """Training pictures uint8 (N, H, W, 3) that do not calibrate, nor any of the same pixels; none of val or test.

    At most 256, fewer where train has no more; the same for the same recipe and data.
    """
    from edgekiln.export.calibration import hash_frames

    frames = load_split(context.inputs["data"], "train").frames
    out = {*_hash_judging(context.inputs["data"]), *hash_frames(calibration.frames)}
    rest = np.setdiff1d(np.arange(len(frames)), calibration.indices)
    picked: list[int] = []
    for index in np.random.default_rng([context.recipe.seed, 1]).permutation(rest):
        if len(picked) == MOST_HELD_OUT:
            break
        (digest,) = hash_frames(frames[index : index + 1])
        if digest not in out:
            out.add(digest)
            picked.append(int(index))
    return np.array(frames[np.sort(np.array(picked, np.int64))])


@lru_cache(maxsize=1)  # a finished stage's folder does not change, and variants follow one another
def _hash_judging(data: Path) -> frozenset[str]:
    """Hashes of the frames of val and test, to keep them out; nothing else of test is looked at."""
    from edgekiln.export.calibration import hash_frames

    judges: tuple[SplitName, ...] = ("val", "test")
    return frozenset(digest for name in judges for digest in hash_frames(load_split(data, name).frames))


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
            judging=_hash_judging(data),
            source=(context.inputs["export"] / MODEL_NAME).read_bytes(),
            left_out=calibration.left_out,
        )
        about["calibration"]["doctor"] = found.to_dict()
        for warning in found.warnings:
            context.progress.message(f"  {variant.name}, calibration: {warning}")
    return calibration
