"""Encoded pictures: the bytes of a file or of a caller, and the picture in them, of which only the header is read.

What would cost too much to read or to decode is refused here. Knows no contract and decodes no pixel.
"""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.limits import MAX_BYTES, check_cost, check_structure
from edgekiln.runtime.pictures.png_text import drop_texts
from edgekiln.runtime.pictures.refusals import SCALE_DOWN, name_picture, told_as_image_errors

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "CAMERA_FORMATS",
    "CAMERA_SUFFIXES",
    "FORMATS",
    "SUFFIXES",
    "Encoded",
    "as_path",
    "is_netpbm",
    "is_tiff",
    "open_encoded",
    "read_at_most",
    "read_encoded",
]

Encoded: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Endings of files of these formats, in lower case. What a file holds is told by its bytes alone."""
CAMERA_FORMATS = ("TIFF", "PGM", "PPM")
"""Taken besides where a contract has ``sensor_bits``; see ``camera_files.py``."""
CAMERA_SUFFIXES = frozenset({".tif", ".tiff", ".pgm", ".ppm"})
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NETPBM_HEAD = re.compile(rb"P[1-7Ff]\s")
_PIECE_BYTES = 2**20


def read_encoded(picture: Encoded) -> bytes:
    """The bytes of a file, or those given, if they are not too many; raises ImageError."""
    if isinstance(picture, str | os.PathLike):
        return _read_file(as_path(picture))
    with told_as_image_errors(None):  # a memoryview may have been released
        size = picture.nbytes if isinstance(picture, memoryview) else len(picture)
        if size > MAX_BYTES:  # before they are copied
            raise _too_many_bytes("The picture", size, None)
        return bytes(picture)


def as_path(picture: str | os.PathLike[str]) -> Path:
    """A path as such; raises ImageError for what is none."""
    try:
        return Path(picture)
    except TypeError as error:  # its __fspath__ gives bytes, or nonsense
        raise ImageError(
            f"A path must be text, got {type(picture).__name__}: {error}.", reason="type"
        ) from error


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(
                    f"{path} cannot be read: it is a pipe or a device, no file.",
                    reason="unreadable",
                    hint="Read it yourself and hand in the bytes; `edgekiln predict BUNDLE -` reads standard input.",
                    path=path,
                )
            if status.st_size > MAX_BYTES:
                raise _too_many_bytes(str(path), status.st_size, path)
            # By its size: a read reserves as much memory as it is asked for, and MAX_BYTES are 64 MiB.
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:  # it has grown since, or its file system tells no sizes
                data += read_at_most(file, MAX_BYTES + 1 - len(data))
    except FileNotFoundError as error:
        raise ImageError(
            f"There is no file {path}.", reason="missing", hint="Check the path.", path=path
        ) from error
    except IsADirectoryError as error:
        raise ImageError(
            f"{path} cannot be read: it is a directory, no picture.",
            reason="unreadable",
            hint="Name its pictures.",
            path=path,
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(
            f"{path} cannot be read: {error}.",
            reason="unreadable",
            hint="Check the path and its permissions.",
            path=path,
        ) from error
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(str(path), len(data), path)
    return data


def read_at_most(file: BinaryIO, size: int) -> bytes:
    """The first ``size`` bytes of a file or pipe whose length nobody knows, in pieces: memory follows what comes."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _open_without_waiting(name: str, flags: int) -> int:
    """Opening a pipe would wait until somebody writes into it."""
    return os.open(name, flags | os.O_NONBLOCK)


def _too_many_bytes(name: str, size: int, path: Path | None) -> ImageError:
    return ImageError(
        f"{name} has {size} bytes, the limit is {MAX_BYTES}.", reason="too_large", hint=SCALE_DOWN, path=path
    )


def is_tiff(data: bytes) -> bool:
    """By its first bytes; BigTIFF too."""
    return data[:4] in _TIFF_HEADS


def is_netpbm(data: bytes) -> bool:
    """By its first bytes: PBM, PGM, PPM, PAM or PFM."""
    return _NETPBM_HEAD.match(data) is not None


def open_encoded(data: bytes, path: Path | None = None, *, sensor: bool = False) -> Image.Image:
    """Read the header, and refuse what would cost too much to decode; raises ImageError.

    Args:
        data: a file of one of ``FORMATS``, at most ``MAX_BYTES``.
        path: where it comes from, for messages.
        sensor: whether ``CAMERA_FORMATS`` are taken too, elsewhere: for messages.
    """
    from PIL import Image, UnidentifiedImageError

    name = name_picture(path)
    with told_as_image_errors(path):
        walk = check_structure(data, name)
        try:
            image = Image.open(io.BytesIO(drop_texts(data)), formats=FORMATS)
        except UnidentifiedImageError as error:
            wanted = (*FORMATS, *CAMERA_FORMATS) if sensor else FORMATS
            raise ImageError(
                f"{name} is not a {', '.join(wanted)} picture ({len(data)} bytes, starts with {data[:8]!r}).",
                reason="format",
                hint=_advise(data),
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"{name} is too large: {error}.", reason="too_large", hint=SCALE_DOWN) from error
        check_cost(image, walk, name)
    return image


def _advise(data: bytes) -> str:
    """What to do about a file of no known format."""
    if is_tiff(data) or is_netpbm(data):
        return (
            f"{', '.join(CAMERA_FORMATS)} are for models whose recipe has data.sensor_bits. For others convert it to "
            "JPEG or PNG."
        )
    return "Convert it to JPEG or PNG." if data else "The file is empty: copy it again."
