"""A picture as plain rows of samples of 8 or 16 bits, and how it becomes an upright one in RGB.

What ``tiff.py``, ``netpbm.py`` and ``camera_files.py`` read ends here. Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.conversion import apply_orientation
from edgekiln.runtime.pictures.levels import scale_levels, white_of
from edgekiln.runtime.pictures.limits import check_size
from edgekiln.runtime.pictures.refusals import COPY_AGAIN

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Raster", "Samples", "convert_raster", "split_rows"]

Samples: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16]"
_BAND_SAMPLES = 2**20  # converted at a time: copies of a whole picture would be several times its size
_TURNED_BYTES = 8  # a pixel, of RGB and its copy that is turned; Pillow keeps three bands in four bytes


@dataclass(frozen=True, slots=True)
class Raster:
    """A picture of which the header was read, and no pixel.

    Attributes:
        size: (width, height), pixels.
        channels: 1 for grey, 3 for RGB.
        bits: of a sample as it is stored.
        bands: decodes; gives uint8 or uint16 (rows, width, channels) from the top to the bottom.
        bytes_per_pixel: that ``bands`` takes at the worst moment, the finished RGB included.
        white: the brightest value that the file itself states, where it states one.
        orientation: as EXIF counts it, 1 to 8.
    """

    size: tuple[int, int]
    channels: Literal[1, 3]
    bits: Literal[8, 16]
    bands: Callable[[], Iterator[Samples]]
    bytes_per_pixel: int
    white: int | None = None
    orientation: int = 1

    def check(self, name: str) -> None:
        """Refuse what would cost too much to decode; raises ImageError."""
        if 0 in self.size:
            raise ImageError(
                f"{name} has {self.size[0]} x {self.size[1]} pixels.", reason="type", hint=COPY_AGAIN
            )
        check_size(self.size, max(self.bytes_per_pixel, _TURNED_BYTES), name)


def convert_raster(raster: Raster, sensor_bits: int, name: str) -> Image.Image:
    """The picture in mode RGB, upright; 16-bit samples scaled by ``levels.py``, those of 8 bits as they are.

    Raises:
        ImageError: ``mode`` for values that so many bits do not hold, or a file that states another range.
    """
    from PIL import Image

    if raster.bits == 16 and raster.white not in {None, white_of(16), white_of(sensor_bits)}:
        raise ImageError(
            f"{name} says that its brightest value is {raster.white}; of {sensor_bits} bits it is "
            f"{white_of(sensor_bits)}.",
            reason="mode",
            hint="data.sensor_bits must be the camera's own bits.",
        )
    converted, top = None, 0
    for band in raster.bands():
        # Behind the first band: a decoder of one strip has then let go of what it needed besides.
        converted = converted or Image.new("RGB", raster.size)
        levels = scale_levels(band, sensor_bits, name) if raster.bits == 16 else band.astype(np.uint8)
        part = Image.fromarray(levels[..., 0] if raster.channels == 1 else levels)
        converted.paste(part.convert("RGB"), (0, top))
        top += len(band)
    assert converted is not None  # a picture has rows
    return apply_orientation(converted, raster.orientation)


def split_rows(samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Parts of (rows, width, channels) that are converted at once, without copies."""
    rows = max(1, _BAND_SAMPLES // max(1, samples.shape[1] * samples.shape[2]))
    for top in range(0, len(samples), rows):
        yield samples[top : top + rows]
