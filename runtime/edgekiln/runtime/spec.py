"""What goes into an engine and what comes out: precisions, the frame check, the logits check."""

from __future__ import annotations

import math
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import InputError, NonFiniteError

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "Frames", "Logits", "Precision", "check_finite", "check_frames"]

Frames: TypeAlias = NDArray[np.uint8]
Logits: TypeAlias = NDArray[np.float32]

_FEW_LOGITS = 1024
_UINT8 = np.dtype(np.uint8)

INPUT_NAME = "image"
OUTPUT_NAME = "logits"


class Precision(str, Enum):
    """The number format that an engine's arithmetic is asked to use."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


def check_frames(frames: NDArray[np.generic], height: int, width: int) -> None:
    """Refuse anything but uint8 (N, height, width, 3).

    Raises:
        InputError: says what was got and what was wanted.
    """
    if (
        isinstance(frames, np.ndarray)
        and frames.dtype == _UINT8
        and frames.ndim == 4
        and frames.shape[1:] == (height, width, 3)
    ):
        return
    got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
    raise InputError(
        f"Got {got}, wanted uint8 (N, {height}, {width}, 3).",
        hint="Classifier.predict takes any picture; Session.run takes prepared frames only.",
    )


def check_finite(logits: Logits, engine: str) -> None:
    """Refuse NaN and infinity: an arg-max over them is an answer about nothing.

    Raises:
        NonFiniteError: names the first image of the batch concerned.
    """
    # Only a non-finite sum needs the slow look. Behind an inference the processor's caches hold little of numpy's
    # machinery, whatever the number of logits: Python's own sum of a few takes a fifth of the time then.
    if logits.size <= _FEW_LOGITS:
        total = sum(logits.ravel().tolist())
    else:
        with np.errstate(invalid="ignore"):  # inf - inf
            total = float(logits.sum(dtype=np.float64))
    if math.isfinite(total):
        return
    rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    raise NonFiniteError(
        f"The engine {engine} gave NaN or infinity for image {rows[0]} of the batch ({rows.size} in all).",
        hint="Do not ship this engine; a higher precision usually mends it.",
        images=tuple(rows.tolist()),
    )
