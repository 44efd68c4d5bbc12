"""Bytes of pictures, before any decoder computes a pixel."""

import io
from pathlib import Path

import pytest
from PIL import Image

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.encoded import FORMATS, open_encoded, read_encoded


def encoded(format_):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 6), "red").save(buffer, format_)
    return buffer.getvalue()


def test_a_file_and_bytes_of_any_kind_give_the_same_bytes(tmp_path):
    data = encoded("PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert all(
        read_encoded(given) == data for given in (path, str(path), data, bytearray(data), memoryview(data))
    )


@pytest.mark.parametrize("format_", FORMATS)
def test_the_size_is_known_from_the_header(format_):
    with open_encoded(encoded(format_)) as image:
        assert (image.format, image.size) == (format_, (9, 6))


def test_what_is_no_picture_is_named_by_its_file():
    with pytest.raises(ImageError, match=r"notes\.txt is not a JPEG, PNG, WEBP, BMP picture") as caught:
        open_encoded(b"no picture", Path("notes.txt"))
    assert (caught.value.reason, caught.value.path) == ("format", "notes.txt")
