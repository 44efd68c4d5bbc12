"""What comes before the first step: heads from linear probes, and a learning rate that the range test finds."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.learner import Learner
from edgekiln.pipeline.training.log_writer import LogWriter
from edgekiln.pipeline.training.loss import StepLoss
from edgekiln.pipeline.training.optimization import set_rates
from edgekiln.pipeline.training.probe import fit_head, set_head
from edgekiln.pipeline.training.rate_finder import find_rate
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.pipeline.training.weights import load_state

__all__ = ["Start"]


@dataclass(frozen=True, slots=True)
class Start:
    """Gets a learner ready for its first step; by one process alone."""

    job: FinetuneJob
    learner: Learner
    loss: StepLoss
    state: TrainingState
    schedule: Schedule
    log: LogWriter

    def _tell(self, note: str) -> None:
        self.job.advance(0, max(1, self.schedule.total_steps), note)

    def probe_head(self) -> None:
        """A head from a linear probe, unless the recipe keeps the checkpoint's or starts from a random one."""
        job, learner = self.job, self.learner
        if not job.settings.probe or job.backbone.keeps_head:
            return
        self._tell("linear probe")
        splits, classes = (job.train, job.val), len(job.contract.classes)
        weight, bias, penalty = fit_head(
            learner.model, learner.head, splits, classes, job.seed, learner.device
        )
        set_head(learner.head, weight, bias)
        self.log.write("probe", l2=penalty)

    def probe_source_head(self) -> None:
        """A head of the source task from a linear probe, unless the checkpoint's is kept."""
        learner = self.learner
        if learner.source is None or learner.source.data.head is not None:
            return
        data = learner.source.data
        self._tell("linear probe of the source task")
        splits, classes = (data.train, data.val), len(data.classes)
        weight, bias, penalty = fit_head(
            learner.model, learner.head, splits, classes, self.job.seed, learner.device
        )
        learner.source.load({"weight": weight.float(), "bias": bias.float()})
        self.log.write("source_probe", l2=penalty)

    def find_rate(self) -> None:
        """Take the rate that the range test recommends; the weights are afterwards as before.

        Raises:
            GateError: it found none.
        """
        learner = self.learner
        self._tell("learning-rate finder")
        kept = {name: value.clone() for name, value in learner.network.state_dict().items()}
        kept_source = learner.source.copy() if learner.source else {}

        def train(number: int, rate: float) -> float:
            set_rates(learner.optimizer, rate)
            learner.set_training_mode(alone=self.loss.count_own(number) < 2)
            losses = self.loss.add_gradients(number)
            learner.optimizer.step()
            return float(losses["loss"])

        found = find_rate(train)
        load_state(learner.network, kept)
        if learner.source is not None:
            learner.source.load(kept_source)
        learner.reset_optimizer()
        self.state.learning_rate = found.rate
        points = [[float(f"{rate:.4g}"), round(loss, 6)] for rate, loss in found.points]
        self.log.write("rate_finder", learning_rate=found.rate, points=points)
