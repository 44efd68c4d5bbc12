"""What is wrong with a network is told before anything is trained."""

import contextlib

import pytest
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.recipe import BackboneSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.training.trial import try_backbone
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.errors import MissingExtraError, RecipeError

OWN = '''
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)

    def features(self, x):
        return self.conv(x).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))

class Pair(Base):
    def forward(self, x):
        return super().forward(x), x

class PairInTraining(Base):
    def forward(self, x):
        y = super().forward(x)
        return (y, y) if self.training else y

class Named(Base):
    def forward(self, x):
        return {"logits": super().forward(x)}

class Softmax(Base):
    def forward(self, x):
        return super().forward(x).softmax(1)

class TwoHeads(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.other = nn.Linear(4, classes)

    def forward(self, x):
        return (self.fc(self.features(x)) + self.other(self.features(x))) / 2

class OverTheBatch(Base):
    def features(self, x):
        f = super().features(x)
        return f - f.mean(0)

class FixedBatch(Base):
    def features(self, x):
        return super().features(x).view(2, 4)

class Branches(Base):
    def features(self, x):
        f = super().features(x)
        return f * 2 if f.sum() > 0 else f

class NoLinear(Base):
    def __init__(self, classes):
        super().__init__(classes)
        self.fc = nn.Conv2d(4, classes, 3)

    def forward(self, x):
        return self.fc(self.conv(x)).mean((2, 3))

class OnlyLarge(Base):
    def features(self, x):
        if x.shape[-1] < 64:
            raise ValueError("too small for me")
        return super().features(x)

class OnlyThree(Base):
    def __init__(self, classes):
        assert classes == 3
        super().__init__(classes)

class Broken(Base):
    def forward(self, x):
        raise IndexError()
'''  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "trial_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def attempt(name, size=16):
        try_backbone(BackboneSettings(model=f"trial_networks:{name}", weights="none"), size)

    return attempt


def test_a_sound_network_is_taken(own):
    own("Base")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pair", r"returns a tuple in training for 2 pictures and 7 classes, wanted a tensor \(2, 7\).*logits alone"),
        ("PairInTraining", r"returns a tuple in training"),
        ("Named", r"returns a dict in training"),
        ("Softmax", r"not what its last linear layer 'fc' gives.*no softmax"),
        ("TwoHeads", r"not what its last linear layer 'other' gives.*average of several heads"),
        ("OverTheBatch", r"answers a picture otherwise alone.*its own picture only"),
        ("FixedBatch", r"cannot answer pictures of 16 x 16 pixels: shape '\[2, 4\]' is invalid for input of size 4"),
        ("Branches", r"cannot be exported for batches of any size.*branch on the pictures' values"),
        ("NoLinear", r"last layer is no Linear with 7 outputs.*ends in a linear layer"),
        ("OnlyLarge", r"data.size = 16: .* takes no pictures of 16 x 16 pixels: too small for me.* = 64 works"),
        ("Broken", r"cannot answer pictures of 16 x 16 pixels: IndexError. .*Another data.size does not help"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_key_and_remedy(own, name, message):
    with pytest.raises(RecipeError, match=message) as caught:
        own(name)
    assert str(caught.value).startswith(("backbone.model", "data.size"))


def test_a_size_that_a_library_refuses_is_answered_with_one_that_it_takes():
    with pytest.raises(
        RecipeError, match=r"data.size = 16: torchvision/squeezenet1_1 takes no.*data.size = 32 works"
    ):
        try_backbone(BackboneSettings(model="torchvision/squeezenet1_1", weights="none"), 16)


def test_errors_with_a_remedy_of_their_own_keep_it(monkeypatch):
    def absent(*_):
        raise MissingExtraError("no timm", hint="install it")

    monkeypatch.setattr("edgekiln.pipeline.training.trial.build_backbone", lambda *_, **__: absent())
    with pytest.raises(MissingExtraError, match="install it"):
        try_backbone(BackboneSettings(model="timm/resnet18", weights="none"), 32)


def test_a_run_asks_ones_own_network_with_the_classes_of_the_data(own, tmp_path):
    write_pictures(tmp_path / "pictures")
    for name, message in (
        ("OnlyThree", None),
        ("Pair", "returns a tuple in training for 2 pictures and 3 classes"),
    ):
        (tmp_path / "r.toml").write_text(TINY_RECIPE.replace("edgekiln/tiny-cnn", f"trial_networks:{name}"))
        with pytest.raises(RecipeError, match=message) if message else contextlib.nullcontext():
            run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / name, SilentProgress(), until="finetune")
    assert not list((tmp_path / "Pair").glob("*/stages/finetune/*/out"))


def test_a_run_ends_before_its_first_stage(tmp_path):
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[data]\nsource = "digits"\nsize = 16\n[backbone]\nmodel = "torchvision/squeezenet1_1"\n'
        'weights = "none"\n[[variants]]\nname = "fp32"\nprecision = "fp32"\n'
    )
    with pytest.raises(RecipeError, match=r"data\.size = 32 works"):
        run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    assert not list(tmp_path.glob("runs/r/stages/*/*"))
