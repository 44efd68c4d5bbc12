"""Networks that train with parallel branches and run with one convolution: RepVGG, MobileOne, RepViT, FastViT, LeViT.

timm knows how each of them is fused. What it makes is taken only where it answers as the trained network does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Fused", "fuse_branches"]

_LAYERS = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)

_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit: sums in another order give 1e-6."""


@dataclass(frozen=True, slots=True)
class Fused:
    """A network as it runs.

    Attributes:
        network: a fused copy, or the network itself where nothing was fused.
        sentence: what was fused, or why it was not; ``None`` where there is nothing to fuse.
    """

    network: nn.Module
    sentence: str | None = None


def fuse_branches(network: nn.Module, model: str, size: int) -> Fused:
    """Put branches and the BatchNorm behind them into one convolution, where timm knows how.

    Args:
        network: in evaluation mode; it is not changed.
        model: as ``backbone.model`` says it. Of other libraries than timm's nothing is fused.
        size: of the pictures, pixels.
    """
    if not model.startswith("timm/") or not any(map(_can_be_fused, network.modules())):
        return Fused(network)
    from timm.utils.model import reparameterize_model

    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = network(pictures)
        try:
            fused: nn.Module = reparameterize_model(_without_biases(network), inplace=True).eval()
            difference = _compare(before, fused(pictures))
        except Exception as error:  # each network has code of its own for it
            return Fused(network, f"{model} runs as it was trained: timm cannot fuse it ({error}).")
    if not difference <= _TOLERANCE:
        return Fused(
            network,
            f"{model} runs as it was trained: fused by timm it answers {difference:.1g} of a logit otherwise.",
        )
    many, few = (sum(isinstance(m, _LAYERS) for m in each.modules()) for each in (network, fused))
    return Fused(fused, f"Branches and BatchNorm are fused as timm does it: {few} layers instead of {many}.")


def _without_biases(network: nn.Module) -> nn.Module:
    """A copy in which BatchNorm subtracts less in the place of the bias of the convolution before it.

    timm's own convolutions have no bias there, and its functions would drop the one that the normalization of the
    input left in the first of them.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        match list(module.children()):
            case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm]:
                if conv.bias is not None and norm.running_mean is not None:
                    norm.running_mean -= conv.bias.detach()
                    conv.bias = None
    return network


def _can_be_fused(module: nn.Module) -> bool:
    """As timm asks it."""
    return any(hasattr(module, name) for name in ("fuse", "reparameterize", "switch_to_deploy"))


def _compare(before: Tensor, after: Tensor) -> float:
    """Largest difference as a share of the largest logit; NaN is passed on."""
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
