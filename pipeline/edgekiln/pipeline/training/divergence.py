"""A loss that is no number ends a training; what was good before is kept as a checkpoint that can be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from edgekiln.pipeline.training.checkpoint import save_checkpoint
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError

__all__ = ["KEPT_NAME", "BestWeights", "stop_diverged"]

KEPT_NAME = "last-good.safetensors"


@dataclass(frozen=True, slots=True)
class BestWeights:
    """The best epoch so far: its weights by name, its number and its top-1 accuracy on val."""

    epoch: int
    top1: float
    tensors: Mapping[str, Tensor] = field(repr=False)


def stop_diverged(
    what: str, rate: float, best: BestWeights, contract: Contract, backbone: str, folder: Path
) -> GateError:
    """Keep the best weights in ``folder`` and return the error to raise.

    The folder is that of an unfinished stage under the key of these settings: another rate has another key and works
    elsewhere, so what is kept there stays until somebody removes it.

    Args:
        what: what was seen and where: ``The loss became nan at step 17 of 100``.
        rate: the learning rate of that step.
        best: judged on val; the linear probe's where no epoch ended yet.
        contract: of the network.
        backbone: the recipe's ``backbone.model``.
        folder: the stage's.
    """
    path = folder / KEPT_NAME
    save_checkpoint(dict(best.tensors), contract, backbone, path)
    return GateError(
        f"{what}, with a learning rate of {rate:.3g}.",
        hint=f"Lower finetune.learning_rate. The best weights before, of epoch {best.epoch} with a val top-1 of "
        f"{best.top1:.4f}, are kept: backbone.weights = '{path}' starts from them.",
        path=path,
    )
