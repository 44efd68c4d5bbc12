"""Resizing and cropping to the size of a contract, as torchvision does, and what that costs.

Knows upright RGB pictures only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.limits import MAX_MEMORY
from edgekiln.runtime.pictures.refusals import SCALE_DOWN

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_resizing", "fit", "resized_size"]


def fit(image: Image.Image, contract: Contract) -> Image.Image:
    """Resize and crop as torchvision's Resize and CenterCrop do (v2.functional: the same integer rounding).

    Raises:
        ImageError: the picture is so long and narrow that resizing it would exceed ``MAX_MEMORY``.
    """
    from PIL import Image

    target_height, target_width = contract.height, contract.width
    filter_ = Image.Resampling[contract.interpolation.upper()]
    new_width, new_height = resized_size(image.size, contract)
    check_resizing(image.size, (new_width, new_height))
    resized = image.resize((new_width, new_height), filter_)
    if contract.resize == "squash":
        return resized
    left = round((new_width - target_width) / 2.0)
    top = round((new_height - target_height) / 2.0)
    return resized.crop((left, top, left + target_width, top + target_height))


def resized_size(size: tuple[int, int], contract: Contract) -> tuple[int, int]:
    """(width, height) before the crop."""
    if contract.resize == "squash":
        return contract.width, contract.height
    shorter_side = contract.shorter_side or 0  # the contract guarantees it for this rule
    width, height = size
    if width <= height:
        return shorter_side, int(shorter_side * height / width)
    return int(shorter_side * width / height), shorter_side


def check_resizing(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Refuse a resizing that would need too much memory.

    Args:
        before: (width, height).
        after: (width, height), before the crop.

    Raises:
        ImageError: it would exceed ``MAX_MEMORY``.
    """
    # Pillow shrinks the width first: the picture, what has the new width and the old height, and the result.
    pixels = before[0] * before[1] + after[0] * before[1] + after[0] * after[1]
    if 4 * pixels > MAX_MEMORY:
        raise ImageError(
            f"A picture of {before[0]} x {before[1]} is too elongated or too large to resize to "
            f"{after[0]} x {after[1]}: that needs {4 * pixels / 1e6:.0f} MB.",
            reason="too_large",
            hint=SCALE_DOWN,
        )
