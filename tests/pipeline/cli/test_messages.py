"""What a newcomer gets wrong, and what the command line answers.

Each answer says what was got, what was wanted, where, and what to do, in one or two lines, with the right exit code
and no traceback; under `--json` the same stands in `error`. `says` are words of the message, `hint` words of the
remedy, `path` is the end of the path that is named (`None` where no file is concerned).
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tests_support import ROOT, TINY_RECIPE, write_pictures

from edgekiln.pipeline.cli import main
from edgekiln.runtime import errors
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Mistake:
    name: str
    arrange: Callable
    exit: int
    code: str
    says: tuple[str, ...]
    hint: str
    path: str | None


MISTAKES: list[Mistake] = []


def mistake(name, *, exit=2, code="usage", says, hint, path=None):
    """Registers a function from a `Desk` to the arguments that are typed."""

    def register(arrange):
        texts = (says,) if isinstance(says, str) else says
        MISTAKES.append(Mistake(name, arrange, exit, code, texts, hint, path))
        return arrange

    return register


class Desk:
    """A folder to make mistakes in, which is the current one."""

    def __init__(self, folder: Path, tiny_bundle: Path, monkeypatch) -> None:
        self.folder, self._bundle, self.patch = folder, tiny_bundle, monkeypatch

    def recipe(self, *edits: tuple[str, str], name: str = "r.toml") -> str:
        """The tiny recipe with texts replaced; a text that is not there would make the test void."""
        text = TINY_RECIPE
        for old, new in edits:
            assert old in text
            text = text.replace(old, new, 1)
        (self.folder / name).write_text(text)
        return name

    def run(self, *edits: tuple[str, str]) -> list[str]:
        return ["run", self.recipe(*edits), "-q"]

    def run_on(self, folder: str) -> list[str]:
        return self.run(('path = "pictures"', f'path = "{folder}"'))

    def pictures(self, folder: str = "pictures", per_class: int = 6) -> Path:
        return write_pictures(self.folder / folder, per_class=per_class)

    def picture(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (len(path), 90, 200)).save(target)
        return target

    def write(self, path: str, content: bytes | str) -> str:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bundle(self, name: str = "b") -> Path:
        return Path(shutil.copytree(self._bundle, self.folder / name))

    def edit_manifest(self, change: Callable[[dict], None]) -> None:
        path = self.bundle() / MANIFEST_NAME
        manifest = json.loads(path.read_text("utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), "utf-8")


@pytest.fixture
def desk(tmp_path, tiny_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, tiny_run[2].bundle, monkeypatch)


@pytest.fixture
def edgekiln(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


# -- the command line

mistake("typo in a command", says="No such command 'rum'. Did you mean 'run'?", hint="See: edgekiln --help")(
    lambda desk: ["rum", "r.toml"]
)
mistake(
    "typo in a flag",
    says="No such option '--untill'. Did you mean '--until'?",
    hint="See: edgekiln run --help",
)(lambda desk: ["run", "r.toml", "--untill", "export"])
mistake("no recipe named", says="Missing argument 'RECIPE'.", hint="See: edgekiln run --help")(
    lambda desk: ["run"]
)
mistake("unknown device", says="Unknown device 'gpu'; known: cpu, cuda, cuda:0", hint="Leave the device out")(
    lambda desk: ["predict", desk.bundle(), "a.png", "--device", "gpu"]
)
mistake(
    "typo in a stage",
    says=("no stage 'quantise'", "there are: data, finetune"),
    hint="Did you mean 'evaluate'?",
)(lambda desk: [*desk.run(), "--until", "quantise"])
mistake("typo in a stage to force", says="no stage 'finetun'", hint="Did you mean 'finetune'?")(
    lambda desk: [*desk.run(), "--force", "finetun"]
)
mistake(
    "a setting without value", code="recipe", says="wanted section.key=value", hint="--set finetune.epochs=2"
)(lambda desk: [*desk.run(), "--set", "finetune.epochs"])
mistake(
    "a setting below a value",
    code="recipe",
    says="'epochs' is a value, not a section",
    hint="Set it as a whole",
)(lambda desk: [*desk.run(), "--set", "finetune.epochs.x=3"])
mistake(
    "a setting of no variant", code="recipe", says="no variant 'int9'", hint="The recipe has: fp32, int8."
)(lambda desk: [*desk.run(), "--set", "variants.int9.required=false"])

# -- the recipe

mistake(
    "no such recipe",
    code="recipe",
    says="There is no recipe recipe.toml",
    hint="recipes/",
    path="recipe.toml",
)(lambda desk: ["run", "recipe.toml"])


@mistake(
    "typo in the recipe's name",
    code="recipe",
    says="no recipe tiney.toml",
    hint="tiny.toml?",
    path="tiney.toml",
)
def _(desk):
    desk.recipe(name="tiny.toml")
    return ["run", "tiney.toml"]


@mistake(
    "a folder as recipe",
    code="recipe",
    says="recipes is a folder, wanted a TOML file",
    hint="a.toml",
    path="recipes",
)
def _(desk):
    desk.write("recipes/a.toml", "")
    return ["run", "recipes"]


mistake(
    "no TOML", code="recipe", says=("r.toml is not valid TOML", "line 1"), hint="[brackets]", path="r.toml"
)(lambda desk: ["run", desk.write("r.toml", "name = tiny\n")])
mistake("another encoding", code="recipe", says="no text in UTF-8", hint="Save it as UTF-8", path="r.toml")(
    lambda desk: ["run", desk.write("r.toml", "name = 'grün'".encode("latin-1"))]
)
mistake(
    "typo at top level",
    code="recipe",
    says="unknown key 'sed'; did you mean 'seed'?",
    hint="Rename",
    path="r.toml",
)(lambda desk: desk.run(("seed", "sed")))
mistake(
    "typo in a section", code="recipe", says="unknown key 'finetune.epoch'; did you mean 'epochs'?", hint="Rename",
    path="r.toml",
)(lambda desk: desk.run(("epochs", "epoch")))  # fmt: skip
mistake(
    "typo in a variant", code="recipe", hint="Rename", path="r.toml",
    says="unknown key 'variants.int8.calibration_image'; did you mean 'calibration_images'?",
)(lambda desk: desk.run(("calibration_images", "calibration_image")))  # fmt: skip
mistake("a missing key", code="recipe", says="'backbone.model' is missing", hint="timm/NAME", path="r.toml")(
    lambda desk: desk.run(('model = "edgekiln/tiny-cnn"\n', ""))
)
mistake(
    "a wrong type", code="recipe", says=("finetune.epochs = 'two'", "valid integer"), hint="Left out, it is 4.",
    path="r.toml",
)(lambda desk: desk.run(("epochs = 2", 'epochs = "two"')))  # fmt: skip
mistake(
    "percent for a share", code="recipe", says=("data.validation = 20", "less than 1"), hint="share of train",
    path="r.toml",
)(lambda desk: desk.run(("validation = 0.2", "validation = 20")))  # fmt: skip
mistake(
    "percent for a floor", code="recipe", says=("gate.min_top1 = 90", "less than 1"), path="r.toml",
    hint="a share that top-1 must reach",
)(lambda desk: desk.run(("[gate]", "[gate]\nmin_top1 = 90")))  # fmt: skip
mistake(
    "an unknown precision", code="recipe",
    says=("variants.int8.precision = 'int4'", "'fp32', 'fp16', 'bf16' or 'int8'"),
    hint="what the engine's products compute in", path="r.toml",
)(lambda desk: desk.run(('precision = "int8"', 'precision = "int4"')))  # fmt: skip
mistake(
    "a precision that the backend lacks", code="recipe", path="r.toml", hint="Change one of the keys",
    says=("variants.int8: onnxruntime-cpu has no fp16 variant", "its precisions are fp32, int8"),
)(lambda desk: desk.run(('precision = "int8"', 'precision = "fp16"')))  # fmt: skip
mistake(
    "an unknown backend", code="recipe", says=("variants.int8.backend = 'tensort'", "'tensorrt'"),
    hint="Left out, it is 'onnxruntime-cpu'", path="r.toml",
)(lambda desk: desk.run(('precision = "int8"', 'precision = "int8"\nbackend = "tensort"')))  # fmt: skip
mistake("an unknown source", code="data", says="Unknown data.source 'imagefoldr'", hint="Known: imagefolder")(
    lambda desk: desk.run(("imagefolder", "imagefoldr"))
)


@mistake("an unknown backbone", code="recipe", says="no model 'resnet_18'", hint="Similar: resnet18")
def _(desk):
    desk.pictures()
    return desk.run(("edgekiln/tiny-cnn", "timm/resnet_18"))


@mistake(
    "a backbone without its library",
    code="recipe",
    says="Unknown backbone 'resnet18'",
    hint="'timm/resnet18'",
)
def _(desk):
    desk.pictures()
    return desk.run(("edgekiln/tiny-cnn", "resnet18"))


# -- the data

mistake(
    "no such folder to look at", code="data", says="There is no folder nowhere.", hint="taken from where you are",
    path="nowhere",
)(lambda desk: ["init", "nowhere"])  # fmt: skip
mistake(
    "a file to look at", code="data", says="a.zip is a file, wanted the folder", hint="above the class folders",
    path="a.zip",
)(lambda desk: ["init", desk.write("a.zip", b"PK")])  # fmt: skip


@mistake(
    "a table of paths from elsewhere", code="data",
    says="labels.csv lists the pictures of raw by paths that begin in raw", hint="Move the table into raw",
    path="labels.csv",
)  # fmt: skip
def _(desk):
    desk.picture("raw/a.png")
    desk.picture("raw/b.png")
    desk.write("labels.csv", "file,label\na.png,cat\nb.png,dog\n")
    return ["init", "raw"]


mistake(
    "no such folder",
    code="data",
    says="There is no folder nowhere",
    hint="recipe's own folder",
    path="nowhere",
)(lambda desk: desk.run_on("nowhere"))


@mistake(
    "a file as folder",
    code="data",
    says="photos.zip is a file, data.path wants a folder",
    hint="",
    path="photos.zip",
)
def _(desk):
    return desk.run_on(desk.write("photos.zip", b"PK"))


@mistake(
    "an empty folder",
    code="data",
    says="it holds no files",
    hint="Wanted empty/CLASS/PICTURE.jpg",
    path="empty",
)
def _(desk):
    (desk.folder / "empty").mkdir()
    return desk.run_on("empty")


@mistake(
    "pictures in no class", code="data", says="2 pictures lie in no class folder, the first is a.png",
    hint="into a folder that is named after its class", path="flat",
)  # fmt: skip
def _(desk):
    desk.picture("flat/a.png")
    desk.picture("flat/b.png")
    return desk.run_on("flat")


@mistake(
    "one picture in no class", code="data", says="1 picture lies in no class folder, the first is a.png",
    hint="into a folder that is named after its class", path="flat",
)  # fmt: skip
def _(desk):
    desk.picture("flat/a.png")
    return desk.run_on("flat")


@mistake(
    "pictures of another format", code="data", says="2 other files (.heic, .tiff)", hint=".jpeg", path="raw"
)
def _(desk):
    desk.write("raw/cat/a.tiff", b"x")
    desk.write("raw/dog/a.heic", b"x")
    return desk.run_on("raw")


@mistake(
    "a class that is called like a split", code="data",
    says=("train looks like a split", "The tree: p/{bus/ 1, car/ 1, train/{electric/ 1, steam/ 1}}."),
    hint="If train is a class, give it another name; if it is a split, move bus into it or away.", path="p",
)  # fmt: skip
def _(desk):
    for name in ("bus", "car", "train/electric", "train/steam"):
        desk.picture(f"p/{name}/a.png")
    return desk.run_on("p")


@mistake(
    "pictures of two splits whose labels stand in a table", code="data",
    says=("look like splits, not like classes: test, train", "The tree: p/{test/ 1, train/ 1}.", "a table, train.csv"),
    hint="set data.source = 'csv' and data.path = 'p/train.csv'", path="p",
)  # fmt: skip
def _(desk):
    desk.picture("p/train/a.png")
    desk.picture("p/test/b.png")
    desk.write("p/train.csv", "path,label\n")
    return desk.run_on("p")


@mistake(
    "two folders for one split", code="data", says="Two folders could be the train split: Train and training",
    hint="Call one of them train", path="p",
)  # fmt: skip
def _(desk):
    for name in ("Train/cat", "Train/dog", "training/cat", "training/dog"):
        desk.picture(f"p/{name}/a.png")
    return desk.run_on("p")


@mistake(
    "a control character in a class", code="data", says="'c\\x07t' would be a class",
    hint="Give it another name", path="p/c\x07t",
)  # fmt: skip
def _(desk):
    desk.picture("p/c\x07t/a.png")
    desk.picture("p/dog/b.png")
    return desk.run_on("p")


@mistake(
    "a control character in a label", code="data", says="The class '\\x1b[31mcat' holds a control character",
    hint="Give it another name, in the labels", path="labels.csv",
)  # fmt: skip
def _(desk):
    desk.picture("a.png")
    desk.picture("b.png")
    desk.write("labels.csv", "path,label\na.png,\x1b[31mcat\nb.png,dog\n")
    return desk.run(("imagefolder", "csv"), ('path = "pictures"', 'path = "labels.csv"'))


@mistake(
    "equal pixels in train and test", code="data",
    says=("18 pictures have the same pixels in two splits", " = test/blue/0", "; and 15 more."),
    hint="set data.leaks = 'move'", path="p",
)  # fmt: skip
def _(desk):
    desk.pictures("p/train")
    desk.pictures("p/test")
    return desk.run_on("p")


@mistake(
    "another data set of the same name", says="runs/tiny belongs to another data set, ", hint="with --runs",
    path="runs/tiny",
)  # fmt: skip
def _(desk):
    for name in ("cat", "dog"):
        desk.picture(f"yours/{name}/a.png")
    about = {"source": "imagefolder", "place": "/elsewhere/photos", "sizes": {"cat/a.png": 3}}
    desk.write("runs/tiny/data.json", json.dumps(about))
    return desk.run_on("yours")


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["transfer", "dry"])
def test_a_study_of_another_data_set_is_refused_as_a_run_is(desk, edgekiln, options):
    desk.pictures("yours")
    about = {"source": "imagefolder", "place": "/elsewhere/photos", "sizes": {"blue/000.png": 3}}
    desk.write("runs/tiny/data.json", json.dumps(about))
    recipe = desk.recipe(('path = "pictures"', 'path = "yours"'), ('weights = "none"', 'weights = "w.pth"'))
    exit, _, err = edgekiln("transfer", recipe, "--methods", "scratch", "--shares", "1", "-q", *options)
    assert exit == 2
    assert err.startswith("edgekiln: runs/tiny belongs to another data set, /elsewhere/photos; this one is ")
    assert "with --runs" in err
    assert not (desk.folder / "runs/tiny/stages").exists()


def test_a_study_remembers_its_data_set(desk, monkeypatch):
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.study import cells
    from edgekiln.pipeline.workspace.progress import SilentProgress

    desk.pictures()
    recipe = desk.recipe(('weights = "none"', 'weights = "w.pth"'))
    plan, _ = cells.make_plan(load_recipe(Path(recipe)), methods=["scratch"], shares=[1.0], seeds=1)
    monkeypatch.setattr(cells, "run_stages", lambda *_: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception):
        cells.run_study(plan, Path("runs"), SilentProgress())
    kept = json.loads(Path("runs/tiny/data.json").read_text())
    assert (kept["source"], kept["place"]) == ("imagefolder", str((desk.folder / "pictures").resolve()))


@mistake(
    "one class",
    code="data",
    says="Found 1 class (cat), wanted at least 2",
    hint="a folder of its own",
    path="one",
)
def _(desk):
    desk.picture("one/cat/a.png")
    return desk.run_on("one")


@mistake(
    "splits without train", code="data", says="look like splits, not like classes: Test, Val",
    hint="Wanted FOLDER/CLASS/PICTURE", path="splits",
)  # fmt: skip
def _(desk):
    desk.pictures("splits/Val")
    desk.pictures("splits/Test")
    return desk.run_on("splits")


@mistake(
    "an empty class",
    code="data",
    says="Class 'yellow' has no picture in train, in p",
    hint="Add pictures",
    path="p",
)
def _(desk):
    (desk.pictures("p") / "yellow").mkdir()
    return desk.run_on("p")


@mistake(
    "a class in test alone", code="data", says="different classes: yellow (yellow only in p/test)",
    hint="Every split wants a folder for each class", path="p/test",
)  # fmt: skip
def _(desk):
    desk.pictures("p/train")
    desk.pictures("p/test")
    desk.picture("p/test/yellow/a.png")
    return desk.run_on("p")


@mistake(
    "too few to split", code="data", says=("p: The test split is empty", "2 pictures in 2 classes"),
    hint="each class needs three or more", path="p",
)  # fmt: skip
def _(desk):
    desk.picture("p/cat/a.png")
    desk.picture("p/dog/b.png")
    return desk.run_on("p")


@mistake("too few to validate", code="data", says="The val split is empty", hint="three or more", path="p")
def _(desk):
    desk.pictures("p", per_class=2)
    return desk.run_on("p")


@mistake(
    "cut-off pictures", code="data", says=("6 of 18 pictures are unreadable", "the first is blue/000.png", "truncated"),
    hint="raise data.max_unreadable", path="p/blue/000.png",
)  # fmt: skip
def _(desk):
    for path in (desk.pictures("p") / "blue").iterdir():
        path.write_bytes(path.read_bytes()[:90])
    return desk.run_on("p")


@mistake(
    "a class folder without permission", code="data", says="p/red/more cannot be read: Permission denied",
    hint="chmod u+rx", path="p/red/more",
)  # fmt: skip
def _(desk):
    desk.pictures("p")
    desk.picture("p/red/more/a.png")
    allowed = os.scandir

    def scan(path="."):  # whoever runs the tests may be root, whom no permission stops
        if str(path).endswith("p/red/more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path)

    desk.patch.setattr(os, "scandir", scan)
    return desk.run_on("p")


# -- weights


def weights(desk, name):
    desk.pictures()
    return desk.run(('weights = "none"', f'weights = "{name}"'))


mistake(
    "unknown weights", code="recipe", says=("backbone.weights = 'imagnet'", "known: imagenet, none"),
    hint="Left out, it is 'imagenet'", path="r.toml",
)(lambda desk: weights(desk, "imagnet"))  # fmt: skip
mistake(
    "no such weights",
    code="recipe",
    says="There is no weight file w.pth",
    hint="recipe's own folder",
    path="w.pth",
)(lambda desk: weights(desk, "w.pth"))
mistake(
    "weights that are none",
    code="recipe",
    says="w.pth cannot be read as weights",
    hint="state_dict",
    path="w.pth",
)(lambda desk: weights(desk, desk.write("w.pth", b"garbage" * 20)))

mistake(
    "weights of an unknown ending", code="recipe", says=("backbone.weights = 'w.h5'", ".ckpt, .bin, .pth.tar"),
    hint="or what torch.save wrote", path="r.toml",
)(lambda desk: weights(desk, desk.write("w.h5", b"\x89HDF\r\n")))  # fmt: skip
mistake(
    "a page in the place of weights", code="recipe", says="w.bin cannot be read as weights: it is a web page",
    hint="Download the file itself", path="w.bin",
)(lambda desk: weights(desk, desk.write("w.bin", b"<!DOCTYPE html>")))  # fmt: skip
mistake(
    "a pointer in the place of weights", code="recipe", says="it is a pointer of Git LFS", hint="git lfs pull",
    path="w.pt",
)(lambda desk: weights(desk, desk.write("w.pt", b"version https://git-lfs.github.com/spec/v1\n")))  # fmt: skip


@mistake(
    "a checkpoint with objects", code="recipe",
    says=("c.ckpt cannot be read as weights: it holds types.SimpleNamespace besides tensors",),
    hint="torch.save(torch.load('c.ckpt', weights_only=False)['state_dict'], 'weights.pth')", path="c.ckpt",
)  # fmt: skip
def _(desk):
    import torch

    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": types.SimpleNamespace(lr=1)}, "c.ckpt")
    return weights(desk, "c.ckpt")


@mistake(
    "a whole network in the place of weights", code="recipe", says="holds a whole pickled network (torch.nn.modules.",
    hint="weights_only=False).state_dict(), 'weights.pth')", path="n.pt",
)  # fmt: skip
def _(desk):
    import torch

    torch.save(torch.nn.Linear(2, 2), "n.pt")
    return weights(desk, "n.pt")


@mistake(
    "weights of another network under a prefix", code="recipe", path="o.pth",
    says=("o.pth does not fit", "Nearest in the file to conv1.weight (64 x 3 x 3 x 3): module.stem.conv.weight"),
    hint="the same network as backbone.model",
)  # fmt: skip
def _(desk):
    import torch

    torch.save(
        {"module.stem.conv.weight": torch.zeros(8, 3, 3, 3), "module.fc.bias": torch.zeros(3)}, "o.pth"
    )
    return weights(desk, "o.pth")


@mistake(
    "weights of another network", code="recipe", says=("o.safetensors does not fit the model", "conv1.weight"),
    hint="the same network as backbone.model", path="o.safetensors",
)  # fmt: skip
def _(desk):
    from safetensors.numpy import save_file

    save_file({"stem.weight": np.zeros(3, np.float32)}, desk.folder / "o.safetensors")
    return weights(desk, "o.safetensors")


# -- bundles

mistake("no such bundle", says="There is no folder nowhere", hint="RUNS/NAME/bundle", path="nowhere")(
    lambda desk: ["predict", "nowhere", "a.png"]
)
mistake(
    "a file as bundle", says="a.onnx is a file, a bundle is a folder", hint="RUNS/NAME/bundle", path="a.onnx"
)(lambda desk: ["predict", desk.write("a.onnx", b"x"), "a.png"])


@mistake(
    "a run for its bundle",
    says="is no bundle: it has no manifest.json",
    hint="Did you mean run/bundle?",
    path="run",
)
def _(desk):
    desk.bundle("run/bundle")
    return ["predict", "run", "a.png"]


@mistake("another folder as bundle", says="photos is no bundle", hint="RUNS/NAME/bundle", path="photos")
def _(desk):
    desk.picture("photos/a.png")
    return ["predict", "photos", "photos/a.png"]


mistake(
    "typo in a variant's name",
    says=("no variant 'int9'", "it has: fp32, int8"),
    hint="Give one of these",
    path="b",
)(lambda desk: ["predict", desk.bundle(), desk.picture("a.png"), "--variant", "int9"])
mistake(
    "an unverified engine without a name",
    says="allow_unverified needs a variant by name",
    hint="variant=... (--variant NAME)",
)(lambda desk: ["predict", desk.bundle(), desk.picture("a.png"), "--allow-unverified"])


@mistake(
    "an engine that did not pass",
    says="its whole interval is inside",
    hint="--allow-unverified",
)
def _(desk):
    desk.edit_manifest(
        lambda m: m["variants"][1].update(verdict="fail", reason="its whole interval is inside")
    )
    return ["predict", "b", desk.picture("a.png"), "--variant", "int8"]


mistake("a cache to prune without choice", says="not told which engines", hint="--older-than DAYS, or --all")(
    lambda desk: ["cache", "prune"]
)
mistake("a cache to prune twice over", says="exclude each other", hint="--older-than DAYS, or --all")(
    lambda desk: ["cache", "prune", "--all", "--older-than", "3"]
)
mistake(
    "a recipe to standard output",
    says="init writes its recipe to a file, not to standard output",
    hint="the name of a file",
)(lambda desk: ["init", desk.pictures(), "--out", "-"])
mistake(
    "a device that no variant is for",
    says="no variant for cuda; it has: fp32 on onnxruntime-cpu",
    hint="add one",
    path="b",
)(lambda desk: ["predict", desk.bundle(), desk.picture("a.png"), "--device", "cuda:1"])


@mistake(
    "no GPU",
    exit=5,
    code="environment",
    says="can run here: fp32 cannot run here",
    hint="doctor",
    path="b",
)
def _(desk):
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime lists CUDA here")
    desk.edit_manifest(lambda m: m["variants"][0].update(backend="onnxruntime-cuda"))
    return ["predict", "b", desk.picture("a.png"), "--device", "cuda"]


def spoil(desk, change):
    change(desk.bundle())
    return ["predict", "b", desk.picture("a.png")]


mistake(
    "a changed file",
    exit=4,
    code="bundle",
    says="b/int8.onnx was changed",
    hint="fresh copy",
    path="b/int8.onnx",
)(lambda desk: spoil(desk, lambda b: (b / "int8.onnx").write_bytes(b"x")))
mistake(
    "a missing file",
    exit=4,
    code="bundle",
    says="int8.onnx is missing from b",
    hint="fresh",
    path="b/int8.onnx",
)(lambda desk: spoil(desk, lambda b: (b / "int8.onnx").unlink()))
mistake(
    "a file too many",
    exit=4,
    code="bundle",
    says="b/notes.txt is not listed",
    hint="Remove it",
    path="b/notes.txt",
)(lambda desk: spoil(desk, lambda b: (b / "notes.txt").touch()))
mistake(
    "a cut manifest",
    exit=4,
    code="bundle",
    says="not a valid manifest",
    hint="fresh copy",
    path="b/manifest.json",
)(lambda desk: spoil(desk, lambda b: (b / MANIFEST_NAME).write_text("{")))


@mistake(
    "a newer schema", exit=4, code="bundle", says=("has schema version 2.0", "reads 1.x"), hint="version that made",
    path="b/manifest.json",
)  # fmt: skip
def _(desk):
    desk.edit_manifest(lambda m: m.update(schema_version="2.0"))
    return ["predict", "b", "a.png"]


@mistake(
    "bundles that do unlike work",
    says="one knows blue, green, red, the other",
    hint="the same classes",
    path="c",
)
def _(desk):
    from edgekiln.runtime.bundles.manifest import write_manifest
    from edgekiln.runtime.contract import Contract

    desk.bundle()
    other = desk.bundle("c")
    manifest = json.loads((other / MANIFEST_NAME).read_text("utf-8"))
    manifest["contract"]["classes"] = ["cat", "dog", "owl"]
    manifest["contract_digest"] = Contract.from_dict(manifest["contract"]).digest
    write_manifest(other, {k: v for k, v in manifest.items() if k not in {"files", "schema_version"}})
    return ["compare", "b", "c"]


mistake("bench of a bundle alone", says="Missing option '--data'", hint="--out DERIVED; or --runtime")(
    lambda desk: ["bench", desk.bundle()]
)
mistake(
    "bench into its bundle", says="lies inside the bundle that it is made from", hint="another", path="b/o"
)(lambda desk: ["bench", desk.bundle(), "--data", ".", "--out", "b/o"])
mistake("bench of a recipe with pictures", says="--data belong to the bench of a bundle", hint="DERIVED")(
    lambda desk: ["bench", desk.recipe(), "--data", "."]
)
mistake(
    "nothing to build", says="holds no graph to build an engine from", hint="backend = 'tensorrt'", path="b"
)(lambda desk: ["build", desk.bundle(), "--out", "o", "-q"])

# -- single files


def model_with_contract(text):
    from edgekiln.pipeline.doctor.tiny_model import make_tiny_model
    from edgekiln.runtime.onnx_files.metadata import CONTRACT_KEY

    model = onnx.load_from_string(make_tiny_model())
    onnx.helper.set_model_props(model, {CONTRACT_KEY: text})
    return model.SerializeToString()


mistake(
    "a damaged contract",
    exit=4,
    code="contract",
    says="o.onnx: The stored contract is not JSON",
    hint="export it again",
    path="o.onnx",
)(lambda desk: ["inspect", desk.write("o.onnx", model_with_contract("{"))])
mistake(
    "no ONNX", exit=4, code="untrusted", says="o.onnx is no ONNX file", hint="export it again", path="o.onnx"
)(lambda desk: ["inspect", desk.write("o.onnx", "hello hello")])
mistake(
    "no engine", exit=4, code="engine", says=("e.engine: This is no", "b'PK"), hint="b'ftrt'", path="e.engine"
)(lambda desk: ["inspect", desk.write("e.engine", b"PK" + bytes(100))])
mistake(
    "no checkpoint",
    exit=4,
    code="untrusted",
    says="no checkpoint of edgekiln",
    hint="stages/finetune",
    path="c.safetensors",
)(lambda desk: ["inspect", desk.write("c.safetensors", b"hello hello")])
mistake(
    "a kind that nobody knows",
    says="(ending .pt)",
    hint="It inspects bundles (folders, .zip), .onnx",
    path="m.pt",
)(lambda desk: ["inspect", desk.write("m.pt", b"x")])
mistake("no report", says="photos holds no finished report", hint="`edgekiln run` makes them", path="photos")(
    lambda desk: ["report", desk.picture("photos/a.png").parent.name]
)


@mistake(
    "a cut report",
    exit=4,
    code="untrusted",
    says="it may be cut off",
    hint="makes a damaged one anew",
    path="r.json",
)
def _(desk):
    text = (desk.bundle() / "report.json").read_text("utf-8")
    return ["report", desk.write("r.json", text[: len(text) // 2])]


# -- the environment


@mistake(
    "a missing extra",
    exit=5,
    code="missing_extra",
    says="'timm' is needed here",
    hint="pip install 'edgekiln[build]'",
)
def _(desk):
    desk.patch.setitem(sys.modules, "timm", None)
    return desk.run()


@mistake(
    "two onnxruntimes", exit=5, code="environment", hint="doctor", path="b",
    says="onnxruntime and onnxruntime-gpu are both installed",
)  # fmt: skip
def _(desk):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = f"site/{name.replace('-', '_')}-1.0.dist-info/METADATA"
        desk.write(info, f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    desk.patch.syspath_prepend(str(desk.folder / "site"))
    return ["predict", desk.bundle(), desk.picture("a.png")]


@mistake(
    "a runs folder that is no folder", exit=6, code="resources", says="f/runs/tiny cannot be written: Not a directory",
    hint="--runs", path="f/runs/tiny",
)  # fmt: skip
def _(desk):
    desk.write("f", "")
    return [*desk.run(), "--runs", "f/runs"]


@mistake(
    "no space",
    exit=6,
    code="resources",
    says="No space is left for runs/tiny",
    hint="Free some",
    path="runs/tiny",
)
def _(desk):
    desk.pictures()

    def write(*arguments):  # as the system says it while writing: without a file's name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    desk.patch.setattr("edgekiln.pipeline.data.arrays.ArrayWriter.add", write)
    return desk.run()


# -- the tests


@pytest.mark.parametrize("wrong", MISTAKES, ids=lambda m: m.name.replace(" ", "-"))
def test_answer(wrong, desk, edgekiln):
    arguments = wrong.arrange(desk)
    exit, out, err = edgekiln(*arguments)
    assert (exit, out) == (wrong.exit, ""), err
    assert "Traceback" not in err
    assert 1 <= len(err.splitlines()) <= 2, err
    assert err.startswith("edgekiln: ")
    exit, out, _ = edgekiln(*arguments, "--json")
    document = json.loads(out)
    error = document["error"]
    assert (exit, document["ok"], document["schema_version"]) == (wrong.exit, False, "1.0")
    assert error["code"] == wrong.code
    assert [text for text in wrong.says if text not in error["message"]] == [], error["message"]
    assert error["hint"], error["message"]
    assert wrong.hint in error["hint"]
    assert (error["path"] or "").endswith(wrong.path or "")
    assert (error["path"] is None) == (wrong.path is None)
    assert error["message"] in err
    assert error["hint"] in err


def test_a_message_without_a_full_stop_gets_one_before_the_remedy(desk, edgekiln):
    desk.edit_manifest(
        lambda m: m["variants"][1].update(verdict="fail", reason="its whole interval is inside")
    )
    _, _, err = edgekiln("predict", "b", desk.picture("a.png"), "--variant", "int8")
    assert "its whole interval is inside. Take another variant" in err


def test_a_bug_is_told_in_sentences(desk, edgekiln):
    def find(*arguments):
        raise AssertionError("no end")

    desk.patch.setattr("edgekiln.pipeline.cli.predict.PictureSearch", find)
    code, _, err = edgekiln("predict", "b", "a.png")
    assert code == 1
    assert err.startswith("edgekiln: This is a bug in edgekiln: AssertionError: no end. Please report it")


def test_the_catalogue_is_long_and_has_no_mistake_twice():
    names = [wrong.name for wrong in MISTAKES]
    assert len(names) == len(set(names)) >= 30


@pytest.mark.parametrize(
    ("content", "says", "remedy"),
    [
        (None, "There is no file x.png", "Check the path"),
        (b"", "starts with b''", "The file is empty"),
        (b"hello", "x.png is not a JPEG, PNG, WEBP, BMP picture (5 bytes", "Convert it to JPEG or PNG"),
        ("truncated", "x.png cannot be decoded: image file is truncated", "Copy or export it again"),
        ("corrupt", "x.png cannot be decoded", "Copy or export it again"),
        ("large", "x.png has 9000 x 9000 pixels, the limit is 50000000", "Scale it down"),
    ],
    ids=["missing", "empty", "text", "truncated", "corrupt", "too-large"],
)
def test_pictures_that_cannot_be_read_are_named_with_reason_and_remedy(desk, edgekiln, content, says, remedy):
    if content == "large":
        Image.new("1", (9000, 9000)).save("x.png")
    elif isinstance(content, str):
        data = bytearray(desk.pictures().joinpath("blue/000.png").read_bytes())
        data[60:90] = bytes(30)
        desk.write(
            "x.png",
            bytes(data)
            if content == "corrupt"
            else (desk.folder / "pictures/blue/001.png").read_bytes()[:300],
        )
    elif content is not None:
        desk.write("x.png", content)
    exit, out, err = edgekiln("predict", desk.bundle(), "x.png")
    assert (exit, out) == (2, "")
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if says in line]
    assert remedy in line
    exit, out, _ = edgekiln("predict", "b", "x.png", "--json")
    document = json.loads(out)
    [failure] = document["failures"]
    assert (exit, document["ok"], failure["path"]) == (2, False, "x.png")
    assert says in failure["message"]


def test_an_engine_of_another_version_is_explained_from_its_header(desk, edgekiln):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    desk.write("e.engine", b"vtrt" + bytes(20) + bytes([1, 6, 1, 116]) + bytes(100))
    exit, out, _ = edgekiln("inspect", "e.engine")
    assert exit == 0
    assert (
        "loads_here: no: it was built by TensorRT-RTX 1.6.1.116 and runs with exactly that; here is 1." in out
    )


def test_a_class_with_one_picture_is_told(desk, edgekiln):
    desk.pictures()
    desk.picture("pictures/yellow/only.png")
    exit, _, err = edgekiln("run", desk.recipe(), "--until", "data")
    assert exit == 0
    assert "Class 'yellow' has no picture in val and test: it is trained, and not judged there." in err


@pytest.mark.slow
def test_a_class_with_one_picture_is_told_in_the_report(desk, edgekiln):
    desk.pictures(per_class=30)
    desk.picture("pictures/yellow/only.png")
    exit, out, _ = edgekiln("run", desk.recipe(("[gate]", '[gate]\ninconclusive = "warn"')), "-q")
    assert exit in {0, 3}
    assert "Class 'yellow' has no picture in val and test" in out
    report = json.loads(Path("runs/tiny/bundle/report.json").read_text("utf-8"))
    assert report["notices"][0].startswith("Class 'yellow' has no picture in val and test")


def test_a_folder_that_may_not_be_read_is_refused_by_the_system_itself():
    """As somebody whom permissions stop: root looks at everything."""
    code = (
        "import os, sys\n"
        "from edgekiln.pipeline.data import read_source\n"
        "from edgekiln.pipeline.recipe import DataSettings\n"
        "from edgekiln.runtime.errors import DataError\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: read_source(DataSettings(source='imagefolder', path=sys.argv[1]))\n"
        "except DataError as error: print(error.message)"
    )
    with tempfile.TemporaryDirectory() as above:  # pytest's own folders are for their owner alone
        Path(above).chmod(0o755)
        folder = write_pictures(Path(above) / "pictures", per_class=2)
        (folder / "red").chmod(0)
        try:
            command = [sys.executable, "-c", code, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            (folder / "red").chmod(0o755)
    assert done.stdout == f"The folder {folder / 'red'} cannot be read: Permission denied.\n"


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_told_like_a_full_disk(desk):
    """The system's own limit on the size of a file stands for the full disk."""
    desk.pictures(per_class=40)
    code = (
        "import resource\n"
        "from edgekiln.pipeline.cli import main\n"
        "import torch, torchvision, timm, onnx, jinja2, onnxruntime\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "main(['run', 'r.toml', '-q'])"
    )
    desk.recipe()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert re.fullmatch(
        r"edgekiln: \S*runs/tiny\S* may not grow as it would have to: File too large\. Raise the limit .*\n",
        done.stderr,
    )
    assert "data" not in {path.name for path in Path("runs/tiny/stages").glob("*/[0-9a-f]*")}


# -- the table of error codes


def test_every_error_code_is_in_the_documents_table():
    kinds = [getattr(errors, name) for name in errors.__all__]
    codes = {kind.code: int(kind.exit_code) for kind in kinds if hasattr(kind, "code")}
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE))
    assert {code: int(number) for code, number in told.items()} == codes
