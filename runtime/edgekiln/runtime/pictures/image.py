"""The only way a picture becomes an array: ``prepare(picture, contract) -> uint8 (H, W, 3)``.

Training, calibration, evaluation, benchmark and runtime all call it. Its steps are modules of their own: reading what
is encoded (``encoded.py``), turning it upright and into RGB (``conversion.py``), resizing and cropping
(``fitting.py``). The policy for odd pictures is written beside each case there and, for people, in docs/images.md.
This module knows no model and does no normalization.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.conversion import convert_upright
from edgekiln.runtime.pictures.encoded import as_path, open_encoded, read_encoded
from edgekiln.runtime.pictures.fitting import check_resizing, fit, resized_size
from edgekiln.runtime.pictures.limits import MAX_BYTES, MAX_PIXELS
from edgekiln.runtime.pictures.refusals import told_as_image_errors

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BYTES", "ColorOrder", "Frame", "Picture", "check_encoded", "decode", "prepare"]

Frame: TypeAlias = NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Frame"
ColorOrder = Literal["rgb", "bgr"]


def prepare(picture: Picture, contract: Contract, *, color_order: ColorOrder = "rgb") -> Frame:
    """Decode, orient, convert to RGB, resize and crop.

    Args:
        picture: path, encoded bytes, PIL image, or uint8 array (H, W, 3).
        contract: size, resize rule and filter.
        color_order: of an array; other pictures know their own.

    Returns:
        uint8 (contract.height, contract.width, 3), RGB, C-contiguous, never sharing memory with ``picture``.

    Raises:
        ImageError: every failure, with a reason code.
    """
    if isinstance(picture, np.ndarray):
        _check_color_order(color_order)
        with told_as_image_errors(None):
            if _fits_already(picture, contract):  # Pillow would copy it four times
                return np.array(_checked_array(picture, color_order), order="C", copy=True)
    image = decode(picture, background=contract.background, color_order=color_order)
    with told_as_image_errors(None):
        return np.array(fit(image, contract), dtype=np.uint8)


def _fits_already(array: NDArray[np.generic], contract: Contract) -> bool:
    """Whether resizing and cropping would change nothing."""
    size = (contract.width, contract.height)
    return array.shape == (*size[::-1], 3) and resized_size(size, contract) == size


def decode(
    picture: Picture,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    color_order: ColorOrder = "rgb",
) -> Image.Image:
    """A picture of any accepted kind as an upright PIL image in mode RGB; raises ImageError."""
    from PIL import Image

    _check_color_order(color_order)
    if isinstance(picture, np.ndarray):
        with told_as_image_errors(None):
            return Image.fromarray(_checked_array(picture, color_order))
    if isinstance(picture, str | os.PathLike | bytes | bytearray | memoryview):
        path = as_path(picture) if isinstance(picture, str | os.PathLike) else None
        return convert_upright(open_encoded(read_encoded(picture), path), background, path, owned=True)
    if not isinstance(picture, Image.Image):
        raise ImageError(
            f"A picture must be a path, bytes, a PIL image or a uint8 array (H, W, 3), "
            f"got {type(picture).__name__}.",
            reason="type",
            hint="Of an open file, hand in what its read() gives.",
        )
    return convert_upright(picture, background, None, owned=False)


def _check_color_order(color_order: str) -> None:
    if color_order not in get_args(ColorOrder):
        raise ImageError(
            f"Unknown color order {color_order!r}; known: {', '.join(get_args(ColorOrder))}.", reason="type"
        )


def check_encoded(encoded: bytes, contract: Contract, *, whole: bool) -> None:
    """Raise the ImageError that ``prepare`` would, at less cost, and give no pixels.

    Args:
        encoded: the bytes of a picture file.
        contract: what it would be prepared for.
        whole: also decode, as a header shows nothing of what is damaged behind it. Of a JPEG all codes are read and
            an eighth of both sides is computed, which is several times faster; others are decoded in full.
    """
    image = open_encoded(encoded, None)
    check_resizing(image.size, resized_size(image.size, contract))
    if whole:
        image.draft(None, (1, 1))  # the decoder's smallest scale; does nothing to what is no JPEG
        convert_upright(image, contract.background, None, owned=True)


def _checked_array(array: NDArray[np.generic], color_order: ColorOrder) -> Frame:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"A picture array must be uint8 (height, width, 3), got {array.dtype} {array.shape}.",
            reason="type",
            hint="Convert it first; a batch goes through predict_batch.",
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"The array has over {MAX_PIXELS} pixels: {array.shape}.", reason="too_large")
    return np.ascontiguousarray(array[..., ::-1] if color_order == "bgr" else array)
