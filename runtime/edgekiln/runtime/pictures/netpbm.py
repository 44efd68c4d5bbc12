"""PGM and PPM of the binary kinds P5 and P6, of one or two bytes a sample, as cameras write them.

Pillow is not asked: it scales two-byte samples to 16 bits pixel by pixel, in Python, and gives 8 bits of colour. The
text kinds P2 and P3 are refused: no camera writes them, and reading a number costs many times a sample. Format:
https://netpbm.sourceforge.net/doc/pgm.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.levels import white_of
from edgekiln.runtime.pictures.raster import Raster, Samples, split_rows
from edgekiln.runtime.pictures.refusals import COPY_AGAIN

__all__ = ["read_netpbm"]

_HEADER_BYTES = 65_536  # with comments
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([56])" + (_GAP + rb"(\d{1,9})") * 3 + rb"\s")
_ANOTHER = re.compile(rb"\s*P[1-7]\s")
_RARE = {
    b"P1": "a bitmap of one bit (PBM)",
    b"P2": "written in text (PGM of kind P2)",
    b"P3": "written in text (PPM of kind P3)",
    b"P4": "a bitmap of one bit (PBM)",
    b"P7": "a PAM",
    b"PF": "of floating-point values (PFM)",
    b"Pf": "of floating-point values (PFM)",
}
_REWRITE = "Save it as a binary PGM (P5) or PPM (P6), as TIFF or as PNG."


def read_netpbm(data: bytes, name: str) -> Raster:
    """Read the header.

    Raises:
        ImageError: ``format`` for another kind and for several pictures in one file, ``corrupt`` for a header that
            makes no sense, ``mode`` for a brightest value of one byte that is not 255, ``truncated`` for missing rows.
    """
    if (rare := _RARE.get(data[:2])) is not None:
        raise ImageError(f"{name} is {rare}.", reason="format", hint=_REWRITE)
    found = _HEADER.match(data[:_HEADER_BYTES])
    if found is None:
        raise ImageError(
            f"{name} cannot be decoded: its PGM or PPM header is damaged.", reason="corrupt", hint=COPY_AGAIN
        )
    kind, width, height, white = map(int, found.groups())
    _check_white(white, name)
    channels, dtype = 1 if kind == 5 else 3, np.dtype(np.uint8 if white <= white_of(8) else ">u2")
    start, needed = found.end(), width * height * channels * dtype.itemsize
    if len(data) - start < needed:
        raise ImageError(
            f"{name} cannot be decoded: it is truncated, it has {len(data) - start} of {needed} bytes of pixels.",
            reason="truncated",
            hint=COPY_AGAIN,
        )
    if _ANOTHER.match(data[start + needed : start + needed + _HEADER_BYTES]):
        raise ImageError(
            f"{name} holds several pictures.", reason="format", hint="Save each in a file of its own."
        )

    def bands() -> Iterator[Samples]:
        samples: NDArray[Any] = np.frombuffer(data, dtype, width * height * channels, start)
        for band in split_rows(samples.reshape(height, width, channels)):
            yield band.astype(np.uint8) if dtype.itemsize == 1 else band.astype(np.uint16)

    return Raster(
        (width, height), 1 if channels == 1 else 3, 8 if dtype.itemsize == 1 else 16, bands, 4, white
    )


def _check_white(white: int, name: str) -> None:
    if not 1 <= white <= white_of(16):
        raise ImageError(
            f"{name} cannot be decoded: its brightest value is {white}, wanted 1 to 65535.",
            reason="corrupt",
            hint=COPY_AGAIN,
        )
    if white < white_of(8):
        raise ImageError(
            f"{name} says that its brightest value is {white}; of one byte a sample, 255 is taken.",
            reason="mode",
            hint=_REWRITE,
        )
