import signal
import time
from itertools import pairwise

import pytest
import torch
from finetune_support import CONTRACT, TINY, events, job, split

from edgekiln.pipeline.recipe import BackboneSettings, FinetuneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, load_tensors
from edgekiln.pipeline.training.finetune import finetune, training
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.optimization import learning_rate_factor, make_optimizer
from edgekiln.pipeline.training.state import PROGRESS_NAME
from edgekiln.pipeline.training.world import ALONE
from edgekiln.runtime.errors import GateError, RecipeError, UntrustedError


def test_training_learns_logs_and_writes_one_checkpoint(tmp_path):
    finetune(job(learning_rate=1e-3), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT_NAME, LOG_NAME]
    assert len(events(tmp_path, "step")) == 2 * 5
    assert [e["epoch"] for e in events(tmp_path, "epoch")] == [0, 1, 2]
    assert events(tmp_path, "done")[0]["best_val_top1"] == 1.0
    model, contract = load_checkpoint(tmp_path / CHECKPOINT_NAME, TINY)
    assert contract == CONTRACT
    assert not model.training


def test_last_batch_of_one_picture_joins_the_one_before(tmp_path):
    settings = BackboneSettings(model="timm/test_resnet", weights="none", freeze_batchnorm=False)
    whole = job(settings, epochs=1, probe=False)
    odd = FinetuneJob(whole.backbone, whole.settings, CONTRACT, split(33, 0), whole.val, 5)
    finetune(odd, tmp_path)
    assert len(events(tmp_path, "step")) == 2


def test_best_epoch_on_val_is_kept(tmp_path):
    finetune(job(learning_rate=1e-3), tmp_path)
    best = max(events(tmp_path, "epoch"), key=lambda e: (e["val_top1"], -e["val_loss"]))
    assert events(tmp_path, "done")[0]["best_step"] == best["step"]


def test_no_epochs_keeps_the_linear_probe(tmp_path):
    finetune(job(epochs=0), tmp_path)
    assert events(tmp_path, "step") == []
    assert events(tmp_path, "probe")
    assert events(tmp_path, "done")[0]["best_val_top1"] == 1.0


def test_same_seed_same_weights_other_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        j = job()
        finetune(FinetuneJob(j.backbone, j.settings, j.contract, j.train, j.val, seed), tmp_path / name)
    a, b, c = ((tmp_path / n / CHECKPOINT_NAME).read_bytes() for n in "abc")
    assert a == b != c


def test_frozen_backbone_changes_the_head_only(tmp_path):
    settings = TINY.model_copy(update={"freeze": "backbone"})
    finetune(job(settings, epochs=1, probe=False, learning_rate=1e-2), tmp_path)
    trained = load_tensors(tmp_path / CHECKPOINT_NAME)[0]
    torch.manual_seed(5)  # the job's seed: the same random start
    start = build_backbone(settings, 2, 16).network.state_dict()
    changed = {k for k in start if not torch.equal(start[k], trained[k])}
    assert changed == {"fc2.weight", "fc2.bias"}


@pytest.mark.parametrize(("frozen", "same"), [(True, True), (False, False)])
def test_batchnorm_statistics_are_frozen_on_demand(tmp_path, frozen, same):
    settings = BackboneSettings(model="timm/test_resnet", weights="none", freeze_batchnorm=frozen)
    finetune(job(settings, epochs=1, probe=False, learning_rate=1e-3), tmp_path)
    trained = load_tensors(tmp_path / CHECKPOINT_NAME)[0]
    start = build_backbone(settings, 2, 16).network.state_dict()
    statistics = [k for k in start if k.endswith("running_mean")]
    assert statistics
    best_is_start = events(tmp_path, "done")[0]["best_step"] == 0
    assert all(torch.equal(start[k], trained[k]) for k in statistics) is (same or best_is_start)


def test_loss_that_is_no_number_stops_and_names_the_step(tmp_path):
    with pytest.raises(
        GateError, match=r"The loss became (nan|inf) at step \d+ of 10.*Lower finetune\.learning_rate"
    ):
        finetune(job(learning_rate=1e30, warmup=0.0), tmp_path)


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(s, 100, 0.1) for s in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1.0
    assert all(a <= b for a, b in pairwise(factors[:11]))
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] < 0.001


def test_probe_weights_stay_moderate_with_nearly_constant_features(tmp_path):
    finetune(job(epochs=0), tmp_path)
    head = load_tensors(tmp_path / CHECKPOINT_NAME)[0]["fc2.weight"]
    assert head.abs().max() < 50  # a factor per feature once blew single weights up to thousands


def test_checkpoint_of_another_backbone_is_refused(tmp_path):
    finetune(job(epochs=0), tmp_path)
    with pytest.raises(RecipeError, match="holds edgekiln/tiny-cnn, the recipe names timm/resnet18"):
        load_checkpoint(tmp_path / CHECKPOINT_NAME, BackboneSettings(model="timm/resnet18", weights="none"))


def test_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00garbage")
    with pytest.raises(UntrustedError, match="no intact safetensors"):
        load_checkpoint(tmp_path / "c.safetensors", TINY)


CHILD = """
from pathlib import Path
from finetune_support import job
from edgekiln.pipeline.training.finetune import finetune, training
finetune(job(epochs=6, checkpoint_seconds=0.001, probe=False), Path({folder!r}))
raise SystemExit
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_weights_of_an_uninterrupted_run(launcher, tmp_path):
    def start(name):
        return launcher.start(folder=tmp_path, setup=CHILD.format(folder=str(tmp_path / name)))

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    child = start("whole")
    assert child.wait() == 0, child.log.read_text()
    folder = tmp_path / "killed"
    for steps in (3, 17):
        child = start("killed")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            log = folder / LOG_NAME
            if log.exists() and log.read_text().count('"event": "step"') >= steps:
                break
            time.sleep(0.002)
        if child.poll() is None:
            child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it finished before it could be killed"
        assert not (folder / CHECKPOINT_NAME).exists()
    child = start("killed")
    assert child.wait() == 0, child.log.read_text()
    assert (folder / CHECKPOINT_NAME).read_bytes() == (tmp_path / "whole" / CHECKPOINT_NAME).read_bytes()
    steps = [e["step"] for e in events(folder, "step")]
    assert steps == list(range(1, 31)), "no step is logged twice, none is missing"
    assert events(folder, "done")[0]["best_step"] > 1, (
        "these are weights that steps on both sides of a kill made"
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_moments_of_a_file_move_the_weights_that_they_belong_to(tmp_path, optimizer):
    """Weights lie channels-last, a file does not, and torch's fused optimizers do not look."""
    started = job(probe=False, learning_rate=1e-2, optimizer=optimizer)
    with training(started, tmp_path, ALONE) as whole, training(started, None, ALONE) as resumed:
        whole.begin()
        for _ in range(3):
            whole.step.take()
        whole.save()
        resumed.resume(tmp_path / PROGRESS_NAME)
        before = resumed.learner.network.conv2.weight.detach().clone()
        for trainer in (whole, resumed):
            assert trainer.learner.optimizer.param_groups[0]["fused"]
            for _ in range(3):
                trainer.step.take()
        ends = [trainer.learner.network.state_dict() for trainer in (whole, resumed)]
    assert not ends[1]["conv2.weight"].is_contiguous()
    assert not torch.equal(ends[1]["conv2.weight"], before)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("settings", [FinetuneSettings(), FinetuneSettings(optimizer="sgd")])
def test_weights_with_gaps_in_memory_move_alone(settings):
    """A fused optimizer would move what lies between them."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    gaps = torch.zeros(4, 6)
    network[0].weight = torch.nn.Parameter(gaps[:, :3])
    optimizer = make_optimizer(network, network[1], (), settings)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert gaps[:, :3].all()
    assert not gaps[:, 3:].any()
