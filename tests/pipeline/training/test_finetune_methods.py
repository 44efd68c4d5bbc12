"""Ways to fine-tune: what each switch changes, and that it changes nothing else."""

import numpy as np
import pytest
import torch
from finetune_support import CONTRACT, TINY, events, job, split

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import Augmentation, BackboneSettings
from edgekiln.pipeline.training.augmentation import augment_batch, augment_picture
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors
from edgekiln.pipeline.training.finetune import Trainer, finetune
from edgekiln.pipeline.training.freezing import freeze, list_stages
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.loss import weigh_classes
from edgekiln.runtime.errors import RecipeError

RESNET = BackboneSettings(model="timm/test_resnet", weights="none")


def trainable(settings, size=32):
    network = build_backbone(settings, 2, size).network
    freeze(network, settings, 2)
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


# -- freezing


def test_freezing_until_a_stage_trains_it_and_what_follows():
    names = {name for name, _ in build_backbone(RESNET, 2, 32).network.named_parameters()}
    free = trainable(RESNET.model_copy(update={"freeze": "until:layer3"}))
    assert free == {name for name in names if name.startswith(("layer3.", "layer4.", "fc."))}
    assert trainable(RESNET.model_copy(update={"freeze": "until:conv1"})) == names


def test_a_stage_may_be_one_block_of_a_list():
    settings = BackboneSettings(model="timm/tf_efficientnet_lite0", weights="none")
    free = trainable(settings.model_copy(update={"freeze": "until:blocks.5"}), 64)
    assert {name.split(".")[1] for name in free if name.startswith("blocks.")} == {"5", "6"}
    assert not any(name.startswith("conv_stem") for name in free)
    assert any(name.startswith("classifier") for name in free)


def test_an_unknown_stage_lists_those_there_are():
    with pytest.raises(RecipeError, match=r"no stage 'layer9' to freeze up to\. It has: conv1\.0, .*layer1"):
        trainable(RESNET.model_copy(update={"freeze": "until:layer9"}))


def test_batchnorm_of_the_frozen_part_stands_still(tmp_path):
    settings = RESNET.model_copy(update={"freeze": "until:layer3", "freeze_batchnorm": False})
    work = job(settings, epochs=1, probe=False, learning_rate=1e-3)
    trainer = Trainer(work, tmp_path)
    before = {
        k: v.clone() for k, v in trainer.learner.network.state_dict().items() if k.endswith("running_mean")
    }
    trainer.step.take()
    after = trainer.learner.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("layer3.", "layer4.")) for name in moved)


def test_stages_are_those_with_weights_in_their_order():
    assert list(list_stages(build_backbone(TINY, 2, 16).network)) == ["conv1", "conv2", "fc1", "fc2"]


# -- stopping


def test_it_stops_when_no_epoch_is_better(tmp_path):
    finetune(job(epochs=9, patience=2, learning_rate=1e-12), tmp_path)  # nothing can get better
    [stopped] = events(tmp_path, "stopped")
    best = events(tmp_path, "done")[0]["best_step"]
    assert stopped["step"] == best + 2 * 5
    assert stopped["reason"] == "no better epoch in 2"
    assert len(events(tmp_path, "epoch")) < 10


def test_a_stopped_run_that_is_continued_stops_at_once(tmp_path, monkeypatch):
    work = job(epochs=9, patience=1, learning_rate=1e-12)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_write_checkpoint", lambda trainer, folder: None)  # killed before the end
        finetune(work, tmp_path)
    steps = len(events(tmp_path, "step"))
    finetune(work, tmp_path)
    assert len(events(tmp_path, "step")) == steps
    assert (tmp_path / CHECKPOINT_NAME).exists()


def test_without_patience_every_epoch_is_run(tmp_path):
    finetune(job(epochs=3, learning_rate=1e-12), tmp_path)
    assert events(tmp_path, "stopped") == []
    assert len(events(tmp_path, "epoch")) == 4


# -- skewed classes


def test_rare_classes_weigh_more_and_the_mean_picture_weighs_1(tmp_path):
    plain = job(class_balance=True)
    labels = np.array([0] * 60 + [1] * 10)
    skewed = PreparedSplit(plain.train.frames, labels, plain.train.keys, plain.train.sha256)
    work = FinetuneJob(plain.backbone, plain.settings, CONTRACT, skewed, plain.val, 5)
    weights = torch.from_numpy(weigh_classes(work))
    torch.testing.assert_close(weights, torch.tensor([70 / 120, 70 / 20]))
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)
    finetune(work, tmp_path)
    assert events(tmp_path, "done")


def test_equal_classes_give_the_weights_of_the_plain_run(tmp_path):
    for name, balance in (("plain", False), ("balanced", True)):
        (tmp_path / name).mkdir()
        finetune(job(class_balance=balance, probe=False, learning_rate=1e-3), tmp_path / name)
    first, second = (load_tensors(tmp_path / name / CHECKPOINT_NAME)[0] for name in ("plain", "balanced"))
    for key, value in first.items():  # weights of 1: the same sums in another order
        torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-3)


# -- augmentation


def test_mixing_keeps_probabilities_and_mean_brightness():
    images, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % 2
    torch.manual_seed(0)
    for settings in (Augmentation(mixup=0.4), Augmentation(cutmix=1.0), Augmentation(mixup=0.2, cutmix=1.0)):
        mixed, soft = augment_batch(settings, 2)(images, labels)
        assert mixed.shape == images.shape
        assert not torch.equal(mixed, images)
        torch.testing.assert_close(soft.sum(1), torch.ones(16))
        assert mixed.mean() == pytest.approx(float(images.mean()), abs=0.05)  # 3,072 values of spread 0.29
    assert augment_batch(Augmentation(), 2) is None


def test_mixed_batches_train_and_repeat(tmp_path):
    settings = {
        "epochs": 1,
        "probe": False,
        "augmentation": Augmentation(mixup=0.2, cutmix=1.0, randaugment=9),
    }
    for name in "ab":
        (tmp_path / name).mkdir()
        finetune(job(**settings), tmp_path / name)
    losses = [[step["loss"] for step in events(tmp_path / name, "step")] for name in "ab"]
    assert losses[0] == losses[1]


def test_randaugment_keeps_shape_and_type():
    change = augment_picture(Augmentation(randaugment=9), CONTRACT)
    torch.manual_seed(0)
    picture = torch.from_numpy(split(1, 0).frames[0]).permute(2, 0, 1)
    changed = change(picture)
    assert changed.shape == (3, 16, 16)
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, picture)
