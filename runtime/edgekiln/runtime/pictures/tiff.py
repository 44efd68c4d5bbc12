"""TIFF as cameras write it: one page in strips, grey or RGB, 8 or 16 bits, not compressed, LZW or deflate.

The header is read here and nothing of it reaches a library: every number in it is checked against the file before a
strip is decoded. Deflate is zlib's, bounded by the size of a strip; LZW is libtiff's, through Pillow, which gets a new
header around the strips that says one byte a sample. So 16 bits of colour are whole, where Pillow gives upper bytes.
Format: TIFF, revision 6.0 (Adobe 1992); deflate and predictors: its supplement of 2002.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.limits import MAX_STRIPS, MAX_TAGS, check_size
from edgekiln.runtime.pictures.raster import Raster, Samples, split_rows
from edgekiln.runtime.pictures.refusals import COPY_AGAIN

__all__ = ["read_tiff"]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _EXTRA, _FORMAT = 317, 322, 338, 339
_DEFAULTS = {
    _BITS: (1,), _COMPRESSION: (1,), _FILL_ORDER: (1,), _ORIENTATION: (1,), _SAMPLES: (1,), _ROWS: (2**32 - 1,),
    _PLANAR: (1,), _PREDICTOR: (1,), _FORMAT: (1,),
}  # fmt: skip
"""Of a tag that is not there, as the format says."""
_TAGS = {*_DEFAULTS, _WIDTH, _HEIGHT, _PHOTOMETRIC, _OFFSETS, _COUNTS, _TILE_WIDTH, _EXTRA}
_TYPES = {1: "u1", 3: "u2", 4: "u4"}  # BYTE, SHORT, LONG: what these tags may be of
_PLAIN, _LZW, _DEFLATE, _OLD_DEFLATE = 1, 5, 8, 32946
_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 32773: "PackBits", 34712: "JPEG 2000", 34925: "LZMA",
    50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_GREY, _RGB = 1, 2
_COLORS = {
    0: "of negative colours (white is zero)", 3: "of palette colours", 4: "that is a mask", 5: "of CMYK inks",
    6: "of YCbCr colours", 8: "of LAB colours", 32803: "of a raw colour mosaic (DNG)", 34892: "of raw values (DNG)",
}  # fmt: skip
_FORMATS = {2: "of signed integers", 3: "of floating-point values"}
_WANTED = (
    "Save it with one page, in strips, grey or RGB, 8 or 16 bits, uncompressed, LZW or deflate; or as PNG."
)


@dataclass(frozen=True, slots=True)
class _Strips:
    """Where the rows lie, all of it checked against the file."""

    data: bytes
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    compression: int
    differenced: bool
    rows: int
    places: list[tuple[int, int]]

    @property
    def row_bytes(self) -> int:
        return self.size[0] * self.channels * self.dtype.itemsize

    def heights(self) -> Iterator[int]:
        """Rows of each strip: the last one has fewer."""
        for top in range(0, self.size[1], self.rows):
            yield min(self.rows, self.size[1] - top)


def read_tiff(data: bytes, name: str) -> Raster:
    """Read the header, and check it.

    Raises:
        ImageError: ``format`` or ``mode`` for a kind that is not taken, ``corrupt`` for a header that makes no sense,
            ``truncated`` for what lies outside of the file, ``too_large`` for a size or too many parts.
    """
    if data[2:4] in {b"+\0", b"\0+"}:
        raise _refuse(name, "of the kind BigTIFF, for files over 4 GB")
    order = "<" if data[:2] == b"II" else ">"
    tags = _read_tags(data, order, name)
    channels, bits = _read_kind(tags, name)
    size = _one(tags, _WIDTH, name), _one(tags, _HEIGHT, name)
    stored = channels * bits // 8
    bytes_per_pixel = 4 + stored if _one(tags, _COMPRESSION, name) == _PLAIN else max(2 * stored, 4 + stored)
    if 0 in size:
        raise _corrupt(name, f"it has {size[0]} x {size[1]} pixels")
    check_size(size, bytes_per_pixel, name)  # before strips are counted by it
    rows = min(_one(tags, _ROWS, name), size[1])
    if not rows:
        raise _corrupt(name, "its strips have no rows")
    strips = _Strips(
        data,
        size,
        channels,
        np.dtype(f"{order}u{bits // 8}"),
        _one(tags, _COMPRESSION, name),
        _one(tags, _COMPRESSION, name) != _PLAIN and _one(tags, _PREDICTOR, name) == 2,
        rows,
        _read_places(data, tags, -(-size[1] // rows), name),
    )
    decode = _decode_lzw if strips.compression == _LZW else _decode_strips
    return Raster(
        size,
        1 if channels == 1 else 3,
        8 if bits == 8 else 16,
        lambda: _to_samples(strips, decode(strips, name)),
        bytes_per_pixel,
        orientation=_one(tags, _ORIENTATION, name),
    )


# --------------------------------------------------------------------------------------------------------------
# The header


def _read_tags(data: bytes, order: str, name: str) -> dict[int, NDArray[np.int64]]:
    """Values of the tags that matter, of the one page."""
    start = _number(data, 4, 4, order)
    count = _number(data, start, 2, order)
    if not 8 <= start <= len(data) - 2:
        raise _truncated(name, "its tags lie outside of the file")
    if count > MAX_TAGS:
        raise ImageError(f"{name} has over {MAX_TAGS} tags.", reason="too_large", hint=_WANTED)
    end = start + 2 + 12 * count
    if end > len(data):
        raise _truncated(name, "its tags lie outside of the file")
    tags: dict[int, NDArray[np.int64]] = {}
    for place in range(start + 2, end, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, place)
        if tag in _TAGS and tag not in tags:
            tags[tag] = _read_values(data, order, (tag, kind, length, place + 8), name)
    # Some writers leave the place of the next page out at the end of a file.
    if end + 4 <= len(data) and _number(data, end, 4, order):
        raise _refuse(name, "of several pages")
    return tags


def _number(data: bytes, place: int, size: int, order: str) -> int:
    return int.from_bytes(data[place : place + size], "little" if order == "<" else "big")


def _read_values(data: bytes, order: str, entry: tuple[int, int, int, int], name: str) -> NDArray[np.int64]:
    tag, kind, length, place = entry
    if kind not in _TYPES or not length:
        raise _corrupt(name, f"its tag {tag} is of type {kind} and holds {length} values")
    if length > MAX_STRIPS:
        raise ImageError(f"{name} has over {MAX_STRIPS} strips.", reason="too_large", hint=_WANTED)
    dtype = np.dtype(f"{order}{_TYPES[kind]}")
    if length * dtype.itemsize > 4:
        place = _number(data, place, 4, order)
    if place + length * dtype.itemsize > len(data):
        raise _truncated(name, f"its tag {tag} lies outside of the file")
    return np.frombuffer(data, dtype, length, place).astype(np.int64)


def _one(tags: dict[int, NDArray[np.int64]], tag: int, name: str) -> int:
    """The one value of a tag, or of all its values where they are equal."""
    values = {*map(int, tags[tag])} if tag in tags else {*_DEFAULTS.get(tag, ())}
    if len(values) != 1:
        raise _corrupt(name, f"its tag {tag} has {len(values) or 'no'} values")
    return values.pop()


def _read_kind(tags: dict[int, NDArray[np.int64]], name: str) -> tuple[int, int]:
    """Channels and bits; refuses each kind that is not taken, by its name."""
    if _TILE_WIDTH in tags:
        raise _refuse(name, "of tiles")
    compression, color = _one(tags, _COMPRESSION, name), _one(tags, _PHOTOMETRIC, name)
    channels = _one(tags, _SAMPLES, name)
    if compression not in {_PLAIN, _LZW, _DEFLATE, _OLD_DEFLATE}:
        raise _refuse(name, f"compressed by {_COMPRESSIONS.get(compression, f'method {compression}')}")
    if color not in {_GREY, _RGB}:
        raise _refuse(name, _COLORS.get(color, f"of colours of kind {color}"))
    formats = {*map(int, tags.get(_FORMAT, (1,)))}
    if formats != {1}:
        odd = next(iter(formats - {1}))
        raise _refuse(name, _FORMATS.get(odd, f"of values of kind {odd}"), "mode")
    if _EXTRA in tags or channels != (1 if color == _GREY else 3):
        raise _refuse(name, f"of {channels} channels{', transparency among them' if _EXTRA in tags else ''}")
    bits = {*map(int, tags.get(_BITS, _DEFAULTS[_BITS]))}
    if bits not in ({8}, {16}):
        raise _refuse(name, f"of {', '.join(map(str, sorted(bits)))} bits a sample")
    if channels > 1 and _one(tags, _PLANAR, name) != 1:
        raise _refuse(name, "of planes, one for each colour")
    if _one(tags, _FILL_ORDER, name) != 1:
        raise _refuse(name, "of bits in reverse order")
    if compression != _PLAIN and _one(tags, _PREDICTOR, name) not in {1, 2}:
        raise _refuse(name, f"of predictor {_one(tags, _PREDICTOR, name)}")
    return channels, bits.pop()


def _read_places(
    data: bytes, tags: dict[int, NDArray[np.int64]], wanted: int, name: str
) -> list[tuple[int, int]]:
    """(offset, bytes) of each strip."""
    if wanted > MAX_STRIPS:
        raise ImageError(f"{name} has over {MAX_STRIPS} strips.", reason="too_large", hint=_WANTED)
    nothing = np.zeros(0, np.int64)
    offsets, counts = tags.get(_OFFSETS, nothing), tags.get(_COUNTS, nothing)
    if not len(offsets) == len(counts) == wanted:
        raise _corrupt(
            name, f"it has {len(offsets)} places of strips and {len(counts)} lengths, wanted {wanted}"
        )
    if int((offsets + counts).max()) > len(data):
        raise _truncated(name, "a strip ends outside of the file")
    if int(counts.sum()) > len(data):  # a decoder would be given the same bytes again and again
        raise _corrupt(name, "its strips lie upon each other")
    return list(zip(offsets.tolist(), counts.tolist(), strict=True))


# --------------------------------------------------------------------------------------------------------------
# Pixels


def _to_samples(strips: _Strips, decoded: Iterator[tuple[Any, int]]) -> Iterator[Samples]:
    """Rows of bytes as samples of this machine, with differences to the left neighbour summed up."""
    native = strips.dtype.newbyteorder("=")
    for piece, rows in decoded:
        samples = np.frombuffer(piece, strips.dtype, rows * strips.size[0] * strips.channels)
        for band in split_rows(samples.reshape(rows, strips.size[0], strips.channels)):
            # Sums wrap, as the differences did.
            yield np.cumsum(band, axis=1, dtype=native) if strips.differenced else band.astype(native)


def _decode_strips(strips: _Strips, name: str) -> Iterator[tuple[Any, int]]:
    """(bytes, rows) of each strip, of files without compression and with deflate."""
    view = memoryview(strips.data)
    for (offset, count), rows in zip(strips.places, strips.heights(), strict=True):
        piece, needed = view[offset : offset + count], rows * strips.row_bytes
        if strips.compression != _PLAIN:
            piece = memoryview(zlib.decompressobj().decompress(piece, needed))
        if len(piece) < needed:
            raise _truncated(name, f"a strip has {len(piece)} of {needed} bytes")
        yield piece[:needed], rows


def _decode_lzw(strips: _Strips, name: str) -> Iterator[tuple[Any, int]]:
    """The same of LZW. The rows are given to libtiff as grey of 8 bits, so that their bytes come back as they are."""
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

    width, height = strips.row_bytes, strips.size[1]
    with TiffImageFile(io.BytesIO(_wrap(strips))) as image:
        # Made here, since Pillow would take bytes for pixels in its own limit; ours was looked at before.
        image.im = Image.new("L", image.size).im
        image.load()
        rows = max(1, 2**20 // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            yield image.crop((0, top, width, bottom)).tobytes(), bottom - top


def _wrap(strips: _Strips) -> bytes:
    """A file of 8 bits with these strips and no other tags than a decoder needs."""
    count, pieces = len(strips.places), [strips.data[at : at + length] for at, length in strips.places]
    lengths = [len(piece) for piece in pieces]
    first = 8 + 2 + 9 * 12 + 4 + 8 * count  # behind header, tags, and the two lists
    offsets = [first + sum_ for sum_ in np.cumsum([0, *lengths[:-1]]).tolist()]
    lists = struct.pack(f"<{2 * count}I", *offsets, *lengths)
    at = first - 8 * count
    listed = (at, at + 4 * count) if count > 1 else (offsets[0], lengths[0])
    entries = [
        (_WIDTH, 1, strips.row_bytes), (_HEIGHT, 1, strips.size[1]), (_BITS, 1, 8), (_COMPRESSION, 1, _LZW),
        (_PHOTOMETRIC, 1, _GREY), (_OFFSETS, count, listed[0]), (_SAMPLES, 1, 1), (_ROWS, 1, strips.rows),
        (_COUNTS, count, listed[1]),
    ]  # fmt: skip
    tags = b"".join(struct.pack("<HHII", tag, 4, length, value) for tag, length, value in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return b"".join([head, tags, bytes(4), lists, *pieces])


# --------------------------------------------------------------------------------------------------------------
# Refusals


def _refuse(name: str, kind: str, reason: str = "format") -> ImageError:
    return ImageError(f"{name} is a TIFF {kind}.", reason=reason, hint=_WANTED)


def _corrupt(name: str, why: str) -> ImageError:
    return ImageError(f"{name} cannot be decoded: {why}.", reason="corrupt", hint=COPY_AGAIN)


def _truncated(name: str, why: str) -> ImageError:
    return ImageError(
        f"{name} cannot be decoded: it is truncated, {why}.", reason="truncated", hint=COPY_AGAIN
    )
