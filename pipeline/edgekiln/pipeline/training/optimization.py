"""Optimizer, learning rates by step and by layer, and the pull towards the pretrained weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgekiln.pipeline.recipe import FinetuneSettings
from edgekiln.pipeline.training.freezing import count_depths

__all__ = ["learning_rate_factor", "make_optimizer", "pull_to_pretrained", "remember_pretrained", "set_rates"]


def make_optimizer(
    network: nn.Module, head: nn.Linear, more: Iterable[nn.Parameter], settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """AdamW or SGD over all weights that are trained, and over ``more`` (the source's head) as over the head.

    A group holds the weights of one depth; its ``scale`` is ``layer_decay`` to the power of the depth, by which its
    rate is multiplied (discriminative fine-tuning, Howard and Ruder 2018, arXiv:1801.06146, section 3.1; a constant
    factor by layer as in Clark et al. 2020, arXiv:2003.10555). With L2-SP weight decay is for the heads alone: the
    others have a pull.
    """
    own_head, depths = set(head.parameters()), count_depths(network, head)
    kinds: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in (p for p in network.parameters() if p.requires_grad):
        depth = depths[parameter] if settings.layer_decay < 1 else 0
        decays = parameter in own_head or not settings.l2_sp
        kinds.setdefault((depth, decays), []).append(parameter)
    heads = kinds.setdefault((0, True), [])
    heads.extend(more)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "scale": settings.layer_decay**depth,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in kinds.items()
        if parameters
    ]
    fused = (
        _may_fuse(parameter for group in groups for parameter in group["params"]) or None
    )  # None: torch chooses
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=1.0, momentum=settings.momentum, fused=fused
        )  # the rate is set at every step
    return torch.optim.AdamW(groups, lr=1.0, fused=fused)


def _may_fuse(weights: Iterable[nn.Parameter]) -> bool:
    """Whether one call of torch may move all weights, which on a CPU takes a quarter of the time of its loop over them.

    The call pairs weights, gradients and moments by their place in memory, and does not look whether that is right.
    Where a weight has no gaps it is: autograd lays out gradients as the weight, the optimizer new moments, and
    ``state.load_optimizer`` those of a file.
    """
    return all(weight.is_cpu and torch.empty_like(weight).stride() == weight.stride() for weight in weights)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for each group by its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate_factor(step: int, total: int, warmup: float, schedule: str = "cosine") -> float:
    """Linear warm-up over the share ``warmup`` of all steps, then 1, or half a cosine down to 0 (arXiv:1608.03983)."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def remember_pretrained(network: nn.Module, head: nn.Linear) -> dict[nn.Parameter, Tensor]:
    """Copies of the pretrained weights by parameter, the head's left out: those have no pretrained value."""
    own_head = set(head.parameters())
    return {p: p.detach().clone() for p in network.parameters() if p.requires_grad and p not in own_head}


def pull_to_pretrained(pretrained: dict[nn.Parameter, Tensor], strength: float) -> None:
    """Add the gradient of L2-SP, (strength / 2) * |w - w0|^2 over all weights but the heads' (Li et al. 2018,
    arXiv:1802.01483, equation 3)."""
    for parameter, start in pretrained.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=strength)
