"""A batch's pictures are torchvision's, bit by bit: what it draws after a seed, and what it computes."""

import numpy as np
import pytest
import torch

from edgekiln.pipeline.recipe import Augmentation
from edgekiln.pipeline.training import batch_augmentation
from edgekiln.pipeline.training.augmentation import augment_picture
from edgekiln.pipeline.training.batch_augmentation import BatchAugmentation
from edgekiln.runtime.contract import Contract

SETTINGS = {
    "default": Augmentation(),
    "all colours": Augmentation(saturation=0.4, hue=0.1),
    "extreme": Augmentation(crop_scale=0.05, brightness=1, contrast=1, saturation=1, hue=0.5),
    "one colour": Augmentation(brightness=0, crop_scale=1),
    "no colour": Augmentation(brightness=0, contrast=0),
    "nothing": Augmentation(crop_scale=1, horizontal_flip=False, brightness=0, contrast=0),
    "randaugment": Augmentation(randaugment=9, hue=0.1),
}
SHAPES = [(64, 64), (33, 47), (100, 30), (30, 100)]  # of the last two every crop is the middle one


def contract(shape):
    return Contract(height=shape[0], width=shape[1], classes=("a", "b"))


def frames(count, shape):
    """Noise, and smooth pictures: crops of noise alone would hide how a picture is resized."""
    generator = np.random.default_rng(sum(shape))
    noise = generator.integers(0, 256, (count, *shape, 3))
    smooth = 128 + np.cumsum(generator.integers(-3, 4, (count, *shape, 3)), axis=1)
    return np.where(np.arange(count)[:, None, None, None] % 2, noise, smooth.clip(0, 255)).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_each_picture_is_the_one_that_torchvision_makes_after_its_seed(settings, shape):
    pictures, seeds = frames(24, shape), [2**63 + 7919 * number for number in range(24)]
    changed = BatchAugmentation(settings, contract(shape))(pictures, seeds)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    alone = augment_picture(settings, contract(shape))
    for picture, seed, found in zip(pictures, seeds, changed, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(found, alone(torch.from_numpy(picture).permute(2, 0, 1)))


def test_where_torch_resizes_no_bytes_torchvision_does(monkeypatch):
    pictures, seeds = frames(8, (33, 47)), list(range(8))
    augment = BatchAugmentation(Augmentation(), contract((33, 47)))
    here = augment(pictures, seeds)
    monkeypatch.setattr(batch_augmentation, "_BYTES_RESIZED", not batch_augmentation._BYTES_RESIZED)
    there = augment(pictures, seeds)
    assert (here.int() - there.int()).abs().max() <= 1  # one of the two may round


def test_a_picture_does_not_depend_on_the_others_of_its_batch():
    augment = BatchAugmentation(Augmentation(saturation=0.4), contract((64, 64)))
    pictures, seeds = frames(16, (64, 64)), list(range(16))
    whole = augment(pictures, seeds)
    parts = [augment(pictures[part], seeds[part]) for part in (slice(0, 1), slice(1, 8), slice(8, 16))]
    assert torch.equal(torch.cat(parts), whole)
    assert len({picture.numpy().tobytes() for picture in augment(pictures[[0] * 16], seeds)}) == 16
    assert not torch.equal(whole, torch.from_numpy(pictures).permute(0, 3, 1, 2))
