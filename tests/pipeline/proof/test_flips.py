import base64
import io

import numpy as np
import pytest
from PIL import Image

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.proof.flips import add_thumbnails, name_flips


def test_flipped_images_have_small_pictures_within_one_budget():
    frames = np.random.default_rng(0).integers(
        0, 256, (40, 224, 224, 3), dtype=np.uint8
    )  # noise: the worst case
    keys = tuple(f"{i}.png" for i in range(40))
    split = PreparedSplit(frames=frames, labels=np.zeros(40, np.int64), keys=keys, sha256=keys)
    positions = [str(i) for i in range(40)][::-1]  # flips are told by position until they are named
    variants = [{"flips": [{"key": key} for key in positions]} for _ in range(12)] + [{"flips": []}]
    add_thumbnails(variants, split)
    sizes = [[len(flip.get("thumbnail", "")) for flip in variant["flips"]] for variant in variants]
    assert 900_000 < sum(map(sum, sizes)) <= 1_000_000
    assert all(row[0] and not any(row[24:]) for row in sizes[:12])
    picture = Image.open(io.BytesIO(base64.b64decode(variants[0]["flips"][0]["thumbnail"])))
    assert (picture.format, picture.size) == ("JPEG", (80, 80))


def test_each_thumbnail_is_the_picture_of_its_own_row_where_names_repeat():
    """A table may name files of equal names in different folders."""
    frames = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (20, 230)])
    test = PreparedSplit(frames, np.array([0, 1]), ("a.png", "a.png"), ("0", "1"))
    variants = [{"flips": [{"key": "1"}, {"key": "0"}]}]
    add_thumbnails(variants, test)
    name_flips(variants, test, True)
    levels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(flip["thumbnail"])))).mean()
        for flip in variants[0]["flips"]
    ]
    assert levels == pytest.approx([230, 20], abs=2)
    assert [flip["key"] for flip in variants[0]["flips"]] == ["a.png", "a.png"]
