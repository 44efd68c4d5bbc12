"""A picture of any mode and orientation as an upright one in RGB: EXIF, transparency, grey and 16 bits.

Knows no size that is wanted, and nothing of where a picture comes from but its name for messages.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.levels import scale_levels
from edgekiln.runtime.pictures.limits import check_cost
from edgekiln.runtime.pictures.refusals import name_picture, told_as_image_errors

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ConversionRules", "apply_orientation", "convert_upright", "read_orientation"]

_STRIP_PIXELS = 2**20  # converted at a time: copies of a whole picture would be several times its size
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_TWO_BYTES = re.compile(
    ";16[BLN]"
)  # of a sample, in Pillow's names; "BGR;16" of a BMP are two bytes of a pixel
_GREY_STEPS = {"L;2": 255 // 3, "L;4": 255 // 15}  # of PNG: how Pillow spreads two and four bits over eight
_KEY_ATTRIBUTE = "_edgekiln_transparent_color"
_EXIF_ORIENTATION = 0x0112

_log = logging.getLogger("edgekiln.runtime")


@dataclass(frozen=True, slots=True)
class ConversionRules:
    """What a contract says of pixels before they are resized; its fields of these names.

    Attributes:
        background: RGB, shown through what is transparent.
        sensor_bits: of 16-bit samples, 8 to 16; ``None`` scales them in full, and takes the usual formats alone.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    sensor_bits: int | None = None


def convert_upright(
    image: Image.Image, rules: ConversionRules, path: Path | None, *, owned: bool
) -> Image.Image:
    """The picture in mode RGB, turned as its EXIF says; raises ImageError.

    Args:
        image: opened, loaded or not.
        rules: those of a contract.
        path: where it comes from, for messages.
        owned: whether nobody else needs ``image``: it is then closed as soon as it is converted.
    """
    name = name_picture(path)
    if 0 in image.size:
        raise ImageError(f"{name} has {image.width} x {image.height} pixels.", reason="type", path=path)
    with told_as_image_errors(path):
        check_cost(image, None, name)
        if rules.sensor_bits is not None:
            _check_depth(image, name)
        key = _transparent_color(image)
        image.load()  # of an animation this is the first frame
        orientation = read_orientation(image)
        converted = _to_rgb(image, rules, key)
        if owned and converted is not image:
            image.close()  # before the next copy is made
        return apply_orientation(converted, orientation)


def read_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; EXIF that cannot be read turns nothing, as in any viewer."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # EXIF is a format of its own, with its own ways to be broken
        _log.warning("unreadable EXIF ignored: %s", error)
        return 1
    return orientation if isinstance(orientation, int) else 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright; an orientation that does not exist turns nothing."""
    from PIL import Image

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


def _transparent_color(image: Image.Image) -> object:
    """PNG's transparent color in the values of the pixels, where Pillow leaves it in those of the file; else ``None``.

    To be asked before the pixels are loaded: afterwards nothing of Pillow's tells how many bits they had, so a caller's
    image that will be asked again remembers.
    """
    key = given = image.info.get("transparency")
    stored = next((tile[3] for tile in getattr(image, "tile", ())), None)
    if isinstance(stored, str) and stored in _GREY_STEPS and isinstance(key, int):
        step = _GREY_STEPS[stored]
        key = key % (255 // step + 1) * step  # of the file's value only the lowest bits count
    elif stored == "RGB;16B" and isinstance(key, tuple):
        key = tuple(value >> 8 for value in key)
    else:
        remembered, meant = getattr(image, _KEY_ATTRIBUTE, (None, None))
        return meant if given is not None and given == remembered else None
    setattr(image, _KEY_ATTRIBUTE, (given, key))
    return key


def _check_depth(image: Image.Image, name: str) -> None:
    """Refuse a caller's picture of which Pillow has dropped or scaled bits, or would, as far as that can be told."""
    tiles = getattr(image, "tile", ())
    layouts = [
        str(part) for tile in tiles for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))
    ]
    halved = image.mode not in _SIXTEEN_BIT_MODES and any(map(_TWO_BYTES.search, layouts))
    scaled = image.format == "PPM" and (image.mode == "I" or any(tile[0] != "raw" for tile in tiles))
    if halved or scaled:
        raise ImageError(
            f"{name}, opened by Pillow as mode {image.mode}, does not keep the values of its file.",
            reason="mode",
            hint="Hand in its path, its bytes, or a uint16 array of its values.",
        )


def _to_rgb(image: Image.Image, rules: ConversionRules, key: object) -> Image.Image:
    """The picture itself where it is RGB; else a new one, converted strip by strip.

    ``key`` is the transparent color where ``image.info`` has it in other values.
    """
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if key is not None:
            strip.info["transparency"] = key
        converted.paste(_convert(strip, rules), (0, top))
    return converted


def _convert(image: Image.Image, rules: ConversionRules) -> Image.Image:
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES:
        return _convert_sixteen_bit(image, rules)
    if image.mode == "F":
        raise ImageError(
            "A floating-point picture has no defined brightness range.",
            reason="mode",
            hint="Convert it to 8 or 16 bits first.",
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # Of premultiplied grey, Pillow converts to LA alone.
        upper = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGBA", upper.size, (*rules.background, 255))
        return Image.alpha_composite(canvas, upper).convert("RGB")
    return image.convert("RGB")  # 1, L, P, CMYK, YCbCr, LAB, HSV: Pillow's own conversion


def _convert_sixteen_bit(image: Image.Image, rules: ConversionRules) -> Image.Image:
    from PIL import Image

    bits = rules.sensor_bits
    levels = (
        _scale_sixteen_bit(image) if bits is None else scale_levels(np.asarray(image), bits, "The picture")
    )
    converted = Image.fromarray(levels).convert("RGB")
    if "transparency" in image.info:
        transparent = np.asarray(image) == image.info["transparency"]
        converted.paste(rules.background, mask=Image.fromarray(transparent))
    return converted


def _scale_sixteen_bit(image: Image.Image) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"A 32-bit picture with values {values.min()} to {values.max()} has no defined brightness range.",
            reason="mode",
        )
    return ((values + 128) // 257).astype(np.uint8)
