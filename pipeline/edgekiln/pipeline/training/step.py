"""One step of a training: its rate, its gradients, the look at its loss, and the move of the weights."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekiln.pipeline.training.divergence import Divergence
from edgekiln.pipeline.training.gpu_memory import explain_out_of_memory
from edgekiln.pipeline.training.learner import Learner
from edgekiln.pipeline.training.log_writer import LogWriter
from edgekiln.pipeline.training.loss import StepLoss
from edgekiln.pipeline.training.optimization import learning_rate_factor, set_rates
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.pipeline.training.world import World

__all__ = ["Stepper"]

_GPU_STEPS = 10  # reading a loss waits for the GPU, so there it is read for several steps at once


@dataclass(slots=True)
class Stepper:
    """Takes one step after the other.

    Attributes:
        pending: (step, its losses and rate on the device) of steps whose losses are not read yet.
    """

    learner: Learner
    loss: StepLoss
    state: TrainingState
    schedule: Schedule
    world: World
    divergence: Divergence
    log: LogWriter
    pending: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def take(self) -> None:
        """The next step.

        Raises:
            GateError: the loss became NaN or infinite.
        """
        learner, settings, step = self.learner, self.learner.settings, self.state.step
        total = self.schedule.total_steps
        factor = learning_rate_factor(step, total, settings.warmup, settings.schedule)
        rate = self.state.learning_rate * factor
        set_rates(learner.optimizer, rate)
        learner.unfreeze(step, total)
        learner.set_training_mode(alone=self.loss.count_own(step) < 2)
        losses = self.loss.add_gradients(step)
        self.pending.append((step, {**losses, "rate": torch.tensor(rate, device=learner.device)}))
        self._check_losses(step)
        learner.move()
        self.state.step = step + 1

    def explained_memory(self) -> contextlib.AbstractContextManager[None]:
        """A GPU that is too small is told with what would fit; among several processes nothing can be measured."""
        settings = self.learner.settings
        batch = math.ceil(settings.batch_size / self.world.size)
        measure = self._take_small if self.world.size == 1 else None
        return explain_out_of_memory(batch, settings.accumulate, run_step=measure, device=self.learner.device)

    def _take_small(self, pictures: int) -> None:
        """One step of fewer pictures, to see what memory it takes; the weights are of no use afterwards."""
        self.loss.most_pictures = pictures  # of the source task's batch too
        self.loss.add_gradients(0)  # a step whose batch is whole
        self.learner.optimizer.step()

    def _check_losses(self, step: int) -> None:
        """Read and log the losses that are due, and stop where one is no number, before the weights take it."""
        due = self.learner.device.type == "cpu" or (step + 1) % _GPU_STEPS == 0
        if not due and (step + 1) % self.schedule.steps_per_epoch:
            return
        names = list(self.pending[0][1])
        values = torch.stack([torch.stack([losses[name] for name in names]) for _, losses in self.pending])
        rates = values[:, names.index("rate")].clone()
        values = self.world.sum(values)
        values[:, names.index("rate")] = rates  # the same in every process
        for (number, _), row in zip(self.pending, values.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            if not math.isfinite(losses["loss"]):
                what = f"The loss became {losses['loss']}"
                raise self.divergence.explain(what, number + 1, losses["rate"])
            rounded = {name: round(losses[name], 6) for name in names if name != "rate"}
            self.log.write("step", number + 1, **rounded, learning_rate=float(f"{losses['rate']:.6g}"))
        self.pending.clear()
