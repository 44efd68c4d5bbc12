"""The only way a picture becomes an array: ``prepare(picture, contract) -> uint8 (H, W, 3)``.

Training, calibration, evaluation, benchmark and runtime all call it. The policy for odd pictures is written
beside each case below. This module knows no model and does no normalization.
"""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ColorOrder",
    "Frame",
    "Picture",
    "check_encoded",
    "decode",
    "prepare",
]

Frame: TypeAlias = NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Frame"
ColorOrder = Literal["rgb", "bgr"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000  # 150 MB decoded to RGB; larger is refused from the header, before decoding

_SCALE_DOWN = "Scale it down: models see a few hundred pixels of a side."
_COPY_AGAIN = "Copy or export it again."
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_EXIF_ORIENTATION = 0x0112

_log = logging.getLogger("edgekiln.runtime")


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
    image = _fit(decode(picture, background=contract.background, color_order=color_order), contract)
    return np.array(image, dtype=np.uint8)


def decode(
    picture: Picture,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    color_order: ColorOrder = "rgb",
) -> Image.Image:
    """A picture of any accepted kind as an upright PIL image in mode RGB; raises ImageError."""
    from PIL import Image

    if color_order not in get_args(ColorOrder):
        raise ImageError(
            f"Unknown color order {color_order!r}; known: {', '.join(get_args(ColorOrder))}.", reason="type"
        )
    if isinstance(picture, np.ndarray):
        return Image.fromarray(_checked_array(picture, color_order))
    path = None
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        picture = _read_bytes(path)
    if isinstance(picture, bytes | bytearray | memoryview):
        picture = _open_encoded(bytes(picture), path)
    if not isinstance(picture, Image.Image):
        raise ImageError(
            f"A picture must be a path, bytes, a PIL image or a uint8 array (H, W, 3), "
            f"got {type(picture).__name__}.",
            reason="type",
        )
    return _upright_rgb(picture, background, path)


def check_encoded(encoded: bytes, contract: Contract, *, whole: bool) -> None:
    """Raise the ImageError that ``prepare`` would, at less cost, and give no pixels.

    Args:
        encoded: the bytes of a picture file.
        contract: what it would be prepared for.
        whole: also decode, as a file whose end is missing shows nothing of it in its header. Of a JPEG all codes are
            read and an eighth of both sides is computed, which is several times faster; others are decoded in full.
    """
    image = _open_encoded(encoded, None)
    _check_size(image, "The picture", None)
    _resized_size(image.size, contract)
    if whole:
        image.draft(None, (1, 1))  # the decoder's smallest scale; does nothing to what is no JPEG
        _upright_rgb(image, contract.background, None)


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


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ImageError(
                    f"{path} has {size} bytes, the limit is {MAX_BYTES}.",
                    reason="too_large",
                    hint=_SCALE_DOWN,
                    path=path,
                )
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError(
            f"There is no file {path}.", reason="missing", hint="Check the path.", path=path
        ) from error
    except IsADirectoryError as error:
        raise ImageError(
            f"{path} cannot be read: it is a directory, no picture.",
            reason="unreadable",
            hint="Name its pictures.",
            path=path,
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(
            f"{path} cannot be read: {error}.",
            reason="unreadable",
            hint="Check the path and its permissions.",
            path=path,
        ) from error


def _open_encoded(data: bytes, path: Path | None) -> Image.Image:
    """Read the header only."""
    from PIL import Image, UnidentifiedImageError

    name = "The picture" if path is None else str(path)
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"{name} has over {MAX_BYTES} bytes.", reason="too_large", hint=_SCALE_DOWN, path=path
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a {', '.join(FORMATS)} picture ({len(data)} bytes, starts with {data[:8]!r}).",
            reason="format",
            hint="Convert it to JPEG or PNG." if data else "The file is empty: copy it again.",
            path=path,
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is too large: {error}.", reason="too_large", hint=_SCALE_DOWN, path=path
        ) from error
    except Exception as error:  # a decoder may raise anything on garbage
        raise ImageError(
            f"{name} is corrupt: {error}.", reason="corrupt", hint=_COPY_AGAIN, path=path
        ) from error
    return image


def _check_size(image: Image.Image, name: str, path: Path | None) -> None:
    if 0 in image.size:
        raise ImageError(f"{name} has {image.width} x {image.height} pixels.", reason="type", path=path)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, the limit is {MAX_PIXELS}.",
            reason="too_large",
            hint=_SCALE_DOWN,
            path=path,
        )


def _upright_rgb(image: Image.Image, background: tuple[int, int, int], path: Path | None) -> Image.Image:
    name = "The picture" if path is None else str(path)
    _check_size(image, name, path)
    try:
        image.load()  # of an animation this is the first frame
        return _to_rgb(_apply_orientation(image), background)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on garbage
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise ImageError(
            f"{name} cannot be decoded: {error}.", reason=reason, hint=_COPY_AGAIN, path=path
        ) from error


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Turn the picture upright as its EXIF says; EXIF that cannot be read turns nothing, as in any viewer."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # EXIF is a format of its own, with its own ways to be broken
        _log.warning("unreadable EXIF ignored: %s", error)
        return image
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if operation is None else image.transpose(operation)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        return Image.fromarray(_scale_sixteen_bit(image)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            "A floating-point picture has no defined brightness range.",
            reason="mode",
            hint="Convert it to 8 or 16 bits first.",
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # Of premultiplied grey, Pillow converts to LA alone.
        upper = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGBA", upper.size, (*background, 255))
        return Image.alpha_composite(canvas, upper).convert("RGB")
    return image.convert("RGB")  # 1, L, P, CMYK, YCbCr, LAB, HSV: Pillow's own conversion


def _scale_sixteen_bit(image: Image.Image) -> Frame:
    """0..65535 to 0..255, rounded; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"A 32-bit picture with values {values.min()} to {values.max()} has no defined brightness range.",
            reason="mode",
        )
    return ((values + 128) // 257).astype(np.uint8)


def _fit(image: Image.Image, contract: Contract) -> Image.Image:
    """Resize and crop as torchvision's Resize and CenterCrop do (v2.functional: the same integer rounding)."""
    from PIL import Image

    target_height, target_width = contract.height, contract.width
    filter_ = Image.Resampling[contract.interpolation.upper()]
    new_width, new_height = _resized_size(image.size, contract)
    resized = image.resize((new_width, new_height), filter_)
    if contract.resize == "squash":
        return resized
    left = round((new_width - target_width) / 2.0)
    top = round((new_height - target_height) / 2.0)
    return resized.crop((left, top, left + target_width, top + target_height))


def _resized_size(size: tuple[int, int], contract: Contract) -> tuple[int, int]:
    """(width, height) before the crop, of a picture of ``size``; raises ImageError where that is no picture's."""
    if contract.resize == "squash":
        return contract.width, contract.height
    shorter_side = contract.shorter_side or 0  # the contract guarantees it for this rule
    width, height = size
    if width <= height:
        new_width, new_height = shorter_side, int(shorter_side * height / width)
    else:
        new_width, new_height = int(shorter_side * width / height), shorter_side
    if new_width * new_height > MAX_PIXELS:
        raise ImageError(f"A picture of {width} x {height} is too elongated to resize.", reason="too_large")
    return new_width, new_height
