"""JPEGs decoded at a half, a quarter or an eighth of their size: the decoder computes fewer pixels from each block.

The picture that comes out is not the plain path's, so this is off until `establish_agreement` has seen the model give
the same class both ways for every picture of an evaluation split. What is left to the plain path, with its answers
and its errors: everything that is no JPEG, what would not be scaled, ``nearest`` (it picks single pixels, so scaling
changes which), and whatever fails here.

Bound: the decoder's picture keeps at least twice the pixels of the resized one along both sides, so that the
contract's own filter still does the last step (the ``reducing_gap`` of 2 in Pillow's ``Image.thumbnail``). White noise,
hard edges and photographs then differ from the plain path by at most `MEAN_BOUND` levels of 255 on average over a
picture and by `MAX_BOUND` in a single value; the tests hold all filters to it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.runtime.classifier import Classifier, predict_frames
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError, ImageError, UsageError
from edgekiln.runtime.image import MAX_BYTES, MAX_PIXELS, ColorOrder, Frame, Picture, prepare
from edgekiln.runtime.loaded import LoadedModel

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BOUND", "MEAN_BOUND", "FastDecodeEvidence", "establish_agreement", "prepare_fast"]

MEAN_BOUND = 1.5
MAX_BOUND = 20
_GAP = 2
_EXIF_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF values that swap width and height


@dataclass(frozen=True, slots=True)
class FastDecodeEvidence:
    """Why fast decoding was allowed.

    Attributes:
        pictures: how many were compared.
        scaled: how many of them the fast path decodes in another way than the plain path; all gave the same class.
        mean_difference: largest mean absolute difference of a prepared picture, in levels of 255.
    """

    pictures: int
    scaled: int
    mean_difference: float


def prepare_fast(picture: Picture, contract: Contract, *, color_order: ColorOrder = "rgb") -> Frame:
    """As ``image.prepare``, within the bound that this module states; raises ImageError as it does."""
    scaled = _prepare_scaled(picture, contract)
    return prepare(picture, contract, color_order=color_order) if scaled is None else scaled


def establish_agreement(
    classifier: Classifier, pictures: Iterable[Picture], *, minimum: int = 100
) -> FastDecodeEvidence:
    """Turn fast decoding on for the model that ``classifier`` serves, if each picture gets the same class both ways.

    It is off again after a reload: what was shown of one model says nothing of the next.

    Args:
        classifier: the one to turn it on for.
        pictures: the evaluation split, or pictures like those to come.
        minimum: how many of them have to be such that the fast path scales them.

    Raises:
        GateError: a picture gets another class; it stays off.
        UsageError: fewer than ``minimum`` pictures are evidence.
        ImageError: a picture cannot be read.
    """
    compared, differences, flipped = 0, [], []
    with classifier.hold() as model:
        for compared, picture in enumerate(pictures, start=1):
            plain = prepare(picture, model.contract)  # also where it is not compared: it may be unreadable
            if (scaled := _prepare_scaled(picture, model.contract)) is None:
                continue
            differences.append(float(np.abs(scaled.astype(np.int16) - plain).mean()))
            if not _same_class(model, plain, scaled):
                flipped.append(compared - 1)
        _check_evidence(compared, len(differences), flipped, minimum)
        model.fast_decode = True
    return FastDecodeEvidence(compared, len(differences), max(differences))


def _same_class(model: LoadedModel, plain: Frame, scaled: Frame) -> bool:
    first, second = predict_frames(model, [plain, scaled])
    return first.index == second.index


def _check_evidence(compared: int, scaled: int, flipped: list[int], minimum: int) -> None:
    if flipped:
        raise GateError(
            f"Fast decoding gives {len(flipped)} of {scaled} pictures another class; the first is number {flipped[0]}.",
            hint="It stays off. A model that is this near to its borders needs the plain path.",
        )
    if scaled < max(1, minimum):
        raise UsageError(
            f"{scaled} of {compared} pictures are JPEGs large enough to be scaled; {max(1, minimum)} are wanted.",
            hint="Smaller ones gain nothing. Take pictures of the size that the product will see.",
        )


def _prepare_scaled(picture: Picture, contract: Contract) -> Frame | None:
    """``None`` where the plain path is to be taken."""
    if contract.interpolation == "nearest":
        return None
    try:
        image = _open_jpeg(picture)
        if image is None or not _scale(image, contract):
            return None
        return prepare(image, contract)
    except (ImageError, OSError, ValueError, SyntaxError):
        return None  # its error names the file


def _open_jpeg(picture: Picture) -> Any:
    """The header of a JPEG within the limits of ``image.prepare``, or ``None``."""
    from PIL import Image

    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        picture = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if not isinstance(picture, bytes) or len(picture) > MAX_BYTES or not picture.startswith(b"\xff\xd8"):
        return None
    image = Image.open(io.BytesIO(picture), formats=["JPEG"])
    return image if image.format == "JPEG" and image.width * image.height <= MAX_PIXELS else None


def _scale(image: Image.Image, contract: Contract) -> bool:
    """Tell the decoder which fraction will do; False where that is the whole, or leads to another resized size."""
    turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    before, wanted = image.size, _resized(image.size, contract, turned)
    image.draft(None, (_GAP * wanted[0], _GAP * wanted[1]))
    # A fraction is rounded up to whole pixels, which may turn the longer side by one and so move the crop.
    return image.size != before and _resized(image.size, contract, turned) == wanted


def _resized(size: tuple[int, int], contract: Contract, turned: bool) -> tuple[int, int]:
    """(width, height) that the contract resizes to, as the picture lies in its file, rounded as it rounds."""
    if contract.resize == "squash":
        return (contract.height, contract.width) if turned else (contract.width, contract.height)
    width, height = size
    shorter = contract.shorter_side or 0  # the contract guarantees it for this rule
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter
