"""How a sample of a camera becomes one of 256 levels: the one formula for every format, by the bits of its sensor.

``level = value * 255 / (2 ** bits - 1)``, rounded. As ``2 ** bits - 1`` is odd, no value lies half-way between two
levels. A value above ``2 ** bits - 1`` is refused and never clipped: it says that the bits are wrong.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.errors import ImageError

__all__ = ["scale_levels", "white_of"]


def white_of(bits: int) -> int:
    """The largest value of so many bits."""
    return int(2**bits - 1)


def scale_levels(values: NDArray[Any], bits: int, name: str) -> NDArray[np.uint8]:
    """Integers of any shape as levels 0 to 255 of the same shape.

    Raises:
        ImageError: ``mode`` for a value below 0 or above ``2 ** bits - 1``.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > white_of(bits):
        raise ImageError(
            f"{name} holds values from {low} to {high}; a sensor of {bits} bits gives 0 to {white_of(bits)}.",
            reason="mode",
            hint="data.sensor_bits must be the bits that the camera fills; 16 where values stand in the upper bits.",
        )
    levels: NDArray[np.uint8] = _levels(bits)[values]
    return levels


@cache
def _levels(bits: int) -> NDArray[np.uint8]:
    """The level of each value, uint8 (2 ** bits,)."""
    white = white_of(bits)
    return ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
