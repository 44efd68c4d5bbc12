"""JPEGs decoded at a half, a quarter or an eighth of their size: the decoder computes fewer pixels from each block.

The picture that comes out is not the plain path's, so this is off until a model was seen to give the same class both
ways for every picture of an evaluation split: by the run that made its bundle, which records it, or by
``serving/agreement.py`` on pictures of one's own. Where ``simplejpeg`` is installed (extra ``simplejpeg``), it decodes
the scaled picture, to the same bits as Pillow: both are libjpeg-turbo, at the same fraction. What is left to the plain
path, with its answers and its errors: everything that is no JPEG, what would not be scaled, ``nearest`` (it picks
single pixels, so scaling changes which), and whatever fails here.

Bound: the decoder's picture keeps at least twice the pixels of the resized one along both sides, so that the
contract's own filter still does the last step (the ``reducing_gap`` of 2 in Pillow's ``Image.thumbnail``). White noise,
hard edges and photographs then differ from the plain path by at most `MEAN_BOUND` levels of 255 on average over a
picture and by `MAX_BOUND` in a single value; the tests hold all filters to it.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.pictures.conversion import apply_orientation, read_orientation
from edgekiln.runtime.pictures.encoded import open_encoded, read_encoded
from edgekiln.runtime.pictures.fitting import resized_size
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture, prepare

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BOUND",
    "MEAN_BOUND",
    "measure_difference",
    "prepare_fast",
    "prepare_scaled",
]

MEAN_BOUND = 1.5
MAX_BOUND = 20
_GAP = 2
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height


def prepare_fast(picture: Picture, contract: Contract, *, color_order: ColorOrder = "rgb") -> Frame:
    """As ``image.prepare``, within the bound that this module states; raises ImageError as it does."""
    scaled = prepare_scaled(picture, contract)
    return prepare(picture, contract, color_order=color_order) if scaled is None else scaled


def measure_difference(scaled: Frame, plain: Frame) -> tuple[float, int]:
    """Mean and largest absolute difference of two prepared pictures, in levels of 255."""
    difference = np.abs(scaled.astype(np.int16) - plain)
    return float(difference.mean()), int(difference.max())


def prepare_scaled(picture: Picture, contract: Contract) -> Frame | None:
    """The fast path alone: uint8 (height, width, 3), or ``None`` where the plain path is to be taken."""
    if contract.interpolation == "nearest" or not isinstance(picture, str | os.PathLike | bytes):
        return None
    try:
        data = read_encoded(picture)
        if not data.startswith(b"\xff\xd8"):
            return None
        with open_encoded(data) as image:
            if not _scale(image, contract):
                return None
            return prepare(_decode_scaled(data, image), contract)
    except (
        Exception
    ):  # memory that ran out included: the plain path's error says what it is, and names the file
        return None


def _decode_scaled(data: bytes, image: Image.Image) -> Image.Image:
    """``image``, whose decoder knows the fraction; decoded, and turned upright, where simplejpeg can do it."""
    library = _find_simplejpeg()
    if library is None or image.mode != "RGB":
        return image
    from PIL import Image

    orientation = read_orientation(image)
    width, height = image.size
    pixels = library.decode_jpeg(data, min_width=width, min_height=height, min_factor=1)
    if pixels.shape != (height, width, 3):  # another fraction than Pillow's would be another picture
        return image
    return apply_orientation(Image.fromarray(pixels), orientation)


@cache
def _find_simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None  # an accelerator that gives the same bits: its absence is no news


def _scale(image: Image.Image, contract: Contract) -> bool:
    """Tell the decoder which fraction will do; False where that is the whole, or leads to another resized size."""
    turned = read_orientation(image) in _TURNED
    before, wanted = image.size, _resized(image.size, contract, turned)
    image.draft(None, (_GAP * wanted[0], _GAP * wanted[1]))
    # A fraction is rounded up to whole pixels, which may turn the longer side by one and so move the crop.
    return image.size != before and _resized(image.size, contract, turned) == wanted


def _resized(size: tuple[int, int], contract: Contract, turned: bool) -> tuple[int, int]:
    """(width, height) that the contract resizes to, as the picture lies in its file, rounded as it rounds."""
    resized = resized_size(size, contract)
    return resized[::-1] if turned and contract.resize == "squash" else resized
