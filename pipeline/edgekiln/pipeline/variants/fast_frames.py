"""Evidence for fast decoding: the test pictures as it makes them, and each engine's answers to both ways.

The data stage keeps the arrays of those test pictures that ``prepare_scaled`` makes another array of; an evaluate stage
runs its engine on them, and the bundle records whether all answers are those of the plain arrays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.data import load_split, make_contract, read_classes, read_source
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.pipeline.workspace.stage_files import read_json, write_json
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.fast_decode import measure_difference, prepare_scaled
from edgekiln.runtime.pictures.image import Frame, Picture, read_encoded
from edgekiln.runtime.serving.agreement import judge_agreement
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["FAST_RECORD_NAME", "keep_scaled_frames", "record_agreement"]

FAST_RECORD_NAME = "fast_decode.json"  # of an evaluate stage: what the bundle records of its engine
_FRAMES_NAME = "test.scaled.raw"
_INDEX_NAME = "test.scaled.json"
_BATCH = 64


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


def record_agreement(data: Path, folder: Path, plain: Logits, run: Callable[[Frames], Logits]) -> None:
    """Write what an engine's bundle will say about fast decoding.

    Args:
        data: folder of the data stage.
        folder: of the evaluate stage.
        plain: float32 (N, classes), the engine's answers to the test split.
        run: the engine.
    """
    index: dict[str, Any] = read_json(data / _INDEX_NAME)
    places = np.asarray(index["places"], dtype=np.int64)
    shape = (len(places), *load_split(data, "test").frames.shape[1:])
    scaled = plain[:0]
    if len(places):  # an empty file cannot be mapped
        frames = np.memmap(data / _FRAMES_NAME, np.uint8, mode="r", shape=shape)
        batches = [run(np.array(frames[i : i + _BATCH])) for i in range(0, len(frames), _BATCH)]
        scaled = np.concatenate(batches)
    differences = [(float(mean), int(largest)) for mean, largest in index["differences"]]
    write_json(
        folder / FAST_RECORD_NAME, asdict(judge_agreement(len(plain), plain[places], scaled, differences))
    )
