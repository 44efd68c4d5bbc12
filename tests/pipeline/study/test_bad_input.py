"""What may be wrong with what a transfer starts from: one clear line, the right exit code, nothing finished lost."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import COLORS, TINY_RECIPE, write_pictures

from edgekiln.pipeline.data import prepare_splits
from edgekiln.pipeline.recipe import BackboneSettings, DataSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.checkpoint import save_checkpoint
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DataError, RecipeError


class Desk:
    """A folder with the tiny recipe and pictures in it, where one thing is wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = TINY_RECIPE
        write_pictures(folder / "pictures", per_class=12)

    def section(self, text: str) -> None:
        self.text = self.text.replace("[[variants]]", f"{text}\n[[variants]]", 1)

    def replace(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new, 1)

    def checkpoint(self, name: str, classes: tuple[str, ...]) -> None:
        """An untrained network of the recipe's kind that knows ``classes``."""
        torch.manual_seed(0)
        settings = BackboneSettings(model="edgekiln/tiny-cnn", weights="none")
        network = build_backbone(settings, len(classes), 32).network
        contract = Contract(height=32, width=32, classes=classes)
        save_checkpoint(dict(network.state_dict()), contract, settings.model, self.folder / name)

    def idx(self, name: str, array: np.ndarray, cut: int = 0) -> None:
        data = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
        (self.folder / name).write_bytes(data[: len(data) - cut])

    @property
    def command(self) -> list[str]:
        (self.folder / "r.toml").write_text(self.text)
        return ["train", str(self.folder / "r.toml"), "--runs", str(self.folder / "runs")]


CASES = []


def wrong(code, kind, says, hint, kept=("data",)):
    """Registers a function that puts one thing wrong on a ``Desk``; ``kept`` are the stages that are done then."""

    def register(make):
        name = make.__name__.replace("_", "-")
        CASES.append(pytest.param(make, code, kind, says, hint, kept, id=name))
        return make

    return register


@wrong(
    2,
    "data",
    "Source and target task both have classes blue, green, red.",
    "Rename them in one of the two",
    kept=("data", "data.source"),
)
def clashing_classes(desk):
    write_pictures(desk.folder / "others", per_class=8, size=30)
    desk.section('[source_task]\nalpha = 0.5\ndata = {source = "imagefolder", path = "others"}')


@wrong(
    2,
    "data",
    "Source and target task both have a class red.",
    "Rename them in one of the two",
    kept=("data", "data.source"),
)
def one_clashing_class(desk):
    write_pictures(desk.folder / "others", per_class=8, size=30)
    for old, new in (("blue", "azure"), ("green", "olive")):
        (desk.folder / "others" / old).rename(desk.folder / "others" / new)
    desk.section('[source_task]\nalpha = 0.5\ndata = {source = "imagefolder", path = "others"}')


@wrong(
    2,
    "recipe",
    "source_task: alpha and beta are both 0: nothing would be learned.",
    "Change one of the keys that it names.",
    kept=(),
)
def no_loss_at_all(desk):
    desk.section('[source_task]\nalpha = 0\nbeta = 0\ndata = {source = "imagefolder", path = "pictures"}')


@wrong(2, "recipe", "source_task.alpha = -1", "alpha: weight of the source task's loss", kept=())
def negative_weight(desk):
    desk.section('[source_task]\nalpha = -1\ndata = {source = "imagefolder", path = "pictures"}')


@wrong(
    2,
    "recipe",
    "The teacher in t.safetensors knows other classes than the data: it lacks red; it adds violet.",
    "Train the teacher on the same classes",
)
def teacher_of_other_classes(desk):
    desk.checkpoint("t.safetensors", ("blue", "green", "violet"))
    desk.section('[teacher]\ncheckpoint = "t.safetensors"')


@wrong(
    2,
    "recipe",
    "The teacher in t.safetensors knows other classes than the data: another order.",
    "Train the teacher on the same classes",
)
def teacher_of_another_order(desk):
    desk.checkpoint("t.safetensors", ("red", "green", "blue"))
    desk.section('[teacher]\ncheckpoint = "t.safetensors"')


@wrong(2, "recipe", "There is no weight file", "A relative path is taken from the recipe's own folder.")
def teacher_that_is_not_there(desk):
    desk.section('[teacher]\ncheckpoint = "absent.safetensors"')


@wrong(2, "recipe", "weights.safetensors cannot be read as weights", "Copy or download it again.")
def weights_cut_short(desk):
    desk.checkpoint("weights.safetensors", tuple(COLORS))
    path = desk.folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    desk.replace('weights = "none"', 'weights = "weights.safetensors"')


@wrong(
    2,
    "recipe",
    "weights.safetensors does not fit the model; 2 tensors differ",
    "backbone.head = 'replace' starts a fresh one.",
)
def weights_of_other_classes(desk):
    desk.checkpoint("weights.safetensors", ("cat", "dog"))
    desk.replace('weights = "none"', 'weights = "weights.safetensors"')


@wrong(
    2,
    "recipe",
    "The network has no stage 'layer9' to freeze up to.",
    "It has: conv1, conv2, fc1, fc2.",
)
def stage_that_does_not_exist(desk):
    desk.replace('weights = "none"', 'weights = "none"\nfreeze = "until:layer9"')


@wrong(2, "recipe", "backbone.freeze = 'half'", "until:STAGE", kept=())
def freeze_that_means_nothing(desk):
    desk.replace('weights = "none"', 'weights = "none"\nfreeze = "half"')


def write_fashion(desk, cut):
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = generator.integers(0, 256, (count, 5, 4), np.uint8)
        desk.idx(f"{part}-images-idx3-ubyte", pixels, cut if part == "t10k" else 0)
        desk.idx(f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    desk.replace('source = "imagefolder"\npath = "pictures"', 'source = "fashion-mnist"\npath = "."')


@wrong(
    2,
    "data",
    "t10k-images-idx3-ubyte is cut short or damaged: 393 bytes of values, its header says 400.",
    "Fetch it again.",
    kept=(),
)
def idx_file_cut_short(desk):
    write_fashion(desk, cut=7)


def write_table(desk, rows, encoding="utf-8"):
    (desk.folder / "labels.csv").write_text("path,label\n" + "".join(rows), encoding)
    desk.replace('source = "imagefolder"\npath = "pictures"', 'source = "csv"\npath = "labels.csv"')


def rows_of(desk):
    paths = sorted(path.relative_to(desk.folder) for path in (desk.folder / "pictures").rglob("*.png"))
    return [f"{path.as_posix()},{path.parent.name}\n" for path in paths]


@wrong(
    2,
    "data",
    "2 of 38 pictures of",
    "Paths are taken from the file's own folder",
    kept=(),
)
def table_with_missing_files(desk):
    write_table(desk, [*rows_of(desk), "gone/a.png,red\n", "gone/b.png,blue\n"])


@wrong(
    2, "data", "The test split is empty: 3 pictures in 3 classes", "each class needs three or more.", kept=()
)
def every_class_with_one_picture(desk):
    for path in (desk.folder / "pictures").rglob("*.png"):
        if path.stem != "000":
            path.unlink()


@pytest.mark.parametrize(("make", "code", "kind", "says", "hint", "kept"), CASES)
def test_it_is_one_line_with_a_remedy_and_keeps_what_was_done(
    edgekiln, tmp_path, make, code, kind, says, hint, kept
):
    desk = Desk(tmp_path)
    make(desk)
    exit, out, err = edgekiln(*desk.command, "-q")
    assert (exit, out, len(err.splitlines())) == (code, "", 1), err
    exit, out, _ = edgekiln(*desk.command, "-q", "--json")
    error = json.loads(out)["error"]
    assert (exit, error["code"]) == (code, kind)
    assert says in error["message"]
    assert hint in error["hint"]
    assert f"{error['message']} {error['hint']}" in err
    done = {path.parents[1].name for path in (tmp_path / "runs").rglob("stage.json")}
    assert done == set(kept)


# -- what is odd, and works


def train(edgekiln, desk, *options):
    exit, out, err = edgekiln(*desk.command, *options)
    assert exit == 0, err
    return out + err


def test_a_table_with_a_byte_order_mark_is_read_like_any_other(edgekiln, tmp_path):
    desk = Desk(tmp_path)
    write_table(desk, rows_of(desk), "utf-8-sig")
    assert (tmp_path / "labels.csv").read_bytes()[:3] == b"\xef\xbb\xbf"
    assert "3 classes; test 9, val 6, train 21" in train(edgekiln, desk, "--set", "finetune.epochs=0")


def test_a_class_with_one_picture_is_trained_and_told_and_not_judged(edgekiln, tmp_path):
    desk = Desk(tmp_path)
    (tmp_path / "pictures" / "white").mkdir()
    Image.new("RGB", (30, 30), (250, 250, 250)).save(tmp_path / "pictures" / "white" / "only.png")
    told = train(edgekiln, desk)
    assert "Class 'white' has no picture in val and test: it is trained, and not judged there." in told
    [index] = (tmp_path / "runs").rglob("index.json")
    splits = json.loads(index.read_text())["splits"]
    assert [splits[name]["labels"].count(3) for name in ("train", "val", "test")] == [1, 0, 0]
    [checkpoint] = (tmp_path / "runs").rglob("checkpoint.safetensors")
    from edgekiln.pipeline.training.checkpoint import load_tensors

    assert len(load_tensors(checkpoint)[0]["fc2.bias"]) == 4


def test_a_class_with_one_picture_weighs_like_any_other_where_classes_are_balanced(edgekiln, tmp_path):
    desk = Desk(tmp_path)
    (tmp_path / "pictures" / "white").mkdir()
    Image.new("RGB", (30, 30), (250, 250, 250)).save(tmp_path / "pictures" / "white" / "only.png")
    desk.replace("epochs = 2", "epochs = 1\nclass_balance = true")
    train(edgekiln, desk)
    [log] = (tmp_path / "runs").rglob("log.jsonl")
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines() if '"step", "step"' in line]
    assert losses
    assert np.isfinite(losses).all()


def test_the_stages_of_a_run_are_listed_where_one_is_unknown(edgekiln, tmp_path):
    desk = Desk(tmp_path)
    exit, out, err = edgekiln("run", *desk.command[1:], "-q", "--until", "finetun")
    assert (exit, out, len(err.splitlines())) == (2, "", 1)
    assert "There is no stage 'finetun'; there are: data, finetune, export" in err
    assert "Did you mean 'finetune'?" in err


# -- what would be ignored, or fits by chance


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.source=digits"],
            "path is for source = imagefolder, csv, cifar10, fashion-mnist, not for 'digits'",
        ),
        (["data.download=true"], "download is for source = cifar10, not for 'imagefolder'"),
        (["data.label_column=kind"], "label_column is for source = csv"),
        (["finetune.momentum=0.5"], "momentum is for optimizer = 'sgd'"),
        (["finetune.layer_decay=0.5", "backbone.freeze=backbone"], "layer_decay needs more than one stage"),
    ],
)
def test_keys_without_effect_are_refused(tmp_path, overrides, message):
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(tmp_path / "r.toml", overrides)


def test_a_share_of_a_test_split_that_is_not_there_is_refused(tmp_path):
    write_pictures(tmp_path / "pictures", per_class=12)
    settings = DataSettings(source="imagefolder", path=tmp_path / "pictures", size=16, test_share=0.5)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="has none"):
        prepare_splits(settings, seed=0, folder=tmp_path / "out")


def test_a_head_of_as_many_other_classes_is_no_head_of_these(tmp_path):
    write_pictures(tmp_path / "pictures", per_class=12)
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    recipe = load_recipe(tmp_path / "r.toml", ["finetune.epochs=0"])
    done = run_recipe(recipe, tmp_path / "runs", SilentProgress(), until="finetune")
    checkpoint = done.stages["finetune"].folder / "checkpoint.safetensors"
    for name in ("blue", "green", "red"):
        (tmp_path / "pictures" / name).rename(tmp_path / "pictures" / f"new {name}")
    other = load_recipe(tmp_path / "r.toml", ["name=other", f"backbone.weights={checkpoint}"])
    with pytest.raises(RecipeError, match=r"knows other classes, or in another order.*head = 'replace'"):
        run_recipe(other, tmp_path / "runs", SilentProgress(), until="finetune")
