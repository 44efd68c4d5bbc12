"""The pictures that LoadGen draws from: real ones, prepared as the product prepares them, and enough of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.timing.loadgen.rules import COMPLIANT_LIBRARY
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DataError, UsageError
from edgekiln.runtime.pictures.finding import list_pictures
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.spec import Frames

__all__ = ["MIN_LIBRARY", "choose_frames", "read_frames"]

MIN_LIBRARY = 64
"""Fewer real pictures than this could stay in a cache and would not stand for varying input."""


def read_frames(images: Path | None, contract: Contract) -> Frames:
    """uint8 (N, H, W, 3) of real pictures, prepared as the product prepares them."""
    if images is None:
        raise UsageError(
            "LoadGen needs real pictures, and a bundle holds none.", hint="Name their folder with --images."
        )
    if images.suffix == ".npz" and images.is_file():
        with np.load(images, allow_pickle=False) as arrays:
            frames: Frames = arrays["frames"]
        if frames.dtype != np.uint8 or frames.shape[1:] != (contract.height, contract.width, 3):
            raise DataError(
                f"{images} holds {frames.dtype} {frames.shape}, "
                f"wanted uint8 (N, {contract.height}, {contract.width}, 3).",
                path=images,
            )
        _check_count(len(frames), images)
        return frames[choose_frames(len(frames))]
    if not images.is_dir():
        raise DataError(f"There is no folder {images}.", path=images)
    paths = list_pictures(images, camera=contract.sensor_bits is not None)
    _check_count(len(paths), images)
    return np.stack([prepare(paths[i], contract) for i in choose_frames(len(paths))])


def _check_count(count: int, images: Path) -> None:
    if count < MIN_LIBRARY:
        raise DataError(
            f"{images} holds {count} pictures, at least {MIN_LIBRARY} are needed.",
            hint="Few pictures stay in caches, and a speed on them would not hold for others.",
            path=images,
        )


def choose_frames(count: int) -> NDArray[np.int64]:
    """Up to 1,024 indices, evenly spaced, so that pictures sorted by class give all classes."""
    return np.linspace(0, count - 1, min(count, COMPLIANT_LIBRARY)).round().astype(np.int64)
