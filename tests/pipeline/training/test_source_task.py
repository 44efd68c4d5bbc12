"""The combined loss and L2-SP: what the formula says, nothing where its weight is 0, and the same after a kill."""

import json

import numpy as np
import pytest
import torch
from finetune_support import TINY, events, job
from tests_support import TINY_RECIPE, write_pictures
from torch import nn

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.planning import stage_names
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.batches import Batches
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors, save_checkpoint
from edgekiln.pipeline.training.finetune import Trainer, finetune, training
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.optimization import pull_to_pretrained
from edgekiln.pipeline.training.source_task import SourceData, check_labels, read_source_head
from edgekiln.pipeline.training.step import Stepper
from edgekiln.pipeline.training.threads import torch_threads
from edgekiln.pipeline.training.weight_files import read_weights
from edgekiln.pipeline.training.world import ALONE
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DataError, RecipeError


def stripes(count, seed):
    """Rows or columns of noise, with a third class of neither: another task than dark and light."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    for frame, label in zip(frames, labels, strict=True):
        noise = generator.integers(0, 256, {0: (16, 1, 1), 1: (1, 16, 1), 2: (16, 16, 1)}[int(label)])
        frame[:] = noise
    return PreparedSplit(frames, labels.astype(np.int64), tuple(map(str, range(count))), ("",) * count)


def with_source(alpha=0.5, beta=1.0, head=None, **settings):
    plain = job(**settings)
    source = SourceData(stripes(50, 3), stripes(30, 4), ("rows", "columns", "noise"), alpha, head)
    return FinetuneJob(
        plain.backbone,
        plain.settings,
        plain.contract,
        plain.train,
        plain.val,
        plain.seed,
        source=source,
        beta=beta,
    )


def test_both_losses_are_logged_and_weighed_as_the_formula_says(tmp_path):
    finetune(with_source(alpha=0.25, beta=2.0, epochs=1), tmp_path)
    steps = events(tmp_path, "step")
    assert len(steps) == 5
    for step in steps:
        # each figure is rounded to 1e-6
        expected = 0.25 * step["source_loss"] + 2.0 * step["target_loss"]
        assert step["loss"] == pytest.approx(expected, abs=4e-6)


def test_the_source_is_judged_before_and_after_by_the_weights_that_are_kept(tmp_path):
    finetune(with_source(alpha=1.0, epochs=3, learning_rate=1e-3), tmp_path)
    before, after = events(tmp_path, "source")
    assert [before["when"], after["when"]] == ["before", "after"]
    assert 0 <= before["val_top1"] <= 1
    assert after["val_top1"] > 0.6  # three classes: it is being learned, not forgotten
    tensors, about = load_tensors(tmp_path / CHECKPOINT_NAME)
    assert tensors["fc2.weight"].shape == (2, 512), "the source's head does not ship"
    assert json.loads(about["contract"])["classes"] == ["dark", "light"]


def test_an_average_is_judged_with_the_average_of_the_sources_head(tmp_path):
    with training(with_source(ema=0.9, epochs=1, learning_rate=1e-3), tmp_path, ALONE) as trainer:
        trainer.begin()
        for _ in range(5):
            trainer.step.take()
        trainer.state.best_top1 = -1.0  # whatever is judged now is the best
        trainer.validation.judge(ALONE)
        averaged = trainer.learner.source_average.module.state_dict()
        assert not torch.equal(averaged["weight"], trainer.learner.source.head.weight)
        assert all(torch.equal(trainer.state.best_source[name], averaged[name]) for name in averaged)


def test_the_end_is_told_once_whenever_it_is_killed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_write_checkpoint", lambda trainer, folder: trainer.log.write("done"))
        finetune(with_source(epochs=1), tmp_path)
    finetune(with_source(epochs=1), tmp_path)
    assert [e["when"] for e in events(tmp_path, "source")] == ["before", "after"]
    assert len(events(tmp_path, "done")) == 1


def test_only_the_source_is_learned_where_beta_is_0(tmp_path):
    finetune(with_source(alpha=1.0, beta=0.0, epochs=1, probe=False), tmp_path)
    torch.manual_seed(5)
    start = build_backbone(TINY, 2, 16).network.state_dict()
    # Epoch 1 is kept only if it is better on the target's val; the log tells what was trained.
    assert all(step["loss"] == step["source_loss"] for step in events(tmp_path, "step"))
    assert set(start) == set(load_tensors(tmp_path / CHECKPOINT_NAME)[0])


def test_the_target_is_drawn_and_augmented_as_without_a_source(tmp_path):
    for name, work in (("plain", job(epochs=1)), ("both", with_source(epochs=1))):
        (tmp_path / name).mkdir()
        finetune(work, tmp_path / name)
    first = [events(tmp_path / name, "step")[0] for name in ("plain", "both")]
    assert first[0]["loss"] == first[1]["target_loss"]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "make", [with_source, lambda **s: job(l2_sp=0.1, **s), lambda **s: job(optimizer="sgd", **s)]
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, make):
    settings = {"epochs": 3, "learning_rate": 1e-3, "checkpoint_seconds": 1e-9}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    finetune(make(**settings), tmp_path / "whole")
    take_step = Stepper.take

    def die_in_step_7(stepper):
        if stepper.state.step == 7:
            raise Killed
        take_step(stepper)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", die_in_step_7)
        with pytest.raises(Killed):
            finetune(make(**settings), tmp_path / "killed")
    finetune(make(**settings), tmp_path / "killed")
    whole, killed = ((tmp_path / name / CHECKPOINT_NAME).read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    lines = [(tmp_path / name / LOG_NAME).read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]


def test_batches_take_every_picture_once_an_epoch_and_never_one_alone():
    batches = Batches(pictures=33, size=16, seed=0)
    assert batches.per_epoch == 2
    first = np.concatenate([batches.indices(step) for step in (0, 1)])
    assert sorted(first) == list(range(33))
    assert len(batches.indices(1)) == 17
    assert not np.array_equal(batches.indices(0), batches.indices(2))
    assert not np.array_equal(batches.indices(0), Batches(33, 16, 0, (1,)).indices(0))
    assert Batches(pictures=1, size=16, seed=0).per_epoch == 1


# -- heads and labels


def test_classes_of_the_same_name_in_both_tasks_are_refused():
    check_labels(("rows", "columns"), ("dark", "light"))
    with pytest.raises(DataError, match=r"both have a class light\. Rename"):
        check_labels(("light", "rows"), ("dark", "light"))


def save_source_run(path, classes=("rows", "columns", "noise")):
    torch.manual_seed(0)
    network = build_backbone(TINY, 3, 16).network
    contract = Contract(height=16, width=16, classes=classes)
    save_checkpoint(dict(network.state_dict()), contract, TINY.model, path)
    return network


def test_the_head_of_a_checkpoint_is_kept_for_the_source(tmp_path):
    network = save_source_run(tmp_path / "a.safetensors")
    head = read_source_head(read_weights(tmp_path / "a.safetensors"), "fc2", ("rows", "columns", "noise"))
    assert torch.equal(head[0], network.fc2.weight)
    (tmp_path / "out").mkdir()
    finetune(with_source(head=head, epochs=0), tmp_path / "out")
    assert events(tmp_path / "out", "source_probe") == []
    assert events(tmp_path / "out", "source")[0]["when"] == "before"


def test_a_head_of_other_classes_is_refused(tmp_path):
    save_source_run(tmp_path / "a.safetensors", ("a", "b", "c"))
    with pytest.raises(
        RecipeError, match=r"knows a, b, c; the source task has rows, columns, noise\. source_task"
    ):
        read_source_head(read_weights(tmp_path / "a.safetensors"), "fc2", ("rows", "columns", "noise"))
    torch.save({"fc2.weight": torch.zeros(3, 512)}, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="does not say which classes"):
        read_source_head(read_weights(tmp_path / "w.pth"), "fc2", ("rows",))


# -- L2-SP, SGD


def test_l2_sp_adds_the_gradient_of_its_formula(tmp_path):
    trainer = Trainer(job(l2_sp=0.3), tmp_path)
    moved = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.learner.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=moved) * 0.01)
    parameters = list(trainer.learner.pretrained)
    penalty = sum((0.3 / 2) * (p - trainer.learner.pretrained[p]).square().sum() for p in parameters)
    expected = torch.autograd.grad(penalty, parameters)
    for parameter in trainer.learner.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pull_to_pretrained(trainer.learner.pretrained, 0.3)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    head = list(trainer.learner.head.parameters())
    assert all(p not in trainer.learner.pretrained and p.grad.abs().max() == 0 for p in head)
    decays = {id(p): g["weight_decay"] for g in trainer.learner.optimizer.param_groups for p in g["params"]}
    assert {decays[id(p)] for p in parameters} == {0.0}
    assert {decays[id(p)] for p in head} == {1e-2}


def test_l2_sp_keeps_weights_near_the_pretrained_ones(tmp_path):
    torch.manual_seed(5)
    start = build_backbone(TINY, 2, 16).network.state_dict()
    distances = []
    for name, strength in (("free", 0.0), ("pulled", 10.0)):
        (tmp_path / name).mkdir()
        trainer = Trainer(job(l2_sp=strength, learning_rate=1e-3, epochs=2), tmp_path / name)
        trainer.begin()
        trainer.run()
        weights = trainer.learner.network.state_dict()
        distances.append(sum(float((weights[k] - start[k]).square().sum()) for k in start if "fc2" not in k))
    assert distances[1] < 0.5 * distances[0]


def test_sgd_is_torchs_with_momentum_at_a_constant_rate(tmp_path):
    work = job(optimizer="sgd", momentum=0.9, schedule="constant", warmup=0.0, weight_decay=0.0,
               learning_rate=0.01, label_smoothing=0.0, probe=False, epochs=1)  # fmt: skip
    trainer = Trainer(work, tmp_path)
    torch.manual_seed(5)
    reference = build_backbone(TINY, 2, 16).network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9)
    with torch_threads(1):
        for step in range(3):
            [part] = trainer.loss.draw(trainer.loss.feed, step, None)
            optimizer.zero_grad()
            reference.train()
            nn.functional.cross_entropy(reference(part.pixels), part.labels).backward()
            optimizer.step()
            trainer.step.take()
    for ours, theirs in zip(trainer.learner.network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# -- recipes


def recipe_text(extra=""):
    return TINY_RECIPE.replace("[finetune]", f"{extra}\n[finetune]")


SOURCE = '[source_task]\nalpha = {alpha}\nbeta = {beta}\n[source_task.data]\nsource = "imagefolder"\npath = "other"\n'


def write_source_pictures(folder):
    """The same kind of pictures under other class names."""
    write_pictures(folder)
    for name in ("blue", "green", "red"):
        (folder / name).rename(folder / f"old {name}")


def run(tmp_path, text, name):
    (tmp_path / f"{name}.toml").write_text(text)
    # Without the probe the first epoch is no good, so that training decides which weights are kept.
    recipe = load_recipe(tmp_path / f"{name}.toml", ["finetune.probe=false"])
    return run_recipe(recipe, tmp_path / name, SilentProgress(), until="finetune")


def test_a_weight_of_0_is_bit_for_bit_the_plain_run(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_source_pictures(tmp_path / "other")
    plain = run(tmp_path, recipe_text(), "plain")
    nothing = run(tmp_path, recipe_text(SOURCE.format(alpha=0, beta=1)), "nothing")
    both = run(tmp_path, recipe_text(SOURCE.format(alpha=0.5, beta=1)), "both")
    weights = [
        (result.stages["finetune"].folder / CHECKPOINT_NAME).read_bytes() for result in (plain, nothing, both)
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert "data.source" not in nothing.stages
    frames = np.load(both.stages["data.source"].folder / "train.npy", mmap_mode="r")
    assert frames.shape[1:] == (32, 32, 3), "prepared as the target's"


def test_stages_name_the_source_only_where_it_counts(tmp_path):
    write_pictures(tmp_path / "pictures")
    (tmp_path / "a.toml").write_text(recipe_text(SOURCE.format(alpha=0.5, beta=1)))
    recipe = load_recipe(tmp_path / "a.toml")
    assert stage_names(recipe)[:3] == ["data", "data.source", "finetune"]
    assert stage_names(load_recipe(tmp_path / "a.toml", ["source_task.alpha=0.0"]))[:2] == [
        "data",
        "finetune",
    ]


def test_tasks_that_share_a_class_stop_before_training(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_pictures(tmp_path / "other", per_class=10)
    with pytest.raises(DataError, match="both have classes blue, green, red"):
        run(tmp_path, recipe_text(SOURCE.format(alpha=0.5, beta=1)), "clash")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (SOURCE.format(alpha=0, beta=0), "alpha and beta are both 0: nothing would be learned"),
        (SOURCE.format(alpha=-1, beta=1), "greater than or equal to 0"),
        (SOURCE.format(alpha=1, beta=1) + "size = 64\n", r"data\.size is the target's"),
        (SOURCE.format(alpha=1, beta=1).replace("beta", "betta"), "'source_task.betta'; did you mean 'beta'"),
        ('[source_task]\nalpha = 1\nhead = "keep"\n[source_task.data]\nsource = "digits"\n',
         "head = 'keep' needs a checkpoint in backbone.weights"),
        ("[source_task]\nalpha = 1\n", "'source_task.data' is missing"),
    ],
)  # fmt: skip
def test_mistakes_in_the_recipe_are_told(tmp_path, extra, message):
    (tmp_path / "a.toml").write_text(recipe_text(extra))
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "a.toml")


def test_l2_sp_without_pretrained_weights_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text(recipe_text())
    with pytest.raises(RecipeError, match="pulls towards pretrained weights"):
        load_recipe(tmp_path / "a.toml", ["finetune.l2_sp=0.1"])
