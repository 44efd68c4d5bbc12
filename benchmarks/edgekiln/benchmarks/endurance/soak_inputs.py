"""Made-up pictures of every kind that the runtime accepts, and of many that it must refuse. Always the same ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekiln.runtime.pictures.image import Frame, Picture

__all__ = ["make_inputs"]

_EXIF_ORIENTATION, _ROTATED = 0x0112, 6


def make_inputs() -> list[Picture]:
    """Good and bad ones; which is which, the runtime says when each is run for the first time."""
    return [*_good(), *_bad()]


def _pixels(seed: int, height: int, width: int) -> Frame:
    """Blots of colour, so that no two pictures have nearly the same answer."""
    from PIL import Image

    blots = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC))


def _encode(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _huge_header() -> bytes:
    """A BMP of 60,000 x 60,000 pixels, none of which is there. Small: what is large makes memory hard to compare."""
    header = bytearray(_encode_bmp())
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    return bytes(header)


def _encode_bmp() -> bytes:
    from PIL import Image

    return _encode(Image.new("RGB", (4, 4)), "BMP")


def _good() -> Iterator[Picture]:
    from PIL import Image

    images = [Image.fromarray(_pixels(seed, 240 + 7 * seed, 320 - 5 * seed)) for seed in range(8)]
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = _ROTATED
    yield _encode(images[0], "JPEG")
    yield _encode(images[1], "JPEG", exif=exif, progressive=True)
    yield _encode(images[2].convert("CMYK"), "JPEG")
    yield _encode(images[3].convert("L"), "PNG")
    yield _encode(images[4].convert("P"), "PNG")
    yield _encode(Image.fromarray(np.asarray(images[5].convert("L"), np.uint16) * 257), "PNG")
    yield _encode(images[6], "BMP")
    translucent = images[7].copy()
    translucent.putalpha(128)
    yield translucent
    yield _encode(Image.fromarray(_pixels(10, 200, 260)), "JPEG") + bytes(4096)  # padding behind the end
    yield _pixels(8, 200, 300)[:, ::-1]


def _bad() -> Iterator[Picture]:
    from PIL import Image

    image = Image.fromarray(_pixels(9, 240, 320))
    yield b""
    yield b"\xff\xd8\xff" + bytes(range(256))
    yield _encode(image, "JPEG")[:-2000]
    yield _encode(image, "JPEG")[:-2000] + bytes(2000)
    yield _huge_header()
    yield _encode(image, "PNG")[:-2000]
    yield _encode(image, "GIF")
    yield "no/such/picture.jpg"
    yield "."
    yield np.zeros((8, 8), np.uint8)
    yield np.zeros((8, 8, 3), np.float32)  # type: ignore[misc] # wrong on purpose
    yield Image.fromarray(np.zeros((8, 8), np.float32))
