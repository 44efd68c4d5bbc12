"""An exponential moving average of the weights, which is what is judged and kept where the recipe asks for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["average_weights", "decay_at"]


def decay_at(limit: float, updates: int) -> float:
    """min(limit, (1 + n) / (10 + n)): the start is forgotten in short trainings too.

    The rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``; averaging itself is Polyak and Juditsky
    1992, doi:10.1137/0330046.
    """
    return min(limit, (1 + updates) / (10 + updates))


def average_weights(network: nn.Module, limit: float) -> AveragedModel:
    """A copy of ``network`` that follows it with each ``update_parameters(network)``; BatchNorm's statistics as well.

    Args:
        network: as it starts; the average starts there.
        limit: the decay that long trainings reach, below 1.
    """

    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        blend = get_ema_multi_avg_fn(decay_at(limit, int(updates)))  # type: ignore[no-untyped-call] # torch
        blend(averaged, current, updates)

    averaged = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    averaged.update_parameters(network)  # the first one copies
    return averaged
