"""The calibration set: real training pictures, chosen once, checked, and recorded by digest.

This module decides whether a set is fit to calibrate with. How it is used is the quantizer's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import DataError
from edgekiln.runtime.spec import Frames

__all__ = ["MIN_IMAGES", "CalibrationSet", "check_calibration", "choose_calibration", "hash_frames"]

MIN_IMAGES = 32
_MAX_USELESS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Frames uint8 (N, H, W, 3) to calibrate with, their indices in train, their digest, and how many were passed over
    because the same pixels stand in a split that judges."""

    frames: Frames
    indices: NDArray[np.int64]
    digest: str
    left_out: int = 0


def choose_calibration(
    frames: Frames, count: int, seed: int, judging: Container[str] = frozenset()
) -> CalibrationSet:
    """Take ``count`` training frames at random, without repetition, or all where there are fewer.

    Args:
        frames: the train split, uint8 (N, H, W, 3). The pictures are still trained on.
        count: wanted number.
        seed: of the choice.
        judging: sha256 of the frames of val and test. Files that differ may decode to the same pixels; such a
            picture is passed over, since what was calibrated on cannot judge.

    Raises:
        DataError: too few, constant or duplicated pictures.
    """
    picked: list[int] = []
    left_out = 0
    for index in np.random.default_rng(seed).permutation(len(frames)):
        if len(picked) == count:
            break
        if hash_frames(frames[index : index + 1])[0] in judging:
            left_out += 1
        else:
            picked.append(int(index))
    chosen = np.sort(np.array(picked, np.int64))
    taken = np.array(frames[chosen])  # a copy: the split is memory-mapped
    check_calibration(taken)
    return CalibrationSet(taken, chosen, hashlib.sha256(taken.tobytes()).hexdigest(), left_out)


def hash_frames(frames: Frames) -> list[str]:
    """sha256 of each frame's bytes, of uint8 (N, H, W, 3)."""
    return [hashlib.sha256(np.ascontiguousarray(frame).data).hexdigest() for frame in frames]


def check_calibration(frames: Frames) -> None:
    """Refuse a set whose ranges would not be those of real pictures.

    Raises:
        DataError: fewer than 32 pictures, or over a tenth of them constant or repeated.
    """
    if len(frames) < MIN_IMAGES:
        raise DataError(
            f"Calibration has {len(frames)} images, wanted at least {MIN_IMAGES}.",
            hint="Add training pictures: INT8 ranges from fewer are those of chance.",
        )
    flat = frames.reshape(len(frames), -1)
    constant = int((flat.min(axis=1) == flat.max(axis=1)).sum())
    repeated = len(flat) - len({row.tobytes() for row in flat})
    for count, kind in ((constant, "of one single color"), (repeated, "repetitions of others")):
        if count > _MAX_USELESS_SHARE * len(flat):
            raise DataError(
                f"{count} of {len(flat)} calibration images are {kind}.",
                hint="Calibrate on real, distinct training pictures.",
            )
