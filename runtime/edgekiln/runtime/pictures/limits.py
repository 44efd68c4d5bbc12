"""Limits on encoded pictures, told from their bytes before a decoder sees them: what one costs is known beforehand.

The number of pixels alone bounds neither time nor memory. A progressive JPEG keeps all its coefficients until the last
of its scans, and each scan walks through all of them; a WebP is decoded into several canvases; a million empty chunks
cost seconds in a reader that looks at each. This module counts what a header promises and what a walk over the segments
finds, and knows no pixels. The walk also tells a JPEG whose end was never written, where a decoder does not: it takes
the zeros in its place for coded data, and gives a picture that is grey from there on. Limits of a size apply to bytes
of any origin; that of memory holds for a decoder as Pillow calls it (measured by ``test_image_cost.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.refusals import COPY_AGAIN, SCALE_DOWN

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "MAX_CHUNKS",
    "MAX_EXIF_BYTES",
    "MAX_JUNK_BYTES",
    "MAX_MEMORY",
    "MAX_PIXELS",
    "MAX_SCANS",
    "MAX_SEGMENTS",
    "MAX_STRIPS",
    "MAX_TAGS",
    "Walk",
    "check_cost",
    "check_size",
    "check_structure",
]

MAX_BYTES = 64 * 2**20
"""Of a file or of bytes."""
MAX_PIXELS = 50_000_000
"""Of any picture: a camera of today has fewer."""
MAX_MEMORY = 420_000_000
"""Bytes of pixels and coefficients at the worst moment; with the file itself a decoding stays below 500 MB."""
MAX_SCANS = 50
"""Of a JPEG. Encoders write 1 to 20; each costs up to 1 ns for each pixel, whatever little it holds."""
MAX_SEGMENTS = 4096
"""Of a JPEG, and steps over fill bytes. Cameras write tens; Pillow looks at each for microseconds."""
MAX_FILL_BYTES = 4 * 1024 * 1024
"""Of 255s in a row in a JPEG, as erased flash holds them. Pillow reads such a run again for every 64 KiB of it."""
MAX_JUNK_BYTES = 1024 * 1024
"""Of what is no segment, before the first scan of a JPEG. Pillow looks for a marker byte by byte, in Python."""
MAX_CHUNKS = 65_536
"""Of a PNG. 64 MiB in libpng's customary pieces of 8 KiB are 8,192."""
MAX_EXIF_BYTES = 65_536
"""As many as a segment of a JPEG can hold. Entries may overlap, so that a reader takes up many times as much."""
MAX_TAGS = 1024
"""Of a TIFF. Cameras write tens."""
MAX_STRIPS = 65_536
"""Of a TIFF. Each is decoded by a call of its own."""

_REWRITE = "Save it again with any picture program."
_MAX_PHOTOSHOP = 10_000  # of Photoshop's resources, of twelve bytes or more, which Pillow reads one by one

_EOI, _SOS = 0xD9, 0xDA
_BARE = frozenset(
    {*range(0xD0, 0xDA), 0xC8, *range(0xF0, 0xFE)}
)  # markers without a length, as Pillow takes them
_FRAMES = frozenset(
    {0xC0, 0xC1, 0xC2}
)  # baseline, extended and progressive, Huffman coded: all that anybody writes
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PROGRESSIVE = 0xC2
# In coded data 255 stands before 0 or a restart. One 255, not any number: a search for runs is quadratic.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


@dataclass(slots=True)
class Walk:
    """What stands between the beginning and the end of a JPEG.

    Attributes:
        scans: how many.
        components: of the frame; 0 where none was found.
        buffered: whether a decoder has to keep the coefficients of the whole picture.
        ended: whether its end is marked.
    """

    scans: int = 0
    components: int = 0
    buffered: bool = False
    ended: bool = False


def check_structure(data: bytes, name: str) -> Walk | None:
    """Refuse bytes that would keep a reader busy before or beside the pixels; of a JPEG tell what was found.

    Bytes that make no sense pass, and so does what breaks off before a JPEG's first scan: the decoder refuses them,
    and soon.

    Raises:
        ImageError: ``too_large`` for too many parts, ``format`` for a coding that hardly anybody writes, ``truncated``
            for a JPEG without an end marker and for a WebP shorter than it says.
    """
    if data.startswith(b"\xff\xd8"):
        return _walk_jpeg(data, name)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _count_chunks(data, name)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_riff_length(data, name)
    return None


def check_cost(image: Image.Image, walk: Walk | None, name: str) -> None:
    """Refuse an opened picture by what its header promises.

    Raises:
        ImageError: ``too_large`` for its pixels, the memory that they need, or its EXIF; ``format`` for a BMP that is
            run-length encoded: Pillow decodes those in Python, and a jump in one may be any size; ``truncated`` and
            ``corrupt`` for a JPEG in which ``walk`` found no scan or no frame, so that its limits were not looked at.
    """
    if walk is not None and not walk.scans:
        raise _truncated(name, "it has no scan")
    if walk is not None and not walk.components:
        raise ImageError(
            f"{name} cannot be decoded: its segments cannot be followed.", reason="corrupt", hint=_REWRITE
        )
    check_size(image.size, _bytes_per_pixel(image, walk), name)
    if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise ImageError(f"{name} is a run-length encoded BMP.", reason="format", hint=_REWRITE)
    exif = (image.info.get("exif"), image.info.get("Raw profile type exif"))
    length = max(len(exif[0] or b""), len(exif[1] or "") // 2)  # the second one is hexadecimal
    if length > MAX_EXIF_BYTES:
        raise ImageError(
            f"{name} has EXIF of {length} bytes, the limit is {MAX_EXIF_BYTES}.",
            reason="too_large",
            hint=_REWRITE,
        )


def check_size(size: tuple[int, int], bytes_per_pixel: int, name: str) -> None:
    """Refuse a picture of (width, height) that takes so much at the worst moment; raises ImageError ``too_large``."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{name} has {width} x {height} pixels, the limit is {MAX_PIXELS}")
    needed = width * height * bytes_per_pixel
    if needed > MAX_MEMORY:
        raise _too_large(
            f"{name}, {width} x {height} pixels, needs {needed / 1e6:.0f} MB to be decoded, "
            f"the limit is {MAX_MEMORY / 1e6:.0f} MB"
        )


def _bytes_per_pixel(image: Image.Image, walk: Walk | None) -> int:
    """At the worst moment. Pillow keeps three or four bands in four bytes a pixel."""
    if image.format == "WEBP":
        return 16  # two canvases of the decoder, its answer, and Pillow's own copy
    stored = 1 if image.mode in {"1", "L", "P"} else 4
    if walk is not None and walk.buffered:
        return max(stored + 2 * walk.components, stored + 4)
    return stored + 4  # what was decoded, beside its conversion to RGB or its copy that is turned upright


def _walk_jpeg(data: bytes, name: str) -> Walk:
    """Count what a decoder would meet from the first segment to the end of the picture."""
    if b"\xff" * (MAX_FILL_BYTES + 1) in data:
        raise _too_many(name, "fill bytes in a row", MAX_FILL_BYTES)
    walk, resources = Walk(), 0
    for steps, (marker, body) in enumerate(_segments(data, name)):
        if steps >= MAX_SEGMENTS:
            raise _too_many(name, "segments", MAX_SEGMENTS)
        if marker in _OTHER_FRAMES:
            kind = "lossless, hierarchical or arithmetic coded"
            raise ImageError(f"{name} is a JPEG of a rare kind: {kind}.", reason="format", hint=_REWRITE)
        if marker in _FRAMES:
            walk.components = max(walk.components, *body[5:6])
            walk.buffered |= marker == _PROGRESSIVE
        elif marker == _SOS:
            walk.scans += 1
            walk.buffered |= walk.scans > 1 or body[:1] < bytes([walk.components])
        resources += body.count(b"8BIM")
        if resources > _MAX_PHOTOSHOP:
            raise _too_many(name, "Photoshop resources", _MAX_PHOTOSHOP)
        if walk.scans > MAX_SCANS:
            raise _too_many(name, "scans", MAX_SCANS)
        walk.ended = marker == _EOI
    if walk.scans and walk.components and not walk.ended:
        raise _truncated(name, "its end marker is missing")
    return walk


def _segments(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each, as Pillow reads them up to the first scan, and as libjpeg does from there.

    Both pass over what is no marker. A marker below 0xC0 has no length for libjpeg, if it takes it at all.
    """
    position, scanning, junk = 2, False, 0
    while position + 1 < len(data):
        if scanning:
            found = _NEXT_MARKER.search(data, position)
            position = len(data) if found is None else found.start()
        else:
            start = data.find(b"\xff", position)
            junk += start - position
            position = start
            if junk > MAX_JUNK_BYTES:
                raise _too_many(name, "bytes between its segments", MAX_JUNK_BYTES)
        if not 0 <= position < len(data) - 1:
            return
        marker = data[position + 1]
        if marker == _EOI and scanning:
            yield marker, b""
            return
        start = position + (1 if marker == 0xFF else 2)  # padding: a marker may follow any number of 255s
        if marker in _BARE or marker < 0xC0 or marker == 0xFF:
            yield marker, b""
            position = start
            continue
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        scanning |= marker == _SOS
        yield marker, data[start + 2 : position]


def _count_chunks(data: bytes, name: str) -> None:
    position = 8
    for _ in range(MAX_CHUNKS + 1):
        if position + 8 > len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise _too_many(name, "chunks", MAX_CHUNKS)


def _check_riff_length(data: bytes, name: str) -> None:
    promised = 8 + int.from_bytes(data[4:8], "little")
    if promised > len(data):
        raise _truncated(name, f"it has {len(data)} of {promised} bytes")


def _truncated(name: str, why: str) -> ImageError:
    return ImageError(
        f"{name} cannot be decoded: it is truncated, {why}.",
        reason="truncated",
        hint=COPY_AGAIN,
    )


def _too_large(what: str) -> ImageError:
    return ImageError(f"{what}.", reason="too_large", hint=SCALE_DOWN)


def _too_many(name: str, parts: str, limit: int) -> ImageError:
    return ImageError(f"{name} has over {limit} {parts}.", reason="too_large", hint=_REWRITE)
