"""Weights for an architecture without any: random ones, trained for seconds, whose features tell digits apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone

__all__ = ["train_weights"]

_BATCH = 16
_STEPS = ((2_500_000, 300), (7_000_000, 120), (math.inf, 60))
"""By number of parameters, up to: seconds on one core, the same weights again. Small networks take more steps."""

_MORE_WITHOUT_BATCH_NORM = 2
"""Times as many steps, at a smaller rate: after fewer a ViT's answers have no margins, and any rounding flips them."""

_RATE, _RATE_WITHOUT_BATCH_NORM = 3e-3, 5e-4
_WARM_UP = 0.2
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def train_weights(model: str, size: int, data: Path, path: Path) -> None:
    """Write a state dict as torch.save does.

    The rate warms up and falls to nothing; nothing is dropped, which needs more steps than these. After the last step
    BatchNorm's statistics are measured anew, over all of train: those of so few steps belong to weights that have
    moved on since, and those of random weights leave later layers with values near zero.

    Args:
        model: as ``backbone.model`` says it.
        size: of the pictures, pixels.
        data: folder of the stage ``data``.
        path: file to write.
    """
    torch.manual_seed(0)
    train = load_split(data, "train")
    frames, labels = torch.from_numpy(np.array(train.frames)), torch.from_numpy(train.labels)
    # As the library normalizes: the recipe that takes the file folds it.
    backbone = build_backbone(
        BackboneSettings(model=model, weights="none", normalization="own"), int(labels.max()) + 1, size
    )
    network = PixelModel(backbone.network, backbone.normalization).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a quarter faster on CPUs
    _train(network, frames, labels)
    _measure_statistics(network, frames)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    torch.save(backbone.network.state_dict(), path)


def _train(network: PixelModel, frames: Tensor, labels: Tensor) -> None:
    modules = list(network.modules())
    for module in modules:
        if type(module).__name__.startswith(("Dropout", "DropPath", "StochasticDepth")):
            module.eval()
    size = sum(parameter.numel() for parameter in network.parameters())
    steps = next(steps for most, steps in _STEPS if size <= most)
    normed = any(isinstance(module, _BATCH_NORM) for module in modules)
    steps *= 1 if normed else _MORE_WITHOUT_BATCH_NORM
    rate = _RATE if normed else _RATE_WITHOUT_BATCH_NORM
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=_WARM_UP)
    for _ in range(steps):
        chosen = torch.randperm(len(frames))[:_BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(frames[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call] # torch
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _measure_statistics(network: PixelModel, frames: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, _BATCH_NORM):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
    for batch in frames.split(4 * _BATCH):
        if len(batch) > 1:
            network(batch)
