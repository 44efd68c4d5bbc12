"""Names and small pictures of the images whose answer an engine changed, as far as the recipe lets them be shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.shipping.privacy import name_picture

__all__ = ["add_thumbnails", "name_flips"]

_THUMBNAIL_PIXELS = 80
_MAX_THUMBNAILS = 24  # of one engine
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


def _draw_thumbnail(frame: Any) -> str:
    from PIL import Image

    picture = Image.fromarray(np.asarray(frame))
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
