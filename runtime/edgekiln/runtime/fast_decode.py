"""JPEGs decoded at a half, a quarter or an eighth of their size: the decoder computes fewer pixels from each block.

The picture that comes out is not the plain path's, so this is off until a model was seen to give the same class both
ways for every picture of an evaluation split: by the run that made its bundle, which records it, or by
`establish_agreement` on pictures of one's own. Where ``simplejpeg`` is installed (extra ``simplejpeg``), it decodes the
scaled picture, to the same bits as Pillow: both are libjpeg-turbo, at the same fraction. What is left to the plain
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.runtime.classifier import Classifier, predict_frames
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError, UsageError
from edgekiln.runtime.image import (
    ColorOrder,
    Frame,
    Picture,
    apply_orientation,
    open_encoded,
    prepare,
    read_encoded,
    read_orientation,
)
from edgekiln.runtime.loaded import LoadedModel
from edgekiln.runtime.manifest import FastDecodeRecord
from edgekiln.runtime.spec import Logits

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BOUND",
    "MEAN_BOUND",
    "MINIMUM_EVIDENCE",
    "FastDecodeEvidence",
    "establish_agreement",
    "judge_agreement",
    "measure_difference",
    "prepare_fast",
    "prepare_scaled",
]

MEAN_BOUND = 1.5
MAX_BOUND = 20
MINIMUM_EVIDENCE = 100
"""Pictures that have to be scaled: with none of 100 flipped, at most 3 % flip, with 95 % confidence (the rule of
three)."""
_GAP = 2
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height


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
    scaled = prepare_scaled(picture, contract)
    return prepare(picture, contract, color_order=color_order) if scaled is None else scaled


def establish_agreement(
    classifier: Classifier, pictures: Iterable[Picture], *, minimum: int = MINIMUM_EVIDENCE
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
            if (scaled := prepare_scaled(picture, model.contract)) is None:
                continue
            differences.append(measure_difference(scaled, plain)[0])
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


def judge_agreement(
    pictures: int, plain: Logits, scaled: Logits, differences: Sequence[tuple[float, int]]
) -> FastDecodeRecord:
    """What a bundle records of one engine.

    Args:
        pictures: of the whole evaluation split.
        plain, scaled: float32 (N, classes) for the N of them that ``prepare_scaled`` makes another array of: their
            logits by way of the plain path, and by way of the fast one.
        differences: (mean, largest) absolute difference of the two arrays of each, in levels of 255.
    """
    flipped = int((plain.argmax(axis=1) != scaled.argmax(axis=1)).sum()) if len(plain) else 0
    mean = max((mean for mean, _ in differences), default=0.0)
    largest = max((largest for _, largest in differences), default=0)
    count = len(plain)
    if flipped:
        allowed, reason = False, f"fast decoding gives {flipped} of {count} pictures another class."
    elif count < MINIMUM_EVIDENCE:
        few = f"{count} of {pictures} pictures that judged it are JPEGs large enough to be scaled"
        allowed, reason = False, f"{few}; {MINIMUM_EVIDENCE} are wanted."
    elif mean > MEAN_BOUND or largest > MAX_BOUND:
        allowed, reason = (
            False,
            f"the arrays differ by {mean:.2f} on average and {largest} at most: over the bound.",
        )
    else:
        allowed, reason = True, f"all {count} pictures that were decoded both ways got the same class."
    return FastDecodeRecord(allowed, reason, pictures, count, flipped, mean, largest)


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
    if contract.resize == "squash":
        return (contract.height, contract.width) if turned else (contract.width, contract.height)
    width, height = size
    shorter = contract.shorter_side or 0  # the contract guarantees it for this rule
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter
