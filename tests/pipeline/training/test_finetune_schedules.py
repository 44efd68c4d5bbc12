"""Rates by layer, gradual unfreezing, averages, sampling, the range test, parts of a batch, readers ahead."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from finetune_support import CONTRACT, TINY, events, job
from tests_support import write_pictures

from edgekiln.pipeline.data import PreparedSplit, load_split, prepare_splits
from edgekiln.pipeline.recipe import Augmentation, BackboneSettings, DataSettings, FinetuneSettings
from edgekiln.pipeline.training.averaging import average_weights, decay_at
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.batch_augmentation import BatchAugmentation
from edgekiln.pipeline.training.batches import Batches, Feed
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors
from edgekiln.pipeline.training.finetune import finetune, training
from edgekiln.pipeline.training.freezing import GradualUnfreezing, count_depths
from edgekiln.pipeline.training.heads import find_head
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.optimization import make_optimizer, set_rates
from edgekiln.pipeline.training.rate_finder import HIGHEST, LOWEST, find_rate
from edgekiln.pipeline.training.start import Start
from edgekiln.pipeline.training.world import ALONE, World
from edgekiln.runtime.errors import GateError, ImageError

RESNET = BackboneSettings(model="timm/test_resnet", weights="none")
PLAIN = {"learning_rate": 1e-3, "probe": False}


def network_and_head(settings=RESNET):
    network = build_backbone(settings, 2, 32).network
    return network, find_head(network, 2)[1]


def weights_of(folder):
    return load_tensors(folder / CHECKPOINT_NAME)[0]


def run(tmp_path, name, **settings):
    (tmp_path / name).mkdir()
    finetune(job(**settings), tmp_path / name)
    return tmp_path / name


# -- rates by layer


def test_a_stages_rate_is_the_next_ones_times_the_decay():
    network, head = network_and_head()
    optimizer = make_optimizer(network, head, (), FinetuneSettings(layer_decay=0.5))
    set_rates(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_stage = {
        stage: {
            round(rates[id(p)], 9) for name, p in network.named_parameters() if name.startswith(f"{stage}.")
        }
        for stage in ("layer1", "layer2", "layer3", "layer4", "fc")
    }
    assert by_stage == {
        "fc": {0.1},
        "layer4": {0.05},
        "layer3": {0.025},
        "layer2": {0.0125},
        "layer1": {0.00625},
    }
    assert len(rates) == len(list(network.parameters()))


def test_without_a_decay_all_have_one_rate():
    network, head = network_and_head()
    optimizer = make_optimizer(network, head, (), FinetuneSettings())
    set_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_weights_outside_of_all_stages_belong_to_the_input():
    network = torch.nn.Module()
    network.token = torch.nn.Parameter(torch.zeros(1))
    network.first, network.second, network.head = (torch.nn.Linear(2, 2) for _ in range(3))
    depths = count_depths(network, network.head)
    assert depths[network.token] == depths[network.first.weight] == 2
    assert depths[network.head.weight] == 0


# -- gradual unfreezing


def test_stages_join_from_the_head_down():
    network, head = network_and_head()
    unfreezing = GradualUnfreezing(network, head, 0.5)
    trained = []
    for step in range(20):
        unfreezing.apply(step, 20)
        trained.append({n for n, p in network.named_parameters() if p.requires_grad})
    assert trained[0] == {"fc.weight", "fc.bias"}
    assert all(before <= after for before, after in pairwise(trained))
    assert trained[9] < trained[10] == {name for name, _ in network.named_parameters()}
    assert unfreezing.apply(10, 20) is False


def test_what_is_frozen_for_good_never_joins():
    network, head = network_and_head()
    network.layer1.requires_grad_(False)
    unfreezing = GradualUnfreezing(network, head, 0.5)
    unfreezing.apply(20, 20)
    assert not any(p.requires_grad for p in network.layer1.parameters())
    assert all(p.requires_grad for p in network.layer2.parameters())


def test_a_gradually_unfrozen_run_moves_the_deep_weights_last(tmp_path):
    work = job(RESNET, epochs=2, gradual_unfreezing=0.6, **PLAIN)
    with training(work, tmp_path, ALONE) as trainer:
        trainer.begin()
        start = {k: v.clone() for k, v in trainer.learner.network.state_dict().items()}
        moved = []
        for _ in range(trainer.schedule.total_steps):
            trainer.step.take()
            now = trainer.learner.network.state_dict()
            moved.append({k for k in start if not torch.equal(start[k], now[k])})
    assert moved[0] == {"fc.weight", "fc.bias"}
    assert "conv1.0.weight" in moved[-1]
    assert "conv1.0.weight" not in moved[len(moved) // 2 - 1]


# -- the average


def test_the_average_follows_its_formula():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    averaged = average_weights(network, 0.25)
    expected = 1.0
    for updates, value in enumerate((3.0, 5.0, 2.0), start=1):
        torch.nn.init.constant_(network.weight, value)
        averaged.update_parameters(network)
        decay = min(0.25, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert decay_at(0.999, 10**6) == 0.999


def test_the_average_is_what_is_judged_and_kept(tmp_path):
    work = job(epochs=1, ema=0.9, **PLAIN)
    with training(work, tmp_path, ALONE) as trainer:
        trainer.begin()
        trainer.run()
        average, last = trainer.learner.average.module.state_dict(), trainer.learner.network.state_dict()
    assert events(tmp_path, "done")[0]["best_step"] == 5
    kept = weights_of(tmp_path)
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert not torch.equal(kept["fc2.weight"], last["fc2.weight"])


# -- sampling


def test_balanced_sampling_draws_every_class_alike_and_repeats():
    labels = np.array([0] * 60 + [1] * 10)
    batches = Batches(70, 16, 3, (), labels)
    epoch = np.concatenate([batches.indices(step) for step in range(batches.per_epoch)])
    assert np.bincount(labels[epoch]).tolist() == [35, 35]
    times = np.bincount(epoch, minlength=70)[60:]
    assert set(times) == {3, 4}, "no rare picture is drawn more often than another, give or take one"
    again = Batches(70, 16, 3, (), labels)
    assert np.array_equal(again.indices(2), batches.indices(2))


def test_a_balanced_run_learns_from_skewed_classes(tmp_path):
    plain = job(sampling="balanced", **PLAIN)
    labels = np.array([0] * 60 + [1] * 10)
    skewed = PreparedSplit(plain.train.frames, labels, plain.train.keys, plain.train.sha256)
    finetune(FinetuneJob(TINY, plain.settings, CONTRACT, skewed, plain.val, 5), tmp_path)
    assert len(events(tmp_path, "step")) == 10


# -- the range test


def test_the_range_test_takes_a_tenth_of_the_rate_with_the_lowest_loss():
    turn = 1e-2

    def valley(number, rate):
        return 2.0 + math.log10(max(rate, turn) / turn) - 0.3 * math.log10(min(rate, turn) / LOWEST)

    found = find_rate(valley)
    lowest = min(found.points[10:], key=lambda point: point[1])[0]
    assert found.rate == lowest / 10
    assert turn <= lowest < 10 * turn, "smoothing comes late, by less than a decade"


def test_the_range_test_stops_where_the_loss_breaks_out():
    seen = []

    def breaks(number, rate):
        seen.append(rate)
        return 1.0 - rate if rate < 1e-3 else 1e3

    find_rate(breaks)
    assert seen[-1] < HIGHEST


def test_a_range_test_without_numbers_is_an_error():
    with pytest.raises(GateError, match=r"found no rate.*give finetune\.learning_rate"):
        find_rate(lambda number, rate: math.nan)


def test_a_found_rate_is_logged_used_and_survives_a_kill(tmp_path):
    whole = run(tmp_path, "whole", learning_rate="find", epochs=2, warmup=0.0, checkpoint_seconds=1e-9)
    [found] = events(whole, "rate_finder")
    assert len(found["points"]) > 10
    assert events(whole, "step")[0]["learning_rate"] == pytest.approx(found["learning_rate"], rel=1e-5)
    (tmp_path / "killed").mkdir()
    work = job(learning_rate="find", epochs=2, warmup=0.0, checkpoint_seconds=1e-9)
    with training(work, tmp_path / "killed", ALONE) as trainer:
        trainer.begin()
        trainer.step.take()
        trainer.save()
    finetune(work, tmp_path / "killed")
    assert (whole / CHECKPOINT_NAME).read_bytes() == (tmp_path / "killed" / CHECKPOINT_NAME).read_bytes()
    assert len(events(tmp_path / "killed", "rate_finder")) == 1


def test_a_range_test_in_which_no_rate_helps_is_an_error():
    for loss in (lambda number, rate: 1.0 + number, lambda number, rate: 1.0):
        with pytest.raises(GateError, match=r"saw no rate from .* on that lowers the loss"):
            find_rate(loss)


def test_the_range_test_leaves_the_weights_as_they_were(tmp_path):
    with training(job(learning_rate="find", epochs=1), tmp_path, ALONE) as trainer:
        before = {k: v.clone() for k, v in trainer.learner.network.state_dict().items()}
        Start(
            trainer.job, trainer.learner, trainer.loss, trainer.state, trainer.schedule, trainer.log
        ).find_rate()
        assert all(torch.equal(before[k], v) for k, v in trainer.learner.network.state_dict().items())
        assert not trainer.learner.optimizer.state_dict()["state"]


# -- parts of a batch, precision, layout


@pytest.mark.parametrize("more", [{}, {"class_balance": True}, {"label_smoothing": 0.2}])
def test_accumulated_parts_have_the_losses_of_whole_batches(tmp_path, more):
    plain = job(**PLAIN, **more)
    labels = np.array([0] * 50 + [1] * 20)
    skewed = PreparedSplit(plain.train.frames, labels, plain.train.keys, plain.train.sha256)
    losses = []
    for name, parts in (("whole", 1), ("parts", 3)):
        (tmp_path / name).mkdir()
        work = job(accumulate=parts, **PLAIN, **more)
        finetune(FinetuneJob(TINY, work.settings, CONTRACT, skewed, work.val, 5), tmp_path / name)
        losses.append([step["loss"] for step in events(tmp_path / name, "step")])
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


def test_no_part_is_a_single_picture_where_batchnorm_is_trained(tmp_path):
    settings = BackboneSettings(model="timm/test_resnet", weights="none", freeze_batchnorm=False)
    with training(job(settings, accumulate=16, **PLAIN), tmp_path, ALONE) as trainer:
        assert [len(part.labels) for part in trainer.loss.draw(trainer.loss.feed, 0, None)] == [2] * 8
        assert [len(part.labels) for part in trainer.loss.draw(trainer.loss.feed, 4, None)] == [
            2
        ] * 3  # the tail
        shares = [part.share for part in trainer.loss.draw(trainer.loss.feed, 4, None)]
        assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_with_one_picture_or_none_keeps_batchnorms_statistics(tmp_path, rank):
    settings = BackboneSettings(model="timm/test_resnet", weights="none", freeze_batchnorm=False)
    with training(job(settings, batch_size=3, **PLAIN), tmp_path, ALONE) as trainer:
        trainer.loss._world = trainer.loss.feed._world = World(rank, 3 if rank < 2 else 4)
        trainer.learner.set_training_mode(alone=trainer.loss.count_own(0) < 2)
        norms = [m for m in trainer.learner.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)


def test_bf16_is_what_is_computed_in(tmp_path):
    seen = []
    with training(job(epochs=1, precision="bf16", **PLAIN), tmp_path, ALONE) as trainer:
        trainer.learner.network.conv1.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        trainer.begin()
        trainer.run()
    assert torch.bfloat16 in seen, "in training"
    assert torch.float32 in seen, "judged as what will be exported"
    assert events(tmp_path, "start")[0]["precision"] == "bf16"
    assert all(math.isfinite(step["loss"]) for step in events(tmp_path, "step"))


@pytest.mark.parametrize("wanted", [True, False])
def test_the_memory_layout_is_the_recipes(tmp_path, wanted):
    with training(job(epochs=1, channels_last=wanted), tmp_path, ALONE) as trainer:
        [part] = trainer.loss.draw(trainer.loss.feed, 0, None)
        weight = trainer.learner.network.conv2.weight
        for tensor in (part.pixels, weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) is wanted


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    even = {"epochs": 1, "batch_size": 35, **PLAIN}  # no smaller last batch: one compilation
    plain = run(tmp_path, "plain", **even)
    compiled = run(tmp_path, "compiled", compile=True, **even)
    losses = [[step["loss"] for step in events(folder, "step")] for folder in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert set(weights_of(plain)) == set(weights_of(compiled))


# -- readers ahead


def test_readers_ahead_change_no_byte(tmp_path):
    here = run(tmp_path, "here", workers=0, **PLAIN)
    ahead = run(tmp_path, "ahead", workers=2, **PLAIN)
    assert (here / CHECKPOINT_NAME).read_bytes() == (ahead / CHECKPOINT_NAME).read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_gone_is_told_as_such_by_whoever_reads_it(tmp_path, workers):
    folder = write_pictures(tmp_path / "pictures", per_class=8)
    settings = DataSettings(source="imagefolder", path=folder, size=16, cache="none")
    prepare_splits(settings, seed=1, folder=tmp_path)
    train = load_split(tmp_path, "train")
    feed = Feed(
        train, Batches(len(train), 4, 0), BatchAugmentation(Augmentation(), CONTRACT), 0, workers=workers
    )
    assert feed.at(0)[0].shape == (4, 3, 16, 16)
    (folder / train.keys[int(feed.batches.indices(5)[0])]).unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        feed.at(5)
    feed.close()


def test_a_step_sees_the_same_pixels_wherever_reading_starts(tmp_path):
    with training(job(), tmp_path, ALONE) as trainer:
        in_order = [trainer.loss.feed.at(step)[0] for step in range(4)]
        assert torch.equal(trainer.loss.feed.at(2)[0], in_order[2])
        assert torch.equal(trainer.loss.feed.at(0)[0], in_order[0])


def test_processes_read_the_same_pixels_as_one_would(tmp_path):
    with training(job(), tmp_path, ALONE) as alone:
        whole, labels = alone.loss.feed.at(0)
    parts = []
    for rank in range(3):
        with training(job(), tmp_path, World(rank, 1, 0, 1)) as trainer:
            trainer.loss.feed._world = World(rank, 3)
            parts.append(trainer.loss.feed.at(0))
    assert torch.equal(torch.cat([p for p, _ in parts]), whole)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
