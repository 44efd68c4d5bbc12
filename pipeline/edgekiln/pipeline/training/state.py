"""The state of a training beside its data, in one safetensors file that is written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from edgekiln.pipeline.training.checkpoint import save_tensors

__all__ = [
    "PROGRESS_NAME",
    "Schedule",
    "TrainingState",
    "load_optimizer",
    "optimizer_tensors",
    "save_progress",
    "split_progress",
]

PROGRESS_NAME = "progress.safetensors"
_KINDS = ("model", "best", "optimizer", "source", "best_source", "average", "source_average")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps an epoch has, and the whole training."""

    steps_per_epoch: int
    total_steps: int

    def epoch_of(self, step: int) -> int:
        """The epoch that has ended with ``step`` steps done."""
        return step // max(1, self.steps_per_epoch)


@dataclass(slots=True)
class TrainingState:
    """Counters, and copies of the best epoch's weights by name.

    Attributes:
        step: steps done.
        threads: CPU threads; others would add up in another order.
        learning_rate: the highest; the recipe's, or what the finder found.
        best_step: after which the kept weights were judged.
    """

    step: int = 0
    threads: int = 0
    learning_rate: float = 0.0
    best_step: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    best_source: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, counters: Mapping[str, str], best: dict[str, Tensor], best_source: dict[str, Tensor]
    ) -> TrainingState:
        """The state that ``save_progress`` wrote."""
        state = cls(best=best, best_source=best_source)
        for name in cls._numbers():
            setattr(state, name, type(getattr(state, name))(counters[name]))
        return state

    def become(self, other: TrainingState) -> None:
        """Take everything that another one holds: whoever was given this object sees the resumed state."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))

    @classmethod
    def _numbers(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.type in {"int", "float"}]

    def counters(self) -> dict[str, str]:
        """All numbers, exactly."""
        return {name: repr(getattr(self, name)) for name in self._numbers()}


def save_progress(parts: Mapping[str, Mapping[str, Tensor]], state: TrainingState, folder: Path) -> None:
    """Write tensors by kind (``model``, ``optimizer``, ``source``, ``average``) and the state."""
    parts = {**parts, "best": state.best, "best_source": state.best_source}
    tensors = {
        f"{kind}.{name}": value.detach().cpu()
        for kind in _KINDS
        for name, value in parts.get(kind, {}).items()
    }
    save_tensors(tensors, folder / PROGRESS_NAME, state.counters())


def split_progress(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by kind and name, as ``save_progress`` took them; every kind is there."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][name] = value
    return parts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as ``INDEX.SLOT``; rates are set anew at every step."""
    return {
        f"{index}.{slot}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)  # SGD keeps None before its first momentum
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the moments that ``optimizer_tensors`` read.

    Each is laid out as its weight, which may be channels-last where a file is not: torch's fused optimizers pair
    numbers by their place in memory, and do not look whether that is right.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, slot = key.partition(".")
        weight = weights[int(index)]
        laid_out = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
        slots.setdefault(int(index), {})[slot] = laid_out
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
