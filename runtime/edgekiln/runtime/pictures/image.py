"""The only way a picture becomes an array: ``prepare(picture, contract) -> uint8 (H, W, 3)``.

Training, calibration, evaluation, benchmark and runtime all call it. Its steps are modules of their own: reading what
is encoded (``encoded.py``), turning it upright and into RGB (``conversion.py``), resizing and cropping
(``fitting.py``). The policy for odd pictures is written beside each case there and, for people, in docs/images.md.
This module knows no model and does no normalization.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.conversion import ConversionRules, convert_upright
from edgekiln.runtime.pictures.encoded import as_path, open_encoded, read_encoded
from edgekiln.runtime.pictures.fitting import check_resizing, fit, resized_size
from edgekiln.runtime.pictures.limits import MAX_BYTES, MAX_PIXELS
from edgekiln.runtime.pictures.refusals import name_picture, told_as_image_errors

if TYPE_CHECKING:
    from PIL import Image

    from edgekiln.runtime.pictures.raster import Raster

__all__ = [
    "MAX_BYTES",
    "ColorOrder",
    "Frame",
    "Picture",
    "check_encoded",
    "decode",
    "open_picture",
    "prepare",
]

Frame: TypeAlias = NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Frame | NDArray[np.uint16]"
ColorOrder = Literal["rgb", "bgr"]
_COLOR_ORDERS = get_args(ColorOrder)


def prepare(picture: Picture, contract: Contract, *, color_order: ColorOrder = "rgb") -> Frame:
    """Decode, orient, convert to RGB, resize and crop.

    Args:
        picture: path, encoded bytes, PIL image, or uint8 array (H, W, 3); with the contract's ``sensor_bits`` also
            uint16 array (H, W) or (H, W, 3).
        contract: size, resize rule and filter, background, bits of the sensor.
        color_order: of an array; other pictures know their own.

    Returns:
        uint8 (contract.height, contract.width, 3), RGB, C-contiguous, never sharing memory with ``picture``.

    Raises:
        ImageError: every failure, with a reason code.
    """
    if isinstance(picture, np.ndarray):
        _check_color_order(color_order)
        with told_as_image_errors(None):
            if picture.dtype != np.uint16 and _fits_already(
                picture, contract
            ):  # Pillow would copy it four times
                return np.array(_checked_array(picture, color_order), order="C", copy=True)
    image = decode(
        picture,
        background=contract.background,
        color_order=color_order,
        sensor_bits=contract.sensor_bits,
    )
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
    sensor_bits: int | None = None,
) -> Image.Image:
    """A picture of any accepted kind as an upright PIL image in mode RGB; raises ImageError."""
    from PIL import Image

    _check_color_order(color_order)
    rules = ConversionRules(background, sensor_bits)
    if isinstance(picture, np.ndarray):
        with told_as_image_errors(None):
            if sensor_bits is not None and picture.dtype == np.uint16:
                from edgekiln.runtime.pictures.camera_files import raster_of_array
                from edgekiln.runtime.pictures.raster import convert_raster

                raster = raster_of_array(picture, reverse=color_order == "bgr")
                return convert_raster(raster, sensor_bits, "The array")
            return Image.fromarray(_checked_array(picture, color_order))
    if isinstance(picture, str | os.PathLike | bytes | bytearray | memoryview):
        path = as_path(picture) if isinstance(picture, str | os.PathLike) else None
        return _convert(open_picture(read_encoded(picture), path, sensor_bits), rules, path)
    if not isinstance(picture, Image.Image):
        raise ImageError(
            f"A picture must be a path, bytes, a PIL image or a uint8 array (H, W, 3), "
            f"got {type(picture).__name__}.",
            reason="type",
            hint="Of an open file, hand in what its read() gives.",
        )
    return convert_upright(picture, rules, None, owned=False)


def open_picture(data: bytes, path: Path | None, sensor_bits: int | None) -> Image.Image | Raster:
    """Read the header of an encoded picture, and refuse what would cost too much; both have a ``size``.

    Raises:
        ImageError: it is of no kind that is taken, damaged, or too large.
    """
    if sensor_bits is not None:  # what few models need is imported for those: a start of the others is faster
        from edgekiln.runtime.pictures.camera_files import open_raster

        if (raster := open_raster(data, path)) is not None:
            return raster
    return open_encoded(data, path, sensor=sensor_bits is not None)


def _convert(opened: Image.Image | Raster, rules: ConversionRules, path: Path | None) -> Image.Image:
    from PIL import Image

    if isinstance(opened, Image.Image):
        return convert_upright(opened, rules, path, owned=True)
    from edgekiln.runtime.pictures.raster import convert_raster

    assert rules.sensor_bits is not None  # or it would have been no raster
    with told_as_image_errors(path):
        return convert_raster(opened, rules.sensor_bits, name_picture(path))


def _check_color_order(color_order: str) -> None:
    if color_order not in _COLOR_ORDERS:
        raise ImageError(
            f"Unknown color order {color_order!r}; known: {', '.join(_COLOR_ORDERS)}.", reason="type"
        )


def check_encoded(encoded: bytes, contract: Contract, *, whole: bool) -> None:
    """Raise the ImageError that ``prepare`` would, at less cost, and give no pixels.

    Args:
        encoded: the bytes of a picture file.
        contract: what it would be prepared for.
        whole: also decode, as a header shows nothing of what is damaged behind it. Of a JPEG all codes are read and
            an eighth of both sides is computed, which is several times faster; others are decoded in full.
    """
    opened = open_picture(encoded, None, contract.sensor_bits)
    check_resizing(opened.size, resized_size(opened.size, contract))
    if whole:
        from PIL import Image

        if isinstance(opened, Image.Image):
            opened.draft(None, (1, 1))  # the decoder's smallest scale; does nothing to what is no JPEG
        _convert(opened, ConversionRules(contract.background, contract.sensor_bits), None)


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
