"""The same picture in two splits: found whatever its file, and done with as `data.leaks` says."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from edgekiln.pipeline.data import load_split, prepare_splits, read_source
from edgekiln.pipeline.data.leaks import FramePrint, find_near_copies, print_frame
from edgekiln.pipeline.recipe import DataSettings, load_recipe
from edgekiln.pipeline.stages.planning import plan_stages
from edgekiln.runtime.errors import DataError


def draw(label: int, number: int) -> Image.Image:
    """A coloured disc or bar upon noise."""
    generator = np.random.default_rng((label, number))
    pixels = generator.integers(90, 160, (48, 48, 3))
    y, x = np.mgrid[:48, :48]
    middle, radius = generator.uniform(16, 32, 2), generator.uniform(9, 16)
    distance = (
        np.hypot(x - middle[0], y - middle[1])
        if label
        else np.maximum(abs(x - middle[0]), abs(y - middle[1]))
    )
    pixels[distance < radius] = ((200, 40, 40), (40, 180, 60))[label]
    return Image.fromarray(pixels.astype(np.uint8))


def write(folder, numbers, **formats):
    """Pictures of two classes, each in every format: ``suffix=options``."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            for suffix, options in formats.items():
                draw(label, i).save(folder / name / f"{i:02}.{suffix}", **options)
    return folder


def prepare(folder, out, **settings):
    out.mkdir()
    return prepare_splits(
        DataSettings(source="imagefolder", path=folder, size=48, **settings), seed=0, folder=out
    )


def pixels_of(out):
    frames = {name: load_split(out, name).frames[:] for name in ("train", "val", "test")}
    return {name: {frame.tobytes() for frame in part} for name, part in frames.items()}


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_copies_in_other_files_are_moved_into_one_split(tmp_path, cache):
    photos = write(tmp_path / "photos", range(20), png={}, bmp={}, webp={"lossless": True})
    index = prepare(photos, tmp_path / "out", cache=cache)
    seen = pixels_of(tmp_path / "out")
    assert (
        sum(map(len, seen.values())) == len(set.union(*seen.values())) == 40
    )  # none in two, and none is lost
    assert len(index["splits"]["test"]["keys"]) == len(seen["test"])  # and none counts twice where it judges
    assert sum(len(part["keys"]) for part in index["splits"].values()) + len(index["duplicates"]) == 120


def test_between_folders_cut_by_hand_it_is_a_refusal_that_lists_pairs(tmp_path):
    write(tmp_path / "photos/train", range(12), png={})
    write(tmp_path / "photos/test", range(10, 18), bmp={})
    with pytest.raises(
        DataError, match=r"4 pictures have the same pixels in two splits.*: test/cat/10|4 pictures"
    ) as caught:
        prepare(tmp_path / "photos", tmp_path / "refused")
    assert "train/cat/10.png = test/cat/10.bmp" in caught.value.message
    assert not list((tmp_path / "refused").glob("*.npy"))
    moved = prepare(tmp_path / "photos", tmp_path / "moved", leaks="move")
    assert (len(moved["splits"]["test"]["keys"]), len(moved["duplicates"])) == (16, 4)
    allowed = prepare(tmp_path / "photos", tmp_path / "allowed", leaks="allow")
    assert [len(allowed["splits"][name]["keys"]) for name in ("train", "val", "test")] == [20, 4, 16]
    assert len(allowed["allowed"]) == 4
    with pytest.raises(DataError, match="same pixels in two splits"):
        prepare(write(tmp_path / "flat", range(12), png={}, bmp={}), tmp_path / "asked", leaks="refuse")


def test_near_copies_are_told_and_change_nothing(tmp_path):
    write(tmp_path / "photos/train", range(12), png={})
    write(tmp_path / "photos/test", [*range(10, 12), *range(30, 36)], jpg={"quality": 92})
    index = prepare(tmp_path / "photos", tmp_path / "out")
    assert {name: len(part["keys"]) for name, part in index["splits"].items()} == {
        "test": 16,
        "val": 4,
        "train": 20,
    }
    keys = {name: part["keys"] for name, part in index["splits"].items()}
    pairs = {
        (keys[p["split"]][p["position"]], keys[p["same_split"]][p["same_position"]])
        for p in index["near_copies"]["pairs"]
    }
    assert pairs == {
        (f"test/{name}/{i}.jpg", f"train/{name}/{i}.png") for name in ("cat", "dog") for i in (10, 11)
    }
    assert (
        prepare(tmp_path / "photos", tmp_path / "header", cache="none", check="header")["near_copies"] is None
    )


def test_a_hash_knows_no_colour_and_the_small_picture_does():
    red, blue = (np.full((32, 32, 3), color, np.uint8) for color in ((200, 30, 30), (30, 30, 200)))
    prints = {"test": [print_frame(red)], "val": [], "train": [print_frame(blue)]}
    assert prints["test"][0].bits == prints["train"][0].bits
    assert find_near_copies(prints).pairs == ()


def test_the_comparison_counts_bits_on_every_numpy(monkeypatch):
    generator = np.random.default_rng(0)
    prints = {
        name: [FramePrint(generator.bytes(16), generator.bytes(8), bytes(192)) for _ in range(count)]
        for name, count in (("test", 30), ("val", 20), ("train", 40))
    }
    near = FramePrint(
        b"another", bytes([prints["train"][7].bits[0] ^ 0b101]) + prints["train"][7].bits[1:], bytes(192)
    )
    prints["test"].append(near)
    expected = (("test", 30, "train", 7, 2),)
    assert find_near_copies(prints).pairs == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert find_near_copies(prints).pairs == expected


# -- what was prepared before stays what it is

BEFORE = {
    "flat": "8ad56dac48323aabdc6a2ee124ddba7d09b1c77ff050c90a44a1681e4d4776a6",
    "cut": "185e2f6a0230cbbea8e43392e623db7454585ff6cd7d25db2941f25e9bd8e679",
    "two": "f4f1f1b0bfb02d608367f81f48837b6ab8147ed3b5cfb9ab0a5827312c287258",
}
"""sha256 of index.json, as the version before wrote it for these pictures."""
SETTINGS_BEFORE = {
    "source": "imagefolder", "path_column": "path", "label_column": "label", "download": False, "size": 16,
    "resize": "squash", "shorter_side": None, "interpolation": "bilinear", "validation": 0.15, "test": 0.2,
    "test_seed": None, "test_share": 1.0, "train_share": 1.0, "max_unreadable": 0.01, "cache": "auto", "check": "whole",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "splits"), [("flat", ("",)), ("cut", ("train", "val", "test")), ("two", ("train", "test"))]
)
def test_where_nothing_is_left_out_or_moved_digests_are_those_of_before(tmp_path, name, splits):
    generator = np.random.default_rng(11)
    for split in splits:
        for label in ("ash", "birch", "cedar"):
            (tmp_path / name / split / label).mkdir(parents=True)
            for i in range(12):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / split / label / f"{i:02}.bmp")
    (tmp_path / "out").mkdir()
    settings = DataSettings(source="imagefolder", path=tmp_path / name, size=16)
    prepare_splits(settings, seed=5, folder=tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out/index.json").read_bytes()).hexdigest() == BEFORE[name]


def test_the_key_of_the_stage_is_that_of_before(tmp_path):
    write(tmp_path / "photos", range(4), bmp={})
    text = (
        'name = "k"\n[data]\nsource = "imagefolder"\npath = "photos"\nsize = 16\n[backbone]\n'
        'model = "edgekiln/tiny-cnn"\nweights = "none"\n[[variants]]\nname = "fp32"\nprecision = "fp32"\n'
    )
    (tmp_path / "r.toml").write_text(text)
    stage = plan_stages(load_recipe(tmp_path / "r.toml"))[0]
    values = json.loads(json.dumps(stage.settings))
    images = read_source(load_recipe(tmp_path / "r.toml").data)
    digest = hashlib.sha256(repr((images.classes, ())).encode())
    for sample in images.train:
        status = (tmp_path / "photos" / sample.key).stat()
        identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr((sample.key, sample.label, identity)).encode())
    digest.update(b"|||")
    assert (values["pictures"], values["seed"], stage.revision) == (digest.hexdigest(), 0, 3)
    assert {key: value for key, value in values["data"].items() if key != "path"} == SETTINGS_BEFORE
    chosen = plan_stages(load_recipe(tmp_path / "r.toml", ["data.leaks=move"]))[0]
    assert chosen.settings["data"]["leaks"] == "move"


# -- a run's folder remembers its data


def test_another_data_set_of_the_same_name_is_refused_and_a_moved_one_is_not(tmp_path, edgekiln, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a/photos", range(12), png={})
    write(tmp_path / "b/photos", range(50, 62), png={})
    text = (
        'name = "photos"\n[data]\nsource = "imagefolder"\npath = "photos"\nsize = 16\n[backbone]\n'
        'model = "edgekiln/tiny-cnn"\nweights = "none"\n[[variants]]\nname = "fp32"\nprecision = "fp32"\n'
    )
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "r.toml").write_text(text)
    assert edgekiln("run", "a/r.toml", "--until", "data", "-q")[0] == 0
    for options in (["--dry-run"], ["--until", "data", "-q"]):
        code, _, err = edgekiln("run", "b/r.toml", *options)
        assert code == 2
        assert (
            f"runs/photos belongs to another data set, {tmp_path}/a/photos; this one is {tmp_path}/b/photos"
            in err
        )
        assert "--runs" in err
    assert edgekiln("run", "b/r.toml", "--until", "data", "-q", "--runs", "others")[0] == 0
    shutil.move(tmp_path / "a/photos", tmp_path / "c/photos")
    write(tmp_path / "c/photos", range(12, 20), png={})
    assert edgekiln("run", "c/r.toml", "--until", "data", "-q")[0] == 0
    assert json.loads((tmp_path / "runs/photos/data.json").read_text())["place"] == f"{tmp_path}/c/photos"
