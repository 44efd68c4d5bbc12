"""What the contenders of a benchmark are given: real frames and pictures, the same for all, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.spec import Frames

__all__ = ["choose_images", "save_inputs"]


def choose_images(total: int, wanted: int) -> NDArray[np.int64]:
    """Up to ``wanted`` of ``total`` indices, int64, evenly spaced: splits are sorted by class, and all must rotate."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64))


def save_inputs(
    path: Path, frames: Frames, pictures: Sequence[bytes] = (), contract: str | None = None
) -> None:
    """Write what the contenders are given; the same inputs give the same bytes.

    Args:
        path: ``.npz`` to write.
        frames: uint8 (N, H, W, 3); they rotate.
        pictures: encoded pictures, for the boundary ``image``; none leaves it out.
        contract: JSON of the contract that prepares them.
    """
    joined = np.frombuffer(b"".join(pictures), np.uint8)
    sizes = np.array([len(picture) for picture in pictures], np.int64)
    np.savez(path, frames=frames, pictures=joined, picture_sizes=sizes, contract=np.array(contract or ""))
