"""Folders as people have them: what is a picture of a class, and which folders are splits. `init` and `run` agree.

Every case is a real folder. `agree` runs `init` and `run --dry-run` on it, wants the same of both, and gives what
`init` saw; `names` are the files of a class.
"""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import TINY_RECIPE

from edgekiln.pipeline.data import fingerprint_source, read_source
from edgekiln.pipeline.recipe import DataSettings

EACH = 6


def fill(folder: Path, names, each: int = EACH, ending: str = ".png") -> Path:
    """Folders of small pictures, no two alike."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            generator = np.random.default_rng([*os.fsencode(folder / name), i])
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}{ending}", "PNG")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def agree(edgekiln, place):
    """Looks at a folder through both commands."""

    def look(folder="photos"):
        code, out, _ = edgekiln("init", place / folder, "--json", "--force", "--out", place / "init.toml")
        seen = json.loads(out)
        text = TINY_RECIPE.replace('path = "pictures"', f"path = {json.dumps(str(place / folder))}")
        (place / "run.toml").write_text(text)
        again, out, _ = edgekiln("run", place / "run.toml", "--dry-run", "--json", "--runs", place / "none")
        planned = json.loads(out)
        assert code == again
        if code:
            assert seen["error"] == planned["error"]
            return seen["error"]
        notices = planned["stages"][0]["notices"]
        assert [warning for warning in seen["warnings"] if warning in notices] == notices
        return {**seen, "notices": notices}

    return look


def list_source(folder):
    return read_source(DataSettings(source="imagefolder", path=folder))


def counts(seen):
    return {name: sum(parts.values()) for name, parts in seen["classes"].items()}


def test_own_outputs_are_no_data(place, agree):
    photos = fill(place / "photos", ("cat", "dog", "owl"))
    before = fingerprint_source(list_source(photos))
    (photos / "recipe.toml").write_text("")
    (photos / "report.html").write_text("")
    (photos / "runs/photos/stages").mkdir(parents=True)
    (photos / "runs/photos/.lock").touch()
    (photos / "runs/photos/data.json").touch()
    fill(photos / "runs/photos/bundle", ("x",))
    fill(photos / "shipped", ("y",))
    (photos / "shipped/manifest.json").touch()
    (photos / "shipped/model.onnx").touch()
    seen = agree()
    assert counts(seen) == {"cat": EACH, "dog": EACH, "owl": EACH}
    assert any(
        "3 outputs of edgekiln itself: recipe.toml, runs/photos/, shipped/" in n for n in seen["notices"]
    )
    assert fingerprint_source(list_source(photos)) == before


def test_a_class_may_be_called_runs(place, agree):
    fill(place / "photos", ("runs", "walks", "bundle"))
    assert counts(agree()) == {"bundle": EACH, "runs": EACH, "walks": EACH}


LITTER = {
    "cat/.ipynb_checkpoints/a-checkpoint.png": "SYSTEM", "cat/.thumbnails/a.png": "SYSTEM",
    "cat/@eaDir/a.png": "SYSTEM",
    "cat/#recycle/a.png": "SYSTEM", "__MACOSX/cat/._00.png": "SYSTEM", "$RECYCLE.BIN/a.png": "SYSTEM",
    "System Volume Information/a.png": "SYSTEM", ".Trashes/a.png": "SYSTEM", ".Trash-1000/files/a.png": "SYSTEM",
    "cat/Thumbs.db": "SYSTEM", "cat/desktop.ini": "SYSTEM", "cat/._00.png": "HIDDEN", "cat/.DS_Store": "HIDDEN",
    "cat/00.xmp": "NO_PICTURE", "cat/00.png.json": "NO_PICTURE", "labels.csv": "NO_PICTURE",
    "cat/00.png~": "COPY", "cat/00.png.bak": "COPY", "cat/00.png.crdownload": "COPY", "cat/#00.png#": "COPY",
}  # fmt: skip


def test_litter_is_counted_and_named_and_changes_no_key(place, agree, edgekiln, tiny_run):
    photos = fill(place / "photos", ("cat", "dog"))
    before = list_source(photos)
    for path in LITTER:
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        if LITTER[path] == "NO_PICTURE" or path.endswith((".db", ".ini")):
            (photos / path).write_text("BM, but no picture")
        else:
            shutil.copy(photos / "cat/00.png", photos / path)
    after = list_source(photos)
    assert (after.train, fingerprint_source(after)) == (before.train, fingerprint_source(before))
    told = " ".join(agree()["notices"])
    for text in (
        "11 names of a system",
        "2 hidden",
        "3 files that are no picture",
        "4 backups",
        "cat/00.png.bak",
    ):
        assert text in told, told
    code, out, _ = edgekiln("predict", tiny_run[2].bundle, "photos", "--json")
    answered = json.loads(out)
    assert code == 0
    assert sorted(p["path"] for p in answered["predictions"]) == sorted(
        f"photos/{s.key}" for s in before.train
    )
    assert answered["left_out"] == {"system": 11, "hidden": 2, "copy": 4}


def test_the_content_tells_a_picture_where_its_ending_does_not(place, agree):
    photos = fill(place / "photos", ("cat", "dog"))
    for name in ("noending", "photo.jpe", "photo.PNG2", "photo.heic"):
        shutil.copy(photos / "cat/00.png", photos / "cat" / name)
    for kind in ("BMP", "WEBP", "JPEG"):
        Image.open(photos / "cat/01.png").save(photos / "dog" / f"as-{kind}.dat", kind)
    (photos / "dog/empty").touch()
    os.mkfifo(photos / "dog/pipe")
    assert counts(agree()) == {"cat": EACH + 4, "dog": EACH + 3}


def test_links_are_followed_and_loops_end(place, agree, edgekiln, tiny_run):
    photos = fill(place / "photos", ("cat", "dog"))
    archive = fill(place / "archive", ("cat", "dog"))
    for name in ("cat", "dog"):
        (photos / name / "batch2").symlink_to(archive / name)
    (photos / "cat/up").symlink_to(photos)
    (photos / "cat/gone").symlink_to(place / "nowhere")
    seen = agree()
    assert counts(seen) == {"cat": 2 * EACH, "dog": 2 * EACH}
    assert "Left out: 1 links back to a folder above: cat/up/." in seen["notices"]
    assert "Left out: 1 links that lead nowhere: cat/gone." in seen["notices"]
    document = json.loads(edgekiln("predict", tiny_run[2].bundle, "photos", "--json")[1])
    assert len(document["predictions"]) == 4 * EACH


def test_links_that_cross_do_not_lead_to_millions_of_paths(place):
    photos = fill(place / "photos", [f"c{i}" for i in range(9)], each=1)
    for one in range(9):
        for other in range(9):
            (photos / f"c{one}" / f"to{other}").symlink_to(photos / f"c{other}")
    assert len(list_source(photos).train) < 9 * 17 * 9


def test_composed_and_decomposed_names_are_one_class(place, agree):
    nfc, nfd = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    fill(place / "flat", (nfc, nfd, "other"))
    seen = agree("flat")
    assert counts(seen) == {nfc: 2 * EACH, "other": EACH}
    assert any(
        "One class 'Müller' of folders whose names look alike" in n and "u\\u0308" in n
        for n in seen["notices"]
    )
    fill(place / "split/train", (nfc, "other"))
    fill(place / "split/test", (nfd, "other"))
    assert agree("split")["classes"][nfc]["test"] == EACH


def test_blanks_dots_and_capitals_in_names_are_told(place, agree):
    fill(place / "photos", ("cat", "cat ", "dog", "Dog", " owl", ".22LR"))
    seen = agree()
    assert counts(seen) == {"Dog": EACH, "cat": 2 * EACH, "dog": EACH, "owl": EACH}
    told = "\n".join(seen["notices"])
    assert f".22LR/: its {EACH} pictures are left out, for the name begins with a dot." in told
    assert f"'cat'/ ({EACH} pictures) and 'cat '/ ({EACH} pictures)" in told
    assert "' owl'/ has blanks at an end of its name; the class is 'owl'." in told
    assert "Classes that differ by capital letters alone are different ones: Dog, dog." in told


def test_names_that_are_no_utf8(place, agree):
    photos = fill(place / "photos", ("cat", "dog"))
    (photos / "dog").rename(photos / os.fsdecode(b"d\xf6g"))
    assert counts(agree()) == {"cat": EACH, "d\N{REPLACEMENT CHARACTER}g": EACH}
    (photos / "cat").rename(photos / os.fsdecode(b"d\xe4g"))
    assert "names hold bytes that are no UTF-8" in agree()["message"]


# -- layouts


def found(folder):
    images = list_source(folder)
    return images.classes, *(
        None if part is None else len(part) for part in (images.train, images.val, images.test)
    )


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Testing"),
        ("training_set/training_set", "validation_set", "test_set/test_set"),
        ("TRAIN", "dev", "eval"),
        ("data/trainingSet", "data/validation", "data/testSet"),
        ("deep/down/seg_train/seg_train", "deep/down/seg_val/seg_val", "deep/down/seg_test/seg_test"),
        ("animals/animals/dataset_train", "animals/animals/dataset_val", "animals/animals/dataset_test"),
        ("images/train", "images/val2", "images/test1"),
    ],
)
def test_splits_of_any_usual_name_and_depth(place, agree, train, val, test):
    for part, each in ((train, 5), (val, 3), (test, 4)):
        fill(place / "photos" / part, ("cat", "dog"), each)
    assert found(place / "photos") == (("cat", "dog"), 10, 6, 8)
    assert agree()["splits"] == {"train": 10, "val": 6, "test": 8}


def test_splits_within_classes(place, agree):
    fill(place / "photos", ("cat/train", "cat/test", "dog/train", "dog/test"))
    assert found(place / "photos") == (("cat", "dog"), 2 * EACH, None, 2 * EACH)
    assert counts(agree()) == {"cat": 2 * EACH, "dog": 2 * EACH}


def test_a_test_folder_without_labels_judges_nothing(place, agree):
    photos = fill(place / "photos", ("Train/0", "Train/1", "Test", "Meta"))
    (photos / "Test.csv").write_text("Path,ClassId\n")
    assert found(photos) == (("0", "1"), 2 * EACH, None, None)
    told = " ".join(agree()["notices"])
    assert f"Test holds {EACH} pictures without class folders: no labels" in told
    assert "Folders that are no split and no class: Meta/, Test/." in told
    shutil.move(photos / "Test", photos / "images")
    (photos / "Test").mkdir()
    shutil.move(photos / "images", photos / "Test/images")
    assert found(photos) == (("0", "1"), 2 * EACH, None, None)


def test_an_empty_split_is_refused(place, agree):
    photos = fill(place / "photos", ("train/cat", "train/dog"))
    (photos / "Test/cat").mkdir(parents=True)
    assert "photos/Test holds no pictures in class folders" in agree()["message"]


def test_other_folders_beside_splits_are_passed_over(place, agree):
    fill(place / "photos", [f"{part}/{name}" for part in ("Train", "Test", "Meta") for name in ("a", "b")])
    assert found(place / "photos") == (("a", "b"), 2 * EACH, None, 2 * EACH)
    assert "Folders that are no split and no class: Meta/." in agree()["notices"]


def test_a_table_beside_class_folders_is_told_and_no_hindrance(place, agree):
    photos = fill(place / "photos", ("images/cat", "images/dog"))
    (photos / "labels.csv").write_text("path,label\n")
    seen = agree()
    assert counts(seen) == {"cat": EACH, "dog": EACH}
    assert any("labels.csv" in notice for notice in seen["notices"])


def test_classes_that_are_called_like_splits(place, agree):
    fill(place / "photos", ("bus", "car", "train"))
    assert counts(agree()) == {"bus": EACH, "car": EACH, "train": EACH}
    fill(place / "stations", ("train_station", "bus_station", "test_tube"))
    assert counts(agree("stations")) == {"bus_station": EACH, "test_tube": EACH, "train_station": EACH}
    fill(place / "nested", ("bus", "car", "train/steam", "train/electric"))
    error = agree("nested")
    assert (
        f"nested/{{bus/ {EACH}, car/ {EACH}, train/{{electric/ {EACH}, steam/ {EACH}}}}}" in error["message"]
    )
    assert "If train is a class, give it another name" in error["hint"]


@pytest.mark.parametrize("folders", [("train", "test"), ("Test/cat", "Test/dog", "val/cat", "val/dog")])
def test_splits_that_cannot_be_trained_on_are_refused(place, agree, folders):
    fill(place / "photos", folders)
    assert "look like splits, not like classes" in agree()["message"]
