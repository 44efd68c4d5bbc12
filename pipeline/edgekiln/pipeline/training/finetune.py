"""Fine-tuning: a linear probe starts the head, then AdamW with a warmed-up cosine, best epoch on val.

A source task may be learned beside the target's (``source_task``), and weights may be pulled towards the pretrained
ones (L2-SP). Order, augmentation and dropout of a step depend on (seed, step) alone, and all state is in one atomic
file, so that a run killed at any moment ends, on the CPU with the same threads, with the weights of an uninterrupted
one. Several processes share each batch (``parallel``); the first of them writes.
What a step does stands in ``step`` and ``loss``, when weights are judged in ``validation``, what is saved in ``state``.
This module puts them in order; it knows no export and no engine.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors, save_checkpoint
from edgekiln.pipeline.training.divergence import KEPT_NAME, Divergence
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.learner import Learner
from edgekiln.pipeline.training.log_writer import LogWriter
from edgekiln.pipeline.training.loss import StepLoss
from edgekiln.pipeline.training.start import Start
from edgekiln.pipeline.training.state import (
    PROGRESS_NAME,
    Schedule,
    TrainingState,
    save_progress,
    split_progress,
)
from edgekiln.pipeline.training.step import Stepper
from edgekiln.pipeline.training.threads import torch_threads
from edgekiln.pipeline.training.validation import Validation
from edgekiln.pipeline.training.world import ALONE, World, check_batch
from edgekiln.runtime.limits import usable_threads

__all__ = ["Trainer", "begin_training", "finetune", "training"]


def finetune(job: FinetuneJob, folder: Path | None, world: World = ALONE) -> None:
    """Train and write ``checkpoint.safetensors`` and ``log.jsonl`` into ``folder``.

    ``folder`` may hold the progress of an earlier, interrupted call; it is then continued. All processes of ``world``
    call this with the same job; only the leader's has a folder.

    Raises:
        GateError: the loss became NaN or infinite; the step is named, and the best weights so far are kept.
        RecipeError: the batch cannot be divided among the processes.
    """
    check_batch(job.settings.batch_size, job.settings.accumulate, world)
    if folder is not None and not (folder / PROGRESS_NAME).exists():
        with training(job, folder, ALONE) as trainer:
            trainer.begin()
            if world.size == 1:
                trainer.run()
                return
    with training(job, folder, world) as trainer:
        if world.size == 1:
            assert folder is not None
            trainer.resume(folder / PROGRESS_NAME)
        else:
            with _shared_progress(folder, world) as path:
                trainer.resume(path)
            trainer.log.write("processes", count=world.size, threads=trainer.threads)
        trainer.run()


def begin_training(job: FinetuneJob, folder: Path) -> None:
    """Do what comes before the first step (probe, learning-rate finder), unless it was done; by one process alone.

    Raises:
        GateError: the finder found no rate.
    """
    if not (folder / PROGRESS_NAME).exists():
        with training(job, folder, ALONE) as trainer:
            trainer.begin()


@contextlib.contextmanager
def training(job: FinetuneJob, folder: Path | None, world: World) -> Iterator[Trainer]:
    """A trainer, with its threads in force; what reads ahead is stopped at the end."""
    trainer = Trainer(job, folder, world)
    try:
        with torch_threads(trainer.threads):
            yield trainer
    finally:
        trainer.close()


@contextlib.contextmanager
def _shared_progress(folder: Path | None, world: World) -> Iterator[Path]:
    """The leader's progress file, as a file of every process."""
    content = world.share_file(folder / PROGRESS_NAME if folder else None)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        path = Path(temporary) / PROGRESS_NAME
        path.write_bytes(content)
        yield path


class Trainer:
    """One training in one process: its parts, and the order in which they act."""

    def __init__(self, job: FinetuneJob, folder: Path | None, world: World = ALONE) -> None:
        settings, rate = job.settings, job.settings.learning_rate
        self.job, self.folder, self.world = job, folder, world
        self.threads = settings.threads or max(1, usable_threads() // world.local_size)
        self.state = TrainingState(threads=self.threads, learning_rate=0.0 if rate == "find" else rate)
        self.log = LogWriter(folder, self.state, tensorboard=settings.tensorboard)
        self.learner = Learner(job, world)
        self.loss = StepLoss(self.learner, world)
        per_epoch = self.loss.feed.batches.per_epoch
        self.schedule = Schedule(per_epoch, per_epoch * settings.epochs)
        divergence = Divergence(job, folder, self.state, self.schedule)
        self.step = Stepper(self.learner, self.loss, self.state, self.schedule, world, divergence, self.log)
        self.validation = Validation(self.learner, self.state, self.schedule, divergence, self.log)

    def close(self) -> None:
        """Stop what reads ahead, and flush what follows the log."""
        self.loss.close()
        self.log.close()

    def begin(self) -> None:
        """All that comes before the first step, by the leader alone."""
        start = Start(self.job, self.learner, self.loss, self.state, self.schedule, self.log)
        self.log.begin()
        self.log.write(
            "start",
            device=self.learner.device.type,
            precision="bf16" if self.learner.uses_bf16 else "fp32",
            threads=self.state.threads,
            torch=torch.__version__,
        )
        if self.learner.told:
            self.log.write("weights", told=list(self.learner.told))
        for text in self.learner.told:
            self.job.tell(text)
        start.probe_head()
        start.probe_source_head()
        self.validation.judge_source("before")
        if self.job.settings.learning_rate == "find" and self.schedule.total_steps:
            start.find_rate()
        self.learner.start_average()  # anew, from the probe's head on
        self.validation.judge(ALONE)
        self.save()

    def run(self) -> None:
        """Every step that is left, an epoch's end after each epoch, and the checkpoint."""
        saved_at = time.monotonic()
        started, first = time.monotonic(), self.state.step
        settings, total = self.job.settings, self.schedule.total_steps
        while self.state.step < total and not self.validation.has_stalled():
            with self.step.explained_memory():
                self.step.take()
            self._report_speed(started, first)
            epoch_ended = self.state.step % self.schedule.steps_per_epoch == 0
            if epoch_ended:
                self.validation.judge(self.world)
            late = time.monotonic() - saved_at > settings.checkpoint_seconds
            if epoch_ended or (late and not self.step.pending):
                self.save()
                saved_at = time.monotonic()
        if self.state.step < total:
            self.log.write("stopped", reason=f"no better epoch in {settings.patience}")
        if self.folder is not None:
            self.validation.judge_source_after()
            self._write_checkpoint(self.folder)

    def _report_speed(self, started: float, first: int) -> None:
        rate = (self.state.step - first) * self.job.settings.batch_size / (time.monotonic() - started)
        note = f"{rate:.0f} img/s, best val top-1 {max(0.0, self.state.best_top1):.4f}"
        self.job.advance(self.state.step, self.schedule.total_steps, note)

    def save(self) -> None:
        """Write everything that ``resume`` needs, by the process that writes."""
        if self.folder is not None:
            save_progress(self.learner.tensors(), self.state, self.folder)

    def resume(self, path: Path) -> None:
        """Go on from the leader's progress file."""
        tensors, counters = load_tensors(path)
        parts = split_progress(tensors)
        self.learner.restore(parts)
        self.state.become(TrainingState.of(counters, parts["best"], parts["best_source"]))
        if self.world.size > 1:
            self.state.threads = self.threads
        torch.set_num_threads(self.state.threads)
        self.log.go_on()

    def _write_checkpoint(self, folder: Path) -> None:
        self.log.write("done", best_step=self.state.best_step, best_val_top1=round(self.state.best_top1, 6))
        path = folder / CHECKPOINT_NAME
        save_checkpoint(self.state.best, self.job.contract, self.job.backbone.model, path)
        for name in (PROGRESS_NAME, KEPT_NAME):  # the latter of an attempt that diverged
            (folder / name).unlink(missing_ok=True)
