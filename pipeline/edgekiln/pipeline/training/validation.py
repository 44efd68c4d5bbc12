"""How good the weights are on val, and which are kept; what the network still knows of the source task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from edgekiln.pipeline.training.divergence import Divergence
from edgekiln.pipeline.training.learner import Learner
from edgekiln.pipeline.training.log_writer import LogWriter
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.pipeline.training.weights import load_state
from edgekiln.pipeline.training.world import World

__all__ = ["Validation"]


@dataclass(frozen=True, slots=True)
class Validation:
    """Judges the learner's weights after an epoch, and keeps the best in the state."""

    learner: Learner
    state: TrainingState
    schedule: Schedule
    divergence: Divergence
    log: LogWriter

    def judge(self, world: World) -> None:
        """Keep the weights of the best epoch on val: top-1 first, loss where that is equal.

        Raises:
            GateError: the loss on val is no number.
        """
        learner, state = self.learner, self.state
        world.align(learner.judged)
        top1, loss = self._measure(world)
        if state.best and not math.isfinite(loss):  # the last step's weights; no further step would tell
            rate = learner.optimizer.param_groups[0]["lr"]
            raise self.divergence.explain(f"The loss on val became {loss}", state.step, rate)
        if (top1, -loss) > (state.best_top1, -state.best_loss):
            state.best_top1, state.best_loss, state.best_step = top1, loss, state.step
            state.best, state.best_source = learner.copy_judged()
        epoch = self.schedule.epoch_of(state.step)
        self.log.write("epoch", epoch=epoch, val_top1=round(top1, 6), val_loss=round(loss, 6))

    def _measure(self, world: World) -> tuple[float, float]:
        """Top-1 and mean cross-entropy in nats over val; each process takes its part of it."""
        val, device = self.learner.job.val, self.learner.device
        mine = world.part(len(val))
        right, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        if mine.stop > mine.start:
            logits = evaluate_model(self.learner.judged, val.frames[mine], device)
            labels = torch.from_numpy(val.labels[mine])
            right = (logits.argmax(1) == labels).double().sum()
            total = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        sums = world.sum(torch.stack([right, total]).to(device)) / len(val)
        top1, loss = sums.tolist()
        return top1, loss

    def has_stalled(self) -> bool:
        """Whether ``patience`` epochs went by without a better one; the state alone tells, so a resumed run agrees."""
        epochs = (self.state.step - self.state.best_step) // self.schedule.steps_per_epoch
        return 0 < self.learner.settings.patience <= epochs

    def judge_source(self, when: Literal["before", "after"]) -> None:
        """Log what the network knows of the source task's val; without one, nothing."""
        source = self.learner.source
        if source is not None:
            self.log.write("source", when=when, val_top1=round(source.top1(self.learner.extract), 6))

    def judge_source_after(self) -> None:
        """What the kept weights still know of the source: the difference to before is what was forgotten."""
        learner = self.learner
        if learner.source is None or not self.schedule.total_steps:
            return
        load_state(learner.network, self.state.best)
        learner.source.load(self.state.best_source)
        self.judge_source("after")
