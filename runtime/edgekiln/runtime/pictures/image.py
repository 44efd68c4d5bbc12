"""The only way a picture becomes an array: ``prepare(picture, contract) -> uint8 (H, W, 3)``.

Training, calibration, evaluation, benchmark and runtime all call it. The policy for odd pictures is written
beside each case below and, for people, in docs/images.md. This module knows no model and does no normalization.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.limits import MAX_BYTES, MAX_MEMORY, MAX_PIXELS, check_cost, check_structure

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ColorOrder",
    "Encoded",
    "Frame",
    "Picture",
    "apply_orientation",
    "check_encoded",
    "decode",
    "fit",
    "open_encoded",
    "prepare",
    "read_encoded",
    "read_orientation",
]

Frame: TypeAlias = NDArray[np.uint8]
Encoded: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Frame"
ColorOrder = Literal["rgb", "bgr"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SCALE_DOWN = "Scale it down: models see a few hundred pixels of a side."
_COPY_AGAIN = "Copy or export it again."
_STRIP_PIXELS = 2**20  # converted at a time: copies of a whole picture would be several times its size
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY_STEPS = {"L;2": 255 // 3, "L;4": 255 // 15}  # of PNG: how Pillow spreads two and four bits over eight
_KEY_ATTRIBUTE = "_edgekiln_transparent_color"
_EXIF_ORIENTATION = 0x0112

_log = logging.getLogger("edgekiln.runtime")


def prepare(picture: Picture, contract: Contract, *, color_order: ColorOrder = "rgb") -> Frame:
    """Decode, orient, convert to RGB, resize and crop.

    Args:
        picture: path, encoded bytes, PIL image, or uint8 array (H, W, 3).
        contract: size, resize rule and filter.
        color_order: of an array; other pictures know their own.

    Returns:
        uint8 (contract.height, contract.width, 3), RGB, C-contiguous, never sharing memory with ``picture``.

    Raises:
        ImageError: every failure, with a reason code.
    """
    if isinstance(picture, np.ndarray):
        _check_color_order(color_order)
        with _told_as_image_errors(None):
            if _fits_already(picture, contract):  # Pillow would copy it four times
                return np.array(_checked_array(picture, color_order), order="C", copy=True)
    image = decode(picture, background=contract.background, color_order=color_order)
    with _told_as_image_errors(None):
        return np.array(fit(image, contract), dtype=np.uint8)


def _fits_already(array: NDArray[np.generic], contract: Contract) -> bool:
    """Whether resizing and cropping would change nothing."""
    size = (contract.width, contract.height)
    return array.shape == (*size[::-1], 3) and _resized_size(size, contract) == size


def decode(
    picture: Picture,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    color_order: ColorOrder = "rgb",
) -> Image.Image:
    """A picture of any accepted kind as an upright PIL image in mode RGB; raises ImageError."""
    from PIL import Image

    _check_color_order(color_order)
    if isinstance(picture, np.ndarray):
        with _told_as_image_errors(None):
            return Image.fromarray(_checked_array(picture, color_order))
    if isinstance(picture, str | os.PathLike | bytes | bytearray | memoryview):
        path = _as_path(picture) if isinstance(picture, str | os.PathLike) else None
        return _upright_rgb(open_encoded(read_encoded(picture), path), background, path, owned=True)
    if not isinstance(picture, Image.Image):
        raise ImageError(
            f"A picture must be a path, bytes, a PIL image or a uint8 array (H, W, 3), "
            f"got {type(picture).__name__}.",
            reason="type",
            hint="Of an open file, hand in what its read() gives.",
        )
    return _upright_rgb(picture, background, None, owned=False)


def _check_color_order(color_order: str) -> None:
    if color_order not in get_args(ColorOrder):
        raise ImageError(
            f"Unknown color order {color_order!r}; known: {', '.join(get_args(ColorOrder))}.", reason="type"
        )


def check_encoded(encoded: bytes, contract: Contract, *, whole: bool) -> None:
    """Raise the ImageError that ``prepare`` would, at less cost, and give no pixels.

    Args:
        encoded: the bytes of a picture file.
        contract: what it would be prepared for.
        whole: also decode, as a header shows nothing of what is damaged behind it. Of a JPEG all codes are read and
            an eighth of both sides is computed, which is several times faster; others are decoded in full.
    """
    image = open_encoded(encoded, None)
    _check_resizing(image.size, _resized_size(image.size, contract))
    if whole:
        image.draft(None, (1, 1))  # the decoder's smallest scale; does nothing to what is no JPEG
        _upright_rgb(image, contract.background, None, owned=True)


def _checked_array(array: NDArray[np.generic], color_order: ColorOrder) -> Frame:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"A picture array must be uint8 (height, width, 3), got {array.dtype} {array.shape}.",
            reason="type",
            hint="Convert it first; a batch goes through predict_batch.",
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"The array has over {MAX_PIXELS} pixels: {array.shape}.", reason="too_large")
    return np.ascontiguousarray(array[..., ::-1] if color_order == "bgr" else array)


def read_encoded(picture: Encoded) -> bytes:
    """The bytes of a file, or those given, if they are not too many; raises ImageError."""
    if isinstance(picture, str | os.PathLike):
        return _read_file(_as_path(picture))
    with _told_as_image_errors(None):  # a memoryview may have been released
        size = picture.nbytes if isinstance(picture, memoryview) else len(picture)
        if size > MAX_BYTES:  # before they are copied
            raise _too_many_bytes("The picture", size, None)
        return bytes(picture)


def _as_path(picture: str | os.PathLike[str]) -> Path:
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
            data = file.read(MAX_BYTES + 1)
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
    if len(data) > MAX_BYTES:  # it has grown since
        raise _too_many_bytes(str(path), len(data), path)
    return data


def _open_without_waiting(name: str, flags: int) -> int:
    """Opening a pipe would wait until somebody writes into it."""
    return os.open(name, flags | os.O_NONBLOCK)


def _too_many_bytes(name: str, size: int, path: Path | None) -> ImageError:
    return ImageError(
        f"{name} has {size} bytes, the limit is {MAX_BYTES}.", reason="too_large", hint=_SCALE_DOWN, path=path
    )


def open_encoded(data: bytes, path: Path | None = None) -> Image.Image:
    """Read the header, and refuse what would cost too much to decode; raises ImageError.

    Args:
        data: a file of one of ``FORMATS``, at most ``MAX_BYTES``.
        path: where it comes from, for messages.
    """
    from PIL import Image, UnidentifiedImageError

    name = _name(path)
    with _told_as_image_errors(path):
        walk = check_structure(data, name)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name} is not a {', '.join(FORMATS)} picture ({len(data)} bytes, starts with {data[:8]!r}).",
                reason="format",
                hint="Convert it to JPEG or PNG." if data else "The file is empty: copy it again.",
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(
                f"{name} is too large: {error}.", reason="too_large", hint=_SCALE_DOWN
            ) from error
        check_cost(image, walk, name)
    return image


def _name(path: Path | None) -> str:
    return "The picture" if path is None else str(path)


@contextmanager
def _told_as_image_errors(path: Path | None) -> Iterator[None]:
    """Whatever goes wrong inside becomes an ImageError that names the file: a decoder may raise anything on garbage."""
    try:
        yield
    except ImageError as error:
        if path is not None and error.path is None:
            error.path = os.fspath(path)
        raise
    except MemoryError as error:
        raise ImageError(
            f"{_name(path)} cannot be decoded: memory ran out.", reason="memory", hint=_SCALE_DOWN, path=path
        ) from error
    except Exception as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise ImageError(
            f"{_name(path)} cannot be decoded: {error}.", reason=reason, hint=_COPY_AGAIN, path=path
        ) from error


def _upright_rgb(
    image: Image.Image, background: tuple[int, int, int], path: Path | None, *, owned: bool
) -> Image.Image:
    name = _name(path)
    if 0 in image.size:
        raise ImageError(f"{name} has {image.width} x {image.height} pixels.", reason="type", path=path)
    with _told_as_image_errors(path):
        check_cost(image, None, name)
        key = _transparent_color(image)
        image.load()  # of an animation this is the first frame
        orientation = read_orientation(image)
        converted = _to_rgb(image, background, key)
        if owned and converted is not image:
            image.close()  # before the next copy is made
        return apply_orientation(converted, orientation)


def read_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; EXIF that cannot be read turns nothing, as in any viewer."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # EXIF is a format of its own, with its own ways to be broken
        _log.warning("unreadable EXIF ignored: %s", error)
        return 1
    return orientation if isinstance(orientation, int) else 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright; an orientation that does not exist turns nothing."""
    from PIL import Image

    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if operation is None else image.transpose(operation)


def _transparent_color(image: Image.Image) -> object:
    """PNG's transparent color in the values of the pixels, where Pillow leaves it in those of the file; else ``None``.

    To be asked before the pixels are loaded: afterwards nothing of Pillow's tells how many bits they had, so a caller's
    image that will be asked again remembers.
    """
    key = given = image.info.get("transparency")
    stored = next((tile[3] for tile in getattr(image, "tile", ())), None)
    if isinstance(stored, str) and stored in _GREY_STEPS and isinstance(key, int):
        step = _GREY_STEPS[stored]
        key = key % (255 // step + 1) * step  # of the file's value only the lowest bits count
    elif stored == "RGB;16B" and isinstance(key, tuple):
        key = tuple(value >> 8 for value in key)
    else:
        remembered, meant = getattr(image, _KEY_ATTRIBUTE, (None, None))
        return meant if given is not None and given == remembered else None
    setattr(image, _KEY_ATTRIBUTE, (given, key))
    return key


def _to_rgb(image: Image.Image, background: tuple[int, int, int], key: object) -> Image.Image:
    """The picture itself where it is RGB; else a new one, converted strip by strip.

    ``key`` is the transparent color where ``image.info`` has it in other values.
    """
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if key is not None:
            strip.info["transparency"] = key
        converted.paste(_convert(strip, background), (0, top))
    return converted


def _convert(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES:
        return _convert_sixteen_bit(image, background)
    if image.mode == "F":
        raise ImageError(
            "A floating-point picture has no defined brightness range.",
            reason="mode",
            hint="Convert it to 8 or 16 bits first.",
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # Of premultiplied grey, Pillow converts to LA alone.
        upper = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGBA", upper.size, (*background, 255))
        return Image.alpha_composite(canvas, upper).convert("RGB")
    return image.convert("RGB")  # 1, L, P, CMYK, YCbCr, LAB, HSV: Pillow's own conversion


def _convert_sixteen_bit(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    converted = Image.fromarray(_scale_sixteen_bit(image)).convert("RGB")
    if "transparency" in image.info:
        transparent = np.asarray(image) == image.info["transparency"]
        converted.paste(background, mask=Image.fromarray(transparent))
    return converted


def _scale_sixteen_bit(image: Image.Image) -> Frame:
    """0..65535 to 0..255, rounded; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"A 32-bit picture with values {values.min()} to {values.max()} has no defined brightness range.",
            reason="mode",
        )
    return ((values + 128) // 257).astype(np.uint8)


def fit(image: Image.Image, contract: Contract) -> Image.Image:
    """Resize and crop as torchvision's Resize and CenterCrop do (v2.functional: the same integer rounding).

    Raises:
        ImageError: the picture is so long and narrow that resizing it would exceed ``MAX_MEMORY``.
    """
    from PIL import Image

    target_height, target_width = contract.height, contract.width
    filter_ = Image.Resampling[contract.interpolation.upper()]
    new_width, new_height = _resized_size(image.size, contract)
    _check_resizing(image.size, (new_width, new_height))
    resized = image.resize((new_width, new_height), filter_)
    if contract.resize == "squash":
        return resized
    left = round((new_width - target_width) / 2.0)
    top = round((new_height - target_height) / 2.0)
    return resized.crop((left, top, left + target_width, top + target_height))


def _resized_size(size: tuple[int, int], contract: Contract) -> tuple[int, int]:
    """(width, height) before the crop."""
    if contract.resize == "squash":
        return contract.width, contract.height
    shorter_side = contract.shorter_side or 0  # the contract guarantees it for this rule
    width, height = size
    if width <= height:
        return shorter_side, int(shorter_side * height / width)
    return int(shorter_side * width / height), shorter_side


def _check_resizing(before: tuple[int, int], after: tuple[int, int]) -> None:
    # Pillow shrinks the width first: the picture, what has the new width and the old height, and the result.
    pixels = before[0] * before[1] + after[0] * before[1] + after[0] * after[1]
    if 4 * pixels > MAX_MEMORY:
        raise ImageError(
            f"A picture of {before[0]} x {before[1]} is too elongated or too large to resize to "
            f"{after[0]} x {after[1]}: that needs {4 * pixels / 1e6:.0f} MB.",
            reason="too_large",
            hint=_SCALE_DOWN,
        )
