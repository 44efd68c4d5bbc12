"""A loss that is no number ends a training; what was good before is kept as a checkpoint that can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekiln.pipeline.training.checkpoint import save_checkpoint
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.runtime.errors import GateError

__all__ = ["KEPT_NAME", "Divergence"]

KEPT_NAME = "last-good.safetensors"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Ends a training, and keeps its best weights in ``folder``; only the leader has one.

    The folder is that of an unfinished stage under the key of these settings: another rate has another key and works
    elsewhere, so what is kept there stays until somebody removes it.
    """

    job: FinetuneJob
    folder: Path | None
    state: TrainingState
    schedule: Schedule

    def explain(self, what: str, step: int, rate: float) -> GateError:
        """The error to raise, once the best weights so far are kept: the linear probe's where no epoch ended yet.

        Args:
            what: what was seen: ``The loss became nan``.
            step: where.
            rate: the learning rate of that step.
        """
        what = f"{what} at step {step} of {self.schedule.total_steps}"
        if self.folder is None:
            return GateError(f"{what}.", hint="Lower finetune.learning_rate.")
        path = self.folder / KEPT_NAME
        save_checkpoint(dict(self.state.best), self.job.contract, self.job.backbone.model, path)
        epoch = self.schedule.epoch_of(self.state.best_step)
        return GateError(
            f"{what}, with a learning rate of {rate:.3g}.",
            hint=f"Lower finetune.learning_rate. The best weights before, of epoch {epoch} with a val top-1 of "
            f"{self.state.best_top1:.4f}, are kept: backbone.weights = '{path}' starts from them.",
            path=path,
        )
