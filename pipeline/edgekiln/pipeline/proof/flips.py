"""Names and small pictures in a report, as far as the recipe lets them be shown: changed answers, and near copies."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.data import PreparedSplit, load_split
from edgekiln.pipeline.data.labelled import SPLITS
from edgekiln.pipeline.shipping.privacy import name_picture

__all__ = ["add_thumbnails", "name_flips", "show_near_copies"]

_THUMBNAIL_PIXELS = 80
_MAX_THUMBNAILS = 24  # of one engine
_MAX_PAIRS = 12  # of near copies: 24 thumbnails of some 3 KB
_THUMBNAIL_BYTES = 1_000_000  # of all engines together, as they stand in the report


def add_thumbnails(variants: Sequence[dict[str, Any]], test: PreparedSplit) -> None:
    """Put small JPEGs, base64, at the worst flips of each engine, within one budget for the whole report.

    They are made of the prepared pixels, so nothing that a picture's file says beside them comes along.
    """
    budget = _THUMBNAIL_BYTES // max(1, sum(bool(variant["flips"]) for variant in variants))
    for variant in variants:
        left = budget
        for flip in variant["flips"][:_MAX_THUMBNAILS]:
            thumbnail = _draw_thumbnail(test.frames[int(flip["key"])])
            left -= len(thumbnail)
            if left < 0:
                break
            flip["thumbnail"] = thumbnail


def name_flips(variants: Sequence[dict[str, Any]], test: PreparedSplit, images: bool) -> None:
    """Put the pictures' names, or what stands for them, in the place of their positions."""
    for flip in (flip for variant in variants for flip in variant["flips"]):
        position = int(flip["key"])
        flip["key"] = test.keys[position] if images else name_picture("test", position)


def show_near_copies(found: Mapping[str, Any] | None, folder: Path, *, images: bool) -> dict[str, Any] | None:
    """The near copies of the stage ``data`` with names and, of the closest, small pictures.

    Args:
        found: as ``read_observed`` gives them.
        folder: of the stage.
        images: whether the recipe lets pictures and names be shown.
    """
    if found is None:
        return None
    splits = {name: load_split(folder, name) for name in SPLITS}
    pairs = []
    for number, pair in enumerate(found["pairs"]):
        sides = [(pair["split"], pair["position"]), (pair["same_split"], pair["same_position"])]
        keys = [splits[name].keys[i] if images else name_picture(name, i) for name, i in sides]
        shown: dict[str, Any] = {"key": keys[0], "same_as": keys[1], "bits": pair["bits"]}
        if images and number < _MAX_PAIRS:
            shown["thumbnails"] = [_draw_thumbnail(splits[name].frames[i]) for name, i in sides]
        pairs.append(shown)
    return {"count": found["count"], "looked_at": found["looked_at"], "pairs": pairs}


def _draw_thumbnail(frame: Any) -> str:
    from PIL import Image

    picture = Image.fromarray(np.asarray(frame))
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
