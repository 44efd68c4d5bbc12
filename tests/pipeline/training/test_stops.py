"""A training that cannot go on: one clear line, and everything that was good before is kept and can be used."""

import json
import shutil

import numpy as np
import pytest
import torch
from fake_gpu_memory import GIB, Gpu
from finetune_support import CONTRACT, TINY, events, job
from tensorboard_support import read, single
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, load_tensors
from edgekiln.pipeline.training.divergence import KEPT_NAME, Divergence
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.loss import StepLoss
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.pipeline.training.step import Stepper
from edgekiln.runtime.errors import GateError, ResourceError

NOT_A_NUMBER = float("nan")


@pytest.fixture
def loss_breaks(monkeypatch):
    """A function that makes the loss no number from a step on; ``None`` mends it."""
    real, at = StepLoss.add_gradients, []

    def add_gradients(loss, step):
        found = real(loss, step)
        if at and step >= at[-1]:
            found["loss"] = found["loss"] * NOT_A_NUMBER
        return found

    monkeypatch.setattr(StepLoss, "add_gradients", add_gradients)
    return lambda step: at.append(step) if step is not None else at.clear()


def test_the_error_names_step_rate_and_what_is_kept(tmp_path):
    tensors = {"weight": torch.ones(2)}
    state = TrainingState(best_step=6, best_top1=0.9375, best=tensors)  # two steps an epoch
    error = Divergence(job(), tmp_path, state, Schedule(2, 20)).explain("The loss became nan", 7, 0.03)
    assert isinstance(error, GateError)
    assert error.message == "The loss became nan at step 7 of 20, with a learning rate of 0.03."
    assert error.hint == (
        "Lower finetune.learning_rate. The best weights before, of epoch 3 with a val top-1 of 0.9375, are kept: "
        f"backbone.weights = '{tmp_path / KEPT_NAME}' starts from them."
    )
    kept, about = load_tensors(tmp_path / KEPT_NAME)
    assert torch.equal(kept["weight"], tensors["weight"])
    assert about["backbone"] == TINY.model


def test_the_best_epoch_before_is_kept_and_is_that_epochs(tmp_path, loss_breaks):
    loss_breaks(12)  # two of four epochs of 5 steps were judged
    with pytest.raises(GateError, match=r"The loss became nan at step 13 of 20, with a learning rate of"):
        finetune(job(epochs=4, learning_rate=1e-3), tmp_path)
    model, contract = load_checkpoint(tmp_path / KEPT_NAME, TINY)
    assert contract == CONTRACT
    judged = {e["step"]: e["val_loss"] for e in events(tmp_path, "epoch")}
    assert list(judged) == [0, 5, 10]
    val = job().val
    logits = evaluate_model(model, val.frames)
    loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels)))
    assert loss == pytest.approx(min(judged.values()), abs=1e-5)  # top-1 is 1 in all of them
    assert not (tmp_path / CHECKPOINT_NAME).exists()


def test_what_was_kept_starts_the_next_training(tmp_path, loss_breaks):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    loss_breaks(12)
    with pytest.raises(GateError):
        finetune(job(epochs=4, learning_rate=1e-3), first)
    loss_breaks(None)
    kept = BackboneSettings(model=TINY.model, weights=str(first / KEPT_NAME))
    finetune(job(kept, epochs=1, learning_rate=1e-4), second)
    assert events(second, "epoch")[0]["val_loss"] == min(e["val_loss"] for e in events(first, "epoch"))


def test_weights_that_the_very_last_step_spoils_are_seen_on_val(tmp_path, monkeypatch):
    real = torch.optim.AdamW.step

    def step(optimizer, *arguments):
        real(optimizer, *arguments)
        if int(next(iter(optimizer.state.values()))["step"]) == 10:
            optimizer.param_groups[0]["params"][0].data.fill_(NOT_A_NUMBER)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(GateError, match="The loss on val became nan at step 10 of 10"):
        finetune(job(epochs=2, learning_rate=1e-3), tmp_path)
    assert all(bool(t.isfinite().all()) for t in load_tensors(tmp_path / KEPT_NAME)[0].values())
    assert "NaN" not in (tmp_path / LOG_NAME).read_text()


def test_an_attempt_that_then_ends_well_leaves_nothing_of_the_one_before(tmp_path, loss_breaks):
    loss_breaks(7)
    with pytest.raises(GateError):
        finetune(job(epochs=2), tmp_path)
    loss_breaks(None)
    finetune(job(epochs=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT_NAME, LOG_NAME]
    assert [e["step"] for e in events(tmp_path, "step")] == list(range(1, 11))


def test_another_rate_works_elsewhere_and_leaves_what_was_kept(edgekiln, tmp_path, loss_breaks):
    write_pictures(tmp_path / "pictures", per_class=12)
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    command = ("train", tmp_path / "r.toml", "--runs", tmp_path / "runs")
    loss_breaks(2)
    exit, out, _ = edgekiln(*command, "-q", "--json")
    error = json.loads(out)["error"]
    assert (exit, error["code"]) == (3, "gate")
    assert error["message"].startswith("The loss became nan at step 3 of ")
    kept = tmp_path / "runs" / "tiny" / "stages" / "finetune"
    assert error["path"].startswith(str(kept))
    assert len(edgekiln(*command, "-q")[2].splitlines()) == 1
    loss_breaks(None)
    assert edgekiln(*command, "--set", "finetune.learning_rate=1e-4")[0] == 0
    assert load_tensors(type(tmp_path)(error["path"]))[0]
    weights = f"backbone.weights={error['path']}"
    assert edgekiln(*command, "--set", weights, "--set", "finetune.epochs=1")[0] == 0


# -- memory


def test_a_step_that_does_not_fit_is_measured_on_the_trainer_itself(tmp_path, monkeypatch):
    """The trainer runs on the CPU; how much each of its steps takes is a formula."""
    gpu = Gpu(monkeypatch, total=8 * GIB, fixed=GIB, per_picture=GIB // 2)
    real = StepLoss.compute

    def losses(loss, mine, other):
        gpu.step(len(mine.labels))
        return real(loss, mine, other)

    monkeypatch.setattr(StepLoss, "compute", losses)
    with pytest.raises(ResourceError) as caught:
        finetune(job(batch_size=32, epochs=1), tmp_path)
    assert gpu.steps == [32, 4, 4, 8]
    # 0.9 * 8 = 1 + B / 2 gives 12: three parts of 11.
    assert "32 pictures at once, which need about 17.0 GiB" in caught.value.message
    assert (
        "finetune.accumulate = 3 computes the same step in parts of 11, in about 6.5 GiB" in caught.value.hint
    )
    gpu.steps.clear()
    finetune(job(batch_size=32, accumulate=3, epochs=1), tmp_path)
    assert max(gpu.steps) == 11


def test_weights_that_the_measuring_spoilt_are_not_kept(tmp_path, monkeypatch):
    """The progress on disk is that of before the failed step, so that the same command goes on where there is room."""
    gpu = Gpu(monkeypatch, total=64 * GIB, fixed=GIB, per_picture=GIB)
    real, real_take, steps = StepLoss.compute, Stepper.take, []

    def take(stepper):
        if stepper.state.step == 3:
            gpu.total = 10 * GIB
        real_take(stepper)

    def losses(loss, mine, other):
        steps.append(len(mine.labels))
        gpu.step(len(mine.labels))
        return real(loss, mine, other)

    (tmp_path / "whole").mkdir()
    finetune(job(epochs=1), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", take)
        patch.setattr(StepLoss, "compute", losses)
        folder = tmp_path / "short"
        folder.mkdir()
        with pytest.raises(ResourceError, match="does not hold a training step"):
            finetune(job(epochs=1, checkpoint_seconds=1e-9), folder)
    assert steps[-4:] == [16, 2, 2, 4]
    finetune(job(epochs=1, checkpoint_seconds=1e-9), folder)
    assert (folder / CHECKPOINT_NAME).read_bytes() == (tmp_path / "whole" / CHECKPOINT_NAME).read_bytes()


def test_the_command_line_tells_it_in_one_line_and_keeps_the_data(edgekiln, tmp_path, monkeypatch):
    gpu = Gpu(monkeypatch, total=8 * GIB, fixed=GIB, per_picture=GIB)
    real = StepLoss.compute

    def losses(loss, mine, other):
        gpu.step(len(mine.labels))
        return real(loss, mine, other)

    monkeypatch.setattr(StepLoss, "compute", losses)
    write_pictures(tmp_path / "pictures", per_class=12)
    (tmp_path / "r.toml").write_text(TINY_RECIPE)
    command = ("train", tmp_path / "r.toml", "--runs", tmp_path / "runs", "-q")
    exit, out, err = edgekiln(*command)
    assert (exit, out, len(err.splitlines())) == (6, "", 1)
    assert "finetune.accumulate = 3 computes the same step in parts of 6" in err
    assert json.loads(edgekiln(*command, "--json")[1])["error"]["code"] == "resources"
    assert [path.parents[1].name for path in (tmp_path / "runs").rglob("stage.json")] == ["data"]


# -- TensorBoard


def test_event_files_follow_the_log_while_it_is_written(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    stage = tmp_path / "stages" / "finetune" / ".partial-0123"
    stage.mkdir(parents=True)
    finetune(job(epochs=2, tensorboard=True), stage)
    found = read(tmp_path / "tensorboard" / "0123")
    assert found["step/loss"] == [(e["step"], single(e["loss"])) for e in events(stage, "step")]
    assert [step for step, _ in found["epoch/val_top1"]] == [0, 5, 10]
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "plain").mkdir()
    finetune(job(epochs=2), tmp_path / "plain")
    weights = [
        np.frombuffer((f / CHECKPOINT_NAME).read_bytes(), np.uint8) for f in (stage, tmp_path / "plain")
    ]
    np.testing.assert_array_equal(*weights)  # who watches changes nothing
