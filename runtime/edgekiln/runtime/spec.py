"""What goes into an engine and what comes out: precisions, the frame check, the logits check."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Protocol, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import InputError, NonFiniteError

__all__ = [
    "INPUT_NAME",
    "OUTPUT_NAME",
    "DLPackArray",
    "Frames",
    "Logits",
    "Precision",
    "as_frames",
    "check_finite",
    "check_frames",
    "is_foreign_array",
]

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


class DLPackArray(Protocol):
    """An array of another library (PyTorch, CuPy, JAX) that can be read without a copy."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """A capsule of its memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device that holds it."""


def is_foreign_array(value: object) -> TypeGuard[DLPackArray]:
    """Whether it is an array of another library than numpy, on the host or on a device."""
    marks = ("__dlpack_device__", "__cuda_array_interface__")
    return not isinstance(value, np.ndarray | np.generic) and any(hasattr(value, mark) for mark in marks)


_HOST = {1, 3}  # DLDeviceType: the CPU's memory, and memory that CUDA has page-locked


def as_frames(frames: object) -> Frames:
    """An array of the host's memory as numpy's, without a copy; what is none is given back, for ``check_frames``.

    Raises:
        InputError: it is on a GPU, or cannot be shared.
    """
    if not is_foreign_array(frames):
        return cast("Frames", frames)
    if not hasattr(frames, "__dlpack_device__") or int(frames.__dlpack_device__()[0]) not in _HOST:
        raise InputError(
            f"Got {type(frames).__name__} in the memory of a device, and this engine reads the host's.",
            hint="Copy it to the host first, for example by .cpu(); TensorRT's sessions take arrays on their GPU.",
        )
    try:
        return cast("Frames", np.from_dlpack(cast("Any", frames)))
    except Exception as error:  # BufferError, TypeError, RuntimeError: as its library sees fit
        raise InputError(
            f"The {type(frames).__name__} cannot be read by DLPack: {error}",
            hint="Wanted uint8 frames; detach them from a graph of gradients.",
        ) from error


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
