"""Pictures of other sizes and kinds than the model's input, on which a product's own preparation is tried.

Made by the rule that makes canaries, and taken from nobody. Knows no engine.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekiln.runtime.bundles.canary_inputs import make_canaries

__all__ = ["MadePicture", "make_pictures"]

_LONGEST = 4096  # pixels: also for the largest input a picture stays within the limits of docs/images.md
_SPOTS, _BLOCKS, _GRADIENTS, _STRIPES = 0, 1, 3, 11  # places among the canaries
_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}
_ORIENTATION, _QUARTER_TURN = 0x0112, 6  # EXIF's tag, and: turn it clockwise by 90 degrees to see it upright


@dataclass(frozen=True, slots=True)
class MadePicture:
    """An encoded picture.

    Attributes:
        file: its name; the ending tells the format.
        shows: what of a preparation it tries.
        data: the file's bytes.
    """

    file: str
    shows: str
    data: bytes

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return Path(self.file).stem

    def decode(self) -> NDArray[Any]:
        """uint8 (height, width) or (height, width, channels), of a sensor's file uint16: the pixels as they are stored,
        nothing turned."""
        return np.asarray(Image.open(io.BytesIO(self.data)))


def make_pictures(height: int, width: int, sensor_bits: int | None = None) -> list[MadePicture]:
    """For a model that takes so many pixels; the same bytes with the same versions of Pillow and libjpeg-turbo.

    With ``sensor_bits`` there are also files of 16 bits a sample that use so many, as PNG and as TIFF.
    """
    large, wide = min(height * 3 // 2 + 1, _LONGEST), min(width * 2 + 1, _LONGEST)
    small, narrow = height // 2 + 1, width // 3 + 1
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER_TURN
    grey = _pixels(_GRADIENTS, large, narrow)[..., 1]
    alpha = np.dstack([_pixels(_BLOCKS, large, large), _pixels(_GRADIENTS, large, large)[..., :1]])
    return [
        _encode(
            "larger.png",
            "shrinking: the filter, antialiasing and another aspect ratio",
            _pixels(_SPOTS, large, wide),
        ),
        _encode("smaller.png", "enlarging: the filter and the edges", _pixels(_BLOCKS, small, narrow)),
        _encode(
            "stripes.png",
            "the order of the colours: red, green, blue",
            _pixels(_STRIPES, min(height, _LONGEST), min(width, _LONGEST)),
        ),
        _encode("grey.png", "grey is repeated over the three channels", grey),
        _encode("alpha.png", "transparency is laid upon the background, before it is resized", alpha),
        _encode(
            "turned.jpg",
            "EXIF orientation 6: turned clockwise before it is resized; and the decoder of JPEGs",
            _pixels(_SPOTS, large, wide),
            quality=90,
            exif=exif,
        ),
        *([] if sensor_bits is None else _make_sensor_pictures(grey, sensor_bits)),
    ]


def _make_sensor_pictures(grey: NDArray[np.uint8], bits: int) -> list[MadePicture]:
    """A ramp over all values of the sensor, from black to white."""
    ramp = np.arange(grey.size, dtype=np.uint64) * (2**bits - 1) // max(1, grey.size - 1)
    values = ramp.astype(np.uint16).reshape(grey.shape)
    shows = f"16-bit samples of which {bits} are used become levels before anything else"
    return [
        _encode("sensor.png", f"{shows}, as PNG", values),
        _encode("sensor-tiff.tif", f"{shows}, as TIFF", values),
    ]


def _pixels(index: int, height: int, width: int) -> NDArray[np.uint8]:
    return make_canaries(height, width, [index]).reshape(height, width, 3)


def _encode(file: str, shows: str, pixels: NDArray[Any], **options: Any) -> MadePicture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, _FORMATS[Path(file).suffix], **options)
    return MadePicture(file, shows, buffer.getvalue())
