"""Chunks of a PNG that carry no pixels do not matter, whatever their size; what turns a picture upright stays."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from edgekiln.runtime.pictures.image import decode
from edgekiln.runtime.pictures.png_text import drop_texts

LONG = zlib.compress(b"workflow " * 250_000)  # 2 MB of text, twice what Pillow takes


def encode(**options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("behind", [False, True], ids=["before-pixels", "behind-pixels"])
@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"prompt\0\0" + LONG),
        chunk(b"iTXt", b"prompt\0\x01\0\0\0" + LONG),
        chunk(b"tEXt", b"prompt\0" + b"w" * 3_000_000),
        chunk(b"iCCP", b"profile\0\0" + LONG),
    ],
    ids=["zTXt", "iTXt", "tEXt", "iCCP"],
)
def test_long_texts_do_not_matter(text, behind):
    data = encode()
    place = data.rindex(b"IEND") - 4 if behind else 33
    np.testing.assert_array_equal(decode(data[:place] + text + data[place:]), decode(data))


def test_what_turns_a_picture_upright_stays():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    info.add_text("Comment", "no pixels")
    turned = encode(pnginfo=info)
    assert b"Comment" not in drop_texts(turned)
    assert decode(turned).size == (9, 14)
    assert decode(encode()).size == (14, 9)


def test_bytes_without_texts_are_not_copied():
    data = encode()
    assert drop_texts(data) is data
    assert drop_texts(b"\xff\xd8tEXt") == b"\xff\xd8tEXt"
    cut = encode(pnginfo=None)[:50] + struct.pack(">I", 1000) + b"tEXt"
    assert drop_texts(cut) is cut
