"""The recipes about transfer: each loads, and the ones whose data is at hand in small run whole."""

import pickle

import numpy as np
import pytest
from finetune_support import events
from tests_support import ROOT

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.study.methods import choose_methods
from edgekiln.pipeline.workspace.progress import SilentProgress


def write_cifar10(folder, per_batch=60):
    """Pictures in CIFAR-10's own file format, five training batches and one of test; each class has its own tint."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = np.arange(per_batch) % 10
        pixels = generator.integers(0, 40, (per_batch, 3, 32, 32)) + 20 * labels[:, None, None, None]
        batch = {"data": pixels.astype(np.uint8).reshape(per_batch, 3072), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


@pytest.mark.slow
def test_the_reference_recipe_runs_whole_on_files_of_cifar10s_format(tmp_path, monkeypatch):
    import torchvision.datasets.cifar as cifar

    write_cifar10(tmp_path / "data" / "cifar-10-batches-py")
    # The loader compares md5 with the published files'; these are others in the same format.
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    recipe = load_recipe(
        ROOT / "recipes" / "cifar10-tiny.toml",
        [f"data.path={tmp_path / 'data'}", "benchmark.enabled=false", "gate.inconclusive=warn"],
    )
    result = run_recipe(recipe, tmp_path / "runs", SilentProgress())
    log = result.stages["finetune"].folder
    assert [event["epoch"] for event in events(log, "epoch")] == list(range(11))
    assert len(events(log, "step")) == 10 * 3  # 260 pictures in batches of 100, none lost
    assert events(log, "probe") == []
    assert result.report["data"]["counts"] == {"test": 60, "val": 40, "train": 260}
    # 30 steps of SGD at 0.001 end far from any accuracy; what they must do is bring the loss down, epoch by epoch.
    losses = [event["val_loss"] for event in events(log, "epoch")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize(
    "name", ["cifar10-tiny", "cifar10-lite0", "fashion-tiny", "fashion-lite0", "digits-from-fashion"]
)
def test_recipes_load(name):
    assert load_recipe(ROOT / "recipes" / f"{name}.toml").name == name


@pytest.mark.parametrize(
    ("name", "plain"),
    [("traffic-lights-transfer", "traffic-lights"), ("fashion-lite0-transfer", "fashion-lite0")],
)
def test_studies_train_as_the_recipe_that_they_study(name, plain):
    study, recipe = (load_recipe(ROOT / "recipes" / f"{path}.toml") for path in (f"studies/{name}", plain))
    assert study.name == name
    assert (study.backbone, study.finetune) == (recipe.backbone, recipe.finetune)
    shares = {"train_share": 1.0, "test_share": 1.0}  # a study takes fewer pictures, and prepares them alike
    assert study.data.model_copy(update=shares) == recipe.data.model_copy(update=shares)
    assert choose_methods(study) == (("scratch", "probe", "full", "combined"), [])


def test_the_pair_fits_together():
    first, second = (
        load_recipe(ROOT / "recipes" / f"{n}.toml") for n in ("fashion-tiny", "digits-from-fashion")
    )
    assert first.backbone.model == second.backbone.model
    assert first.data.size == second.data.size
    assert first.data.source == second.source_task.data.source
    assert second.backbone.head == "replace"
