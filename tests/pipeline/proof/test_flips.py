import base64
import io

import numpy as np
import pytest
from PIL import Image
from report_support import make_report

from edgekiln.benchmarks.report.page import render_page
from edgekiln.pipeline.data import PreparedSplit, prepare_splits, read_observed
from edgekiln.pipeline.proof.flips import add_thumbnails, name_flips, show_near_copies
from edgekiln.pipeline.recipe import DataSettings


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


@pytest.mark.parametrize("images", [True, False])
def test_near_copies_are_shown_as_far_as_the_recipe_shows_pictures(tmp_path, images):
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    for name in ("cat", "dog"):
        pixels = np.asarray(Image.open(tmp_path / f"photos/train/{name}/0.png")).copy()
        pixels[:4, :4] ^= 1
        Image.fromarray(pixels).save(tmp_path / f"photos/test/{name}/copy.png")
    (tmp_path / "out").mkdir()
    settings = DataSettings(source="imagefolder", path=tmp_path / "photos", size=32)
    prepare_splits(settings, seed=0, folder=tmp_path / "out")
    shown = show_near_copies(read_observed(tmp_path / "out")["near_copies"], tmp_path / "out", images=images)
    assert (shown["count"], shown["looked_at"]) == (2, [12, 12])
    names = {pair["key"] for pair in shown["pairs"]}
    expected = {"test/cat/copy.png", "test/dog/copy.png"} if images else {"test picture 4", "test picture 9"}
    assert names == expected
    report = make_report(24, ["cat", "dog"])
    report["data"]["near_copies"] = shown
    page = render_page(report)
    assert "2 pictures of val and test look nearly like one" in page
    assert all(name in page for name in names)
    for pair in shown["pairs"]:
        thumbnails = pair.get("thumbnails", [])
        assert len(thumbnails) == (2 if images else 0)
        assert all(f"base64,{thumbnail}" in page for thumbnail in thumbnails)
        for thumbnail in thumbnails:
            assert Image.open(io.BytesIO(base64.b64decode(thumbnail))).size == (32, 32)
