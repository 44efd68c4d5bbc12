"""Random changes of training pictures (torchvision v2). Never touches what ``prepare`` promises for evaluation.

All randomness is torch's global generator, which is seeded anew for every picture, and for mixing at every step. What
``augment_picture`` says of one picture, ``batch_augmentation`` does to a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.transforms import v2

from edgekiln.pipeline.recipe import Augmentation
from edgekiln.runtime.contract import Contract

__all__ = ["augment_batch", "augment_picture"]


def augment_picture(settings: Augmentation, contract: Contract) -> Callable[[Tensor], Tensor]:
    """A function of one picture, uint8 (3, H, W) to the same."""
    parts: list[nn.Module] = []
    if settings.crop_scale < 1:
        size = [contract.height, contract.width]
        parts.append(v2.RandomResizedCrop(size, scale=(settings.crop_scale, 1.0), antialias=True))
    if settings.horizontal_flip:
        parts.append(v2.RandomHorizontalFlip())
    if settings.randaugment:
        # Two operations at a strength of 0 to 30 (Cubuk et al. 2020, arXiv:1909.13719).
        parts.append(v2.RandAugment(num_ops=2, magnitude=settings.randaugment))
    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    if any(strengths):
        parts.append(v2.ColorJitter(*strengths))
    pipeline: Callable[[Tensor], Tensor] = v2.Compose(parts) if parts else v2.Identity()
    return pipeline


def augment_batch(
    settings: Augmentation, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """A function of pictures float32 (B, 3, H, W) and labels int64 (B,) that mixes pairs; ``None`` where none is asked.

    The labels become probabilities, float32 (B, classes). Mixup (Zhang et al. 2018, arXiv:1710.09412) adds pictures,
    CutMix (Yun et al. 2019, arXiv:1905.04899) pastes a rectangle; with both, each batch takes one of them by chance.
    """
    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
        if alpha
    ]
    if not kinds:
        return None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.RandomChoice(kinds)
    return mix
