"""What a contract with ``sensor_bits`` takes besides: TIFF, PGM, PPM, PNG with 16 bits of colour, and uint16 arrays.

Pillow gives only the upper byte of 16 bits of colour, which of 12 bits are four. This module says which files are read
by this project's own readers and which are left to ``encoded.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.conversion import read_orientation
from edgekiln.runtime.pictures.encoded import is_netpbm, is_tiff, open_encoded
from edgekiln.runtime.pictures.netpbm import read_netpbm
from edgekiln.runtime.pictures.raster import Raster, Samples, split_rows
from edgekiln.runtime.pictures.refusals import name_picture, told_as_image_errors
from edgekiln.runtime.pictures.tiff import read_tiff

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["open_raster", "raster_of_array"]

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOR = 24, 25  # places of a PNG's bits a sample and of its kind of colour
_RGB, _GREY_ALPHA, _RGB_ALPHA = 2, 4, 6


def open_raster(data: bytes, path: Path | None) -> Raster | None:
    """Read the header of a file whose samples this project reads itself; ``None`` for every other one.

    Args:
        data: the whole file; of a mapped one, only the pages of its header are read.
        path: where it comes from, for messages.

    Raises:
        ImageError: it is of a kind that is not taken, damaged, or would cost too much to decode.
    """
    name = name_picture(path)
    with told_as_image_errors(path):
        if is_tiff(data):
            raster = read_tiff(data, name)
        elif is_netpbm(data):
            raster = read_netpbm(data, name)
        elif data[: len(_PNG)] == _PNG and data[_DEPTH : _DEPTH + 1] == b"\x10":
            if data[_COLOR] not in {_RGB, _GREY_ALPHA, _RGB_ALPHA}:
                return None  # grey: Pillow gives its 16 bits
            raster = _read_png(data, path)
        else:
            return None
        raster.check(name)
        return raster


def _read_png(data: bytes, path: Path | None) -> Raster:
    """16 bits of RGB, of which Pillow gives one byte at a time."""
    image = open_encoded(data, path)
    if image.mode != "RGB" or "transparency" in image.info:
        raise ImageError(
            f"{name_picture(path)} is a PNG of 16 bits a channel with transparency.",
            reason="mode",
            hint="Save it without transparency: a sensor has none.",
        )

    def bands() -> Iterator[Samples]:
        upper, lower = _load_bytes(data, path, "RGB;16B"), _load_bytes(data, path, "RGB;16L")
        for band, rest in zip(_rows_of(upper), _rows_of(lower), strict=True):
            yield band.astype(np.uint16) * 256 + rest

    # Both bytes of the pixels and the finished picture, in four bytes a pixel each.
    return Raster(image.size, 3, 16, bands, 12, orientation=read_orientation(image))


def _load_bytes(data: bytes, path: Path | None, layout: str) -> Image.Image:
    """One byte of each sample. ``RGB;16B`` takes the first of the two, ``RGB;16L`` the second."""
    image: Any = open_encoded(data, path)
    image.tile = [(*tile[:3], layout) for tile in image.tile]
    image.load()
    return image  # type: ignore[no-any-return] # Any, as Pillow's type has no ``tile``


def _rows_of(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def raster_of_array(array: NDArray[Any], *, reverse: bool) -> Raster:
    """Of uint16 (H, W) or (H, W, 3); ``reverse`` where its channels are BGR. Raises ImageError for another shape."""
    if array.ndim not in {2, 3} or array.shape[2:] not in {(), (3,)}:
        raise ImageError(
            f"A picture array of a camera must be uint16 (height, width) or (height, width, 3), got {array.shape}.",
            reason="type",
        )
    samples = array[..., np.newaxis] if array.ndim == 2 else array[..., ::-1] if reverse else array
    raster = Raster(
        (array.shape[1], array.shape[0]),
        1 if array.ndim == 2 else 3,
        16,
        lambda: split_rows(np.ascontiguousarray(samples)),
        4,
    )
    raster.check("The array")
    return raster
