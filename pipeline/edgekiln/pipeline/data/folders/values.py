"""Which values the pictures of a folder use, and what that says: the bits of a camera, or a range that is mostly empty.

Knows no classes and no splits.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from edgekiln.runtime.pictures.camera_files import open_raster
from edgekiln.runtime.pictures.encoded import CAMERA_SUFFIXES, read_encoded
from edgekiln.runtime.pictures.finding import LeftOut, walk_pictures
from edgekiln.runtime.pictures.image import open_picture
from edgekiln.runtime.pictures.levels import white_of
from edgekiln.runtime.pictures.limits import MAX_BYTES
from edgekiln.runtime.pictures.raster import Raster

__all__ = [
    "MeasuredValues",
    "describe_levels",
    "holds_camera_files",
    "measure_some",
    "propose_bits",
    "read_camera_size",
]

_MEASURED = 64  # pictures of a folder whose values are read
_SENSORS = (8, 10, 12, 14, 16)  # bits of cameras
_SHARE_IN_USE = 8  # of the range, one part at least should be used


@dataclass(frozen=True, slots=True)
class MeasuredValues:
    """The darkest and the brightest value of a picture, as its file holds them.

    Attributes:
        bits: of a sample, 8 or 16.
        stated: the brightest value that a PGM or PPM states.
    """

    bits: int
    low: int
    high: int
    stated: int | None = None


def measure_some(files: Sequence[Path]) -> Iterator[MeasuredValues]:
    """Of pictures all over the folder; those that cannot be read are told elsewhere."""
    wide = None  # the first picture of 8 bits that uses its range: no other one is then decoded
    for place in np.unique(np.linspace(0, len(files) - 1, _MEASURED).round().astype(int)):
        measured = _measure(files[place], wide)
        if measured is not None:
            yield measured
            if measured.bits == 8 and not describe_levels((measured.low, measured.high)):
                wide = measured


def _measure(path: Path, wide: MeasuredValues | None) -> MeasuredValues | None:
    try:
        opened = open_picture(read_encoded(path), path, 16)
        if isinstance(opened, Raster):
            if opened.bits == 8 and wide is not None:
                return wide
            ends = [(int(band.min()), int(band.max())) for band in opened.bands()]
            low, high = min(low for low, _ in ends), max(high for _, high in ends)
            return MeasuredValues(opened.bits, low, high, opened.white)
        if opened.mode.startswith("I"):
            values = np.asarray(opened)
            return MeasuredValues(16, int(values.min()), int(values.max()))
        if wide is not None:
            return wide
        opened.draft(None, (1, 1))  # the decoder's smallest scale
        bands = np.asarray(opened.convert("RGB").getextrema())
        return MeasuredValues(8, int(bands.min()), int(bands.max()))
    except Exception:  # a decoder may raise anything on garbage
        return None


def propose_bits(deep: Sequence[MeasuredValues]) -> int:
    """The bits of the camera that pictures of 16 bits a sample came from: as a file states, or the fewest that hold."""
    stated = [each.stated.bit_length() for each in deep if each.stated not in {None, white_of(16)}]
    highest = max((each.high for each in deep), default=0)
    return max(stated, default=next(bits for bits in _SENSORS if highest <= white_of(bits)))


def describe_levels(levels: Sequence[int] | None) -> list[str]:
    """A sentence where all frames together use less than an eighth of 0 to 255; ``None`` where none was decoded."""
    if levels is None or (levels[1] - levels[0]) * _SHARE_IN_USE >= 255:
        return []
    return [
        f"All pictures together use the levels {levels[0]} to {levels[1]} of 0 to 255, less than an eighth: a network "
        "sees little of them. Where a camera fills 10, 12 or 14 bits of 16-bit files, set data.sensor_bits to its "
        "bits; `edgekiln init` measures them."
    ]


def holds_camera_files(folder: Path) -> bool:
    """Whether most of the pictures below are TIFF, PGM or PPM; a few beside others are left out, and told."""
    camera = 0

    def tell(_: str, why: LeftOut) -> None:
        nonlocal camera
        camera += why is LeftOut.CAMERA

    # A folder that cannot be read is told by who lists the pictures.
    others = sum(len(names) for _, names in walk_pictures(folder, tell, lambda error: None))
    return camera > others


def read_camera_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of TIFF, PGM and PPM; ``None`` for others, and for what is too large.

    The file is mapped and not read: pixels are many megabytes. Raises ImageError, and whatever opening it does.
    """
    if path.suffix.lower() not in CAMERA_SUFFIXES or not 0 < path.stat().st_size <= MAX_BYTES:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        raster = open_raster(cast("bytes", data), path)
        return None if raster is None else raster.size
