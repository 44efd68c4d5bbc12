"""Files of cameras, written byte by byte: Pillow writes no 16 bits of colour, and no kind that is to be refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

Samples: TypeAlias = "NDArray[Any]"
Entry: TypeAlias = "tuple[int, Sequence[int]]"


def make_pgm(samples: Samples, white: int, *, comment: bytes = b"") -> bytes:
    """P5 of (H, W), P6 of (H, W, 3)."""
    height, width = samples.shape[:2]
    dtype = ">u2" if white > 255 else "u1"
    kind = b"P5" if samples.ndim == 2 else b"P6"
    return kind + b"\n" + comment + b"%d %d\n%d\n" % (width, height, white) + samples.astype(dtype).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(samples: Samples, *, color: int = 2, before: bytes = b"") -> bytes:
    """16 bits a channel of (H, W, channels)."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def lzw(data: bytes) -> bytes:
    """Packed by libtiff, as one strip of grey bytes."""
    buffer = io.BytesIO()
    Image.frombytes("L", (len(data), 1), data).save(buffer, "TIFF", compression="tiff_lzw")
    with TiffImageFile(io.BytesIO(buffer.getvalue())) as image:  # Image.open refuses what is large
        [start], [length] = image.tag_v2[273], image.tag_v2[279]
    return buffer.getvalue()[start : start + length]


PACK: dict[int, Callable[[bytes], bytes]] = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress}


def make_tiff(
    samples: Samples,
    *,
    order: str = "<",
    compression: int = 1,
    predictor: int = 1,
    rows: int | None = None,
    tags: Mapping[int, Entry | None] | None = None,
    strips: Sequence[bytes] | None = None,
) -> bytes:
    """Of (H, W) or (H, W, channels), uint8 or uint16.

    Args:
        rows: of a strip; all by default.
        tags: more of them or others, ``{number: (type, values)}``; ``None`` in place of that leaves one out.
        strips: what is written in place of the packed rows.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    values = samples.reshape(height, width, channels)
    if predictor == 2:
        values = np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))  # wraps
    values = values.astype(values.dtype.newbyteorder("<" if order == "<" else ">"))
    rows = rows or height
    strips = strips or [
        PACK[compression](values[top : top + rows].tobytes()) for top in range(0, height, rows)
    ]
    wanted: dict[int, Entry | None] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [samples.dtype.itemsize * 8] * channels),
        259: (3, [compression]), 262: (3, [1 if channels == 1 else 2]), 273: (4, [0] * len(strips)),
        277: (3, [channels]), 278: (4, [rows]), 279: (4, [len(strip) for strip in strips]), 317: (3, [predictor]),
        **(tags or {}),
    }  # fmt: skip
    kept = {number: entry for number, entry in sorted(wanted.items()) if entry is not None}
    start = 8 + 2 + 12 * len(kept) + 4
    first = start + sum(size for size in map(_size, kept.values()) if size > 4)
    if 273 in kept and 273 not in (tags or {}):
        kept[273] = (4, np.cumsum([first, *map(len, strips[:-1])]).tolist())
    entries, lists = b"", b""
    for number, (kind, numbers) in kept.items():
        packed = struct.pack(f"{order}{len(numbers)}{_LETTERS[kind]}", *numbers)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + len(lists))
            lists, packed = lists + packed, place
        entries += struct.pack(f"{order}HHI", number, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(kept))
    return b"".join([head, entries, bytes(4), lists, *strips])


_LETTERS = {3: "H", 4: "I"}  # of the types SHORT and LONG


def _size(entry: Entry) -> int:
    return len(entry[1]) * (2 if entry[0] == 3 else 4)
