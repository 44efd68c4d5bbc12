"""Weights for an architecture without any: random ones, trained for seconds, whose features tell digits apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone

__all__ = ["train_weights"]

_STEPS, _BATCH, _RATE = 40, 16, 3e-4


def train_weights(model: str, size: int, data: Path, path: Path) -> None:
    """Write a state dict as torch.save does.

    After its last step BatchNorm's statistics are measured anew, over all of train: those of so few steps belong to
    weights that have moved on since, and those of random weights leave later layers with values near zero.

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
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
    for _ in range(_STEPS):
        chosen = torch.randperm(len(frames))[:_BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(frames[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call] # torch
        optimizer.step()
    _measure_statistics(network, frames)
    torch.save(backbone.network.state_dict(), path)


@torch.no_grad()
def _measure_statistics(network: PixelModel, frames: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
    for batch in frames.split(4 * _BATCH):
        if len(batch) > 1:
            network(batch)
