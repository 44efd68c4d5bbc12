"""Files of cameras, written byte by byte: Pillow writes no 16 bits of colour, and no kind that is to be refused."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile


def make_pgm(samples, white, *, comment=b""):
    """P5 of (H, W), P6 of (H, W, 3)."""
    height, width = samples.shape[:2]
    dtype = ">u2" if white > 255 else "u1"
    kind = b"P5" if samples.ndim == 2 else b"P6"
    return kind + b"\n" + comment + b"%d %d\n%d\n" % (width, height, white) + samples.astype(dtype).tobytes()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(samples, *, color=2, before=b""):
    """16 bits a channel of (H, W, channels)."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def lzw(data):
    """Packed by libtiff, as one strip of grey bytes."""
    buffer = io.BytesIO()
    Image.frombytes("L", (len(data), 1), data).save(buffer, "TIFF", compression="tiff_lzw")
    with TiffImageFile(io.BytesIO(buffer.getvalue())) as image:  # Image.open refuses what is large
        [start], [length] = image.tag_v2[273], image.tag_v2[279]
    return buffer.getvalue()[start : start + length]


PACK = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress}


def make_tiff(
    samples, *, order="<", compression=1, predictor=1, rows=None, tags=None, next_page=0, strips=None
):
    """Of (H, W) or (H, W, 3), uint8 or uint16.

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
    values = values.astype(values.dtype.newbyteorder(order))
    rows = rows or height
    strips = strips or [
        PACK[compression](values[top : top + rows].tobytes()) for top in range(0, height, rows)
    ]
    all_tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [samples.dtype.itemsize * 8] * channels),
        259: (3, [compression]), 262: (3, [1 if channels == 1 else 2]), 273: (4, [0] * len(strips)),
        277: (3, [channels]), 278: (4, [rows]), 279: (4, [len(strip) for strip in strips]), 317: (3, [predictor]),
        **(tags or {}),
    }  # fmt: skip
    all_tags = {number: entry for number, entry in sorted(all_tags.items()) if entry is not None}
    place = 8 + 2 + 12 * len(all_tags) + 4
    lists = {}
    for number, (kind, numbers) in all_tags.items():
        lists[number] = struct.pack(f"{order}{len(numbers)}{' BxHI'[kind] if kind != 1 else 'B'}", *numbers)
    outside = {number: packed for number, packed in lists.items() if len(packed) > 4}
    first = place + sum(map(len, outside.values()))
    if 273 in lists and not (tags and 273 in tags):
        offsets = np.cumsum([first, *map(len, strips[:-1])])
        lists[273] = struct.pack(f"{order}{len(strips)}I", *offsets)
        if 273 in outside:
            outside[273] = lists[273]
    entries = b""
    for number, (kind, numbers) in all_tags.items():
        value = lists[number].ljust(4, b"\0")
        if number in outside:
            value, place = struct.pack(f"{order}I", place), place + len(outside[number])
        entries += struct.pack(f"{order}HHI", number, kind, len(numbers)) + value
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(all_tags))
    return b"".join([head, entries, struct.pack(f"{order}I", next_page), *outside.values(), *strips])
