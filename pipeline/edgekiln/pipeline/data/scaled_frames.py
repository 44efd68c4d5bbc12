"""The test pictures as fast decoding makes them, kept by the data stage for the engines that are judged on them.

Kept are the arrays of those pictures that ``prepare_scaled`` makes another array of. It knows no engine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.data.listing import read_source
from edgekiln.pipeline.data.prepared import load_split, make_contract, read_classes
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.pipeline.workspace.stage_files import read_json, write_json
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.encoded import read_encoded
from edgekiln.runtime.pictures.fast_decode import measure_difference, prepare_scaled
from edgekiln.runtime.pictures.image import Frame, Picture
from edgekiln.runtime.spec import Frames

__all__ = ["ScaledFrames", "keep_scaled_frames", "read_scaled_frames"]

_FRAMES_NAME = "test.scaled.raw"
_INDEX_NAME = "test.scaled.json"


@dataclass(frozen=True, slots=True)
class ScaledFrames:
    """What the fast way makes of those test pictures that it makes another array of.

    Attributes:
        frames: uint8 (M, H, W, 3), mapped from disk.
        places: int64 (M,), the number of each in the test split.
        differences: (mean, largest) absolute difference of each to its plain array, in levels of 255.
    """

    frames: Frames
    places: np.ndarray[Any, np.dtype[np.int64]]
    differences: tuple[tuple[float, int], ...]

    def batches(self, size: int) -> Iterator[Frames]:
        """Copies of up to ``size`` frames, in their order."""
        for start in range(0, len(self.frames), size):
            yield np.array(self.frames[start : start + size])


def keep_scaled_frames(settings: DataSettings, folder: Path) -> int:
    """Decode the test pictures of a finished data stage once more, the fast way; returns how many differ by it.

    Writes the M arrays one after the other, uint8 (H, W, 3) each, as they come: memory stays flat. Beside them stands
    where each belongs in the split, and its difference to the plain array.
    """
    test = load_split(folder, "test")
    contract = make_contract(settings, read_classes(folder))
    pictures = _encoded_pictures(settings)
    places: list[int] = []
    differences: list[tuple[float, int]] = []
    with (folder / _FRAMES_NAME).open("wb") as file:
        for place, key in enumerate(test.keys):
            scaled = _scale_same_bytes(pictures.get(key), test.sha256[place], contract)
            if scaled is not None:
                places.append(place)
                differences.append(measure_difference(scaled, np.asarray(test.frames[place])))
                file.write(scaled.tobytes())
    write_json(folder / _INDEX_NAME, {"places": places, "differences": differences})
    return len(places)


def read_scaled_frames(data: Path) -> ScaledFrames:
    """What ``keep_scaled_frames`` wrote into the folder of the data stage."""
    index: dict[str, Any] = read_json(data / _INDEX_NAME)
    places = np.asarray(index["places"], dtype=np.int64)
    shape = (len(places), *load_split(data, "test").frames.shape[1:])
    frames: Frames = np.empty(shape, np.uint8)  # an empty file cannot be mapped
    if len(places):
        frames = np.memmap(data / _FRAMES_NAME, np.uint8, mode="r", shape=shape)
    differences = tuple((float(mean), int(largest)) for mean, largest in index["differences"])
    return ScaledFrames(frames, places, differences)


def _encoded_pictures(settings: DataSettings) -> dict[str, Picture]:
    source = read_source(settings)
    parts = (source.train, source.val or (), source.test or ())
    return {s.key: s.picture for part in parts for s in part if isinstance(s.picture, str | os.PathLike)}


def _scale_same_bytes(picture: Picture | None, sha256: str, contract: Contract) -> Frame | None:
    """``None`` where the fast way is the plain one, or the file is no longer what was prepared."""
    if not isinstance(picture, str | os.PathLike):
        return None
    try:
        data = read_encoded(picture)
    except ImageError:
        return None
    return prepare_scaled(data, contract) if hashlib.sha256(data).hexdigest() == sha256 else None
