"""Bytes of pictures, before any decoder computes a pixel."""

import io
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures import encoded as encoded_module
from edgekiln.runtime.pictures.encoded import FORMATS, open_encoded, read_at_most, read_encoded


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


def peak_bytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_reserves_the_size_of_the_picture_and_not_the_limit(tmp_path):
    """64 MiB a read count in full where memory is not overcommitted, and for each thread that reads."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG"))
    assert peak_bytes(lambda: read_encoded(path)) < 2**18
    piped = io.BytesIO(bytes(3 * 2**20))
    assert (
        peak_bytes(lambda: read_at_most(piped, 64 * 2**20)) < 8 * 2**20
    )  # the pieces, and what they make together


def test_no_more_than_asked_is_taken_from_a_pipe():
    piped = io.BytesIO(bytes(range(256)) * 2**14)  # 4 MiB
    assert read_at_most(piped, 2**21 + 1) == (bytes(range(256)) * 2**14)[: 2**21 + 1]
    assert read_at_most(io.BytesIO(b"short"), 2**21) == b"short"


@pytest.mark.skipif("not __import__('os').path.exists('/proc/version')", reason="needs /proc")
def test_a_file_that_holds_more_than_its_size_says_is_read_to_its_end(monkeypatch):
    """As files of /proc do, and files that somebody still writes into; the limit holds for them too."""
    version = Path("/proc/version")
    assert version.stat().st_size == 0
    assert read_encoded(version) == version.read_bytes()
    monkeypatch.setattr(encoded_module, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="/proc/version has 11 bytes, the limit is 10") as caught:
        read_encoded(version)
    assert caught.value.reason == "too_large"
