"""Fine-tuning: a linear probe starts the head, then AdamW with a warmed-up cosine, best epoch on val.

A source task may be learned beside the target's (``source_task``), and weights may be pulled towards the pretrained
ones (L2-SP). Order, augmentation and dropout of a step depend on (seed, step) alone, and all state is in one atomic
file, so that a run killed at any moment ends, on the CPU with the same threads, with the weights of an uninterrupted
one. Several processes share each batch (``parallel``); the first of them writes.
This module knows no export and no engine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgekiln.export.to_onnx import PixelModel, normalize
from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.training.augmentation import augment_batch, augment_picture
from edgekiln.pipeline.training.averaging import average_weights
from edgekiln.pipeline.training.backbones import Backbone, build_backbone, find_head
from edgekiln.pipeline.training.batches import Batches, Feed, step_seed
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors, save_checkpoint
from edgekiln.pipeline.training.divergence import KEPT_NAME, BestWeights, stop_diverged
from edgekiln.pipeline.training.freezing import GradualUnfreezing, freeze, is_frozen
from edgekiln.pipeline.training.gpu_memory import explain_out_of_memory
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.optimization import (
    learning_rate_factor,
    make_optimizer,
    pull_to_pretrained,
    remember_pretrained,
    set_rates,
)
from edgekiln.pipeline.training.probe import evaluate_model, extract_features, fit_head, set_head
from edgekiln.pipeline.training.rate_finder import find_rate
from edgekiln.pipeline.training.source_task import BothTasks, SourceTask
from edgekiln.pipeline.training.state import (
    PROGRESS_NAME,
    TrainingState,
    load_optimizer,
    optimizer_tensors,
    save_progress,
    split_progress,
)
from edgekiln.pipeline.training.teacher import Teacher, distillation_loss
from edgekiln.pipeline.training.tensorboard import EventFiles, event_folder
from edgekiln.pipeline.training.world import ALONE, World, check_batch
from edgekiln.runtime.errors import GateError

__all__ = ["LOG_NAME", "begin_training", "finetune"]

LOG_NAME = "log.jsonl"
_GPU_STEPS = 10  # reading a loss waits for the GPU, so there it is read for several steps at once


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
        with _training(job, folder, ALONE) as trainer:
            trainer.begin()
            if world.size == 1:
                trainer.run()
                return
    with _training(job, folder, world) as trainer:
        if world.size == 1:
            assert folder is not None
            trainer.resume(folder / PROGRESS_NAME)
        else:
            with _shared_progress(folder, world) as path:
                trainer.resume(path)
            trainer.log("processes", count=world.size, threads=trainer.threads)
        trainer.run()


def begin_training(job: FinetuneJob, folder: Path) -> None:
    """Do what comes before the first step (probe, learning-rate finder), unless it was done; by one process alone.

    Raises:
        GateError: the finder found no rate.
    """
    if not (folder / PROGRESS_NAME).exists():
        with _training(job, folder, ALONE) as trainer:
            trainer.begin()


@contextlib.contextmanager
def _training(job: FinetuneJob, folder: Path | None, world: World) -> Iterator[_Trainer]:
    """A trainer, with its threads in force; what reads ahead is stopped at the end."""
    trainer = _Trainer(job, folder, world)
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one forward pass takes.

    Attributes:
        pixels: float32 (B, 3, H, W), normalized.
        labels: int64 (B,).
        share: of the whole step's pictures.
        weight: of the whole step's class weights; ``share`` where all classes weigh alike.
    """

    pixels: Tensor
    labels: Tensor
    share: float
    weight: float


class _Trainer:
    """One training run. Split in methods only so that each fits a screen."""

    def __init__(self, job: FinetuneJob, folder: Path | None, world: World = ALONE) -> None:
        self.job, self.settings, self.folder, self.world = job, job.settings, folder, world
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", world.local_rank) if on_gpu else torch.device("cpu")
        self.classes = len(job.contract.classes)
        torch.manual_seed(job.seed)  # before the head's random weights
        backbone = build_backbone(job.backbone, self.classes, job.contract.height)
        self.normalization = backbone.normalization
        self.model = _place(backbone, self.device, channels_last=job.settings.channels_last)
        self.network = self.model.network
        freeze(self.network, job.backbone, self.classes)
        self.head = find_head(self.network, self.classes)[1]
        self.pretrained = remember_pretrained(self.network, self.head) if job.settings.l2_sp else {}
        self.source = SourceTask(job.source, self.head.in_features, self.device) if job.source else None
        self.teacher = Teacher(job.teacher.checkpoint, job.contract, self.device) if job.teacher else None
        self.unfreezing = GradualUnfreezing(self.network, self.head, job.settings.gradual_unfreezing)
        self.optimizer = self._make_optimizer()
        self.average: AveragedModel | None = None
        self.source_average: AveragedModel | None = None
        self.judged = self.model
        self._start_average()
        self.mix = augment_batch(job.settings.augmentation, self.classes)
        self.class_weights = weigh_classes(job) if job.settings.class_balance else None
        self.feed, self.source_feed = self._open_feeds()
        self.steps_per_epoch = self.feed.batches.per_epoch
        self.total_steps = self.steps_per_epoch * job.settings.epochs
        self.threads = job.settings.threads or max(1, usable_cores() // world.local_size)
        rate = job.settings.learning_rate
        self.state = TrainingState(threads=self.threads, learning_rate=0.0 if rate == "find" else rate)
        self.most_pictures: int | None = None
        self.alone: bool | None = None  # what BatchNorm is set to; None: not known
        self.events: EventFiles | None = None
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.forward: Callable[..., tuple[Tensor, Tensor]] = self._wrap()

    def _start_average(self) -> None:
        if self.settings.ema:
            self.average = average_weights(self.network, self.settings.ema)
            self.judged = PixelModel(self.average.module, self.normalization).to(self.device)
            if self.source is not None:
                self.source_average = average_weights(self.source.head, self.settings.ema)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        more = self.source.head.parameters() if self.source else ()
        return make_optimizer(self.network, self.head, more, self.settings)

    def _open_feeds(self) -> tuple[Feed, Feed | None]:
        """The pictures of the target task, and of the source's."""
        job, settings, on_gpu = self.job, self.settings, self.device.type == "cuda"
        augment = augment_picture(settings.augmentation, job.contract)
        cores = usable_cores() // self.world.local_size
        automatic = min(8, max(1, cores - 1)) if on_gpu else 0
        workers = automatic if settings.workers is None else settings.workers
        common: dict[str, Any] = {"world": self.world, "workers": workers, "pin": on_gpu}
        balance = job.train.labels if settings.sampling == "balanced" else None
        batches = Batches(len(job.train), settings.batch_size, job.seed, (), balance)
        target = Feed(job.train, batches, augment, job.seed, **common)
        if job.source is None:
            return target, None
        batches = Batches(len(job.source.train), settings.batch_size, job.seed, (1,))
        return target, Feed(job.source.train, batches, augment, job.seed, stream=1, **common)

    def _wrap(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What a forward pass calls: both tasks, data-parallel and compiled where that is asked for."""
        both = BothTasks(self.network, self.head, self.source.head if self.source else None)
        wrapped = self.world.wrap(both)
        return torch.compile(wrapped) if self.settings.compile else wrapped

    def close(self) -> None:
        """Stop what reads ahead."""
        for feed in (self.feed, self.source_feed):
            if feed is not None:
                feed.close()
        if self.events is not None:
            self.events.close()

    # -- the run

    def run(self) -> None:
        saved_at = time.monotonic()
        started, first = time.monotonic(), self.state.step
        while self.state.step < self.total_steps and not self._has_stalled():
            with self._explained_memory():
                self._train_step()
            self._report_speed(started, first)
            epoch_ended = self.state.step % self.steps_per_epoch == 0
            if epoch_ended:
                self._judge_epoch(self.world)
            late = time.monotonic() - saved_at > self.settings.checkpoint_seconds
            if epoch_ended or (late and not self.pending):
                self._save_progress()
                saved_at = time.monotonic()
        if self.state.step < self.total_steps:
            self.log("stopped", reason=f"no better epoch in {self.settings.patience}")
        if self.folder is not None:
            self._judge_source_after()
            self._write_checkpoint(self.folder)

    def begin(self) -> None:
        """All that comes before the first step, by the leader alone."""
        assert self.folder is not None
        (self.folder / LOG_NAME).write_text("")
        self._open_events(self.folder)
        self._log_start()
        total = max(1, self.total_steps)
        if self.settings.probe and not self.job.backbone.keeps_head:
            self.job.advance(0, total, "linear probe")
            splits = (self.job.train, self.job.val)
            weight, bias, penalty = fit_head(
                self.model, self.head, splits, self.classes, self.job.seed, self.device
            )
            set_head(self.head, weight, bias)
            self.log("probe", l2=penalty)
        if self.source is not None:
            self._start_source(self.source)
        if self.settings.learning_rate == "find" and self.total_steps:
            self.job.advance(0, total, "learning-rate finder")
            self._find_rate()
        self._start_average()  # anew, from the probe's head on
        self._judge_epoch(ALONE)
        self._save_progress()

    def _log_start(self) -> None:
        self.log(
            "start",
            device=self.device.type,
            precision="bf16" if self._uses_bf16() else "fp32",
            threads=self.state.threads,
            torch=torch.__version__,
        )

    def _start_source(self, source: SourceTask) -> None:
        """A fresh source head from a linear probe, and what the network knows of the source before it learns."""
        data = source.data
        if data.head is None:
            self.job.advance(0, max(1, self.total_steps), "linear probe of the source task")
            splits = (data.train, data.val)
            weight, bias, penalty = fit_head(
                self.model, self.head, splits, len(data.classes), self.job.seed, self.device
            )
            source.load({"weight": weight.float(), "bias": bias.float()})
            self.log("source_probe", l2=penalty)
        self.log("source", when="before", val_top1=round(source.top1(self._extract), 6))

    def _judge_source_after(self) -> None:
        """What the kept weights still know of the source: the difference to before is what was forgotten."""
        if self.source is None or not self.total_steps:
            return
        self.network.load_state_dict(self.state.best, strict=True)
        self.source.load(self.state.best_source)
        self.log("source", when="after", val_top1=round(self.source.top1(self._extract), 6))

    def _extract(self, split: PreparedSplit) -> Tensor:
        return extract_features(self.model, self.head, split.frames, self.device)

    def _find_rate(self) -> None:
        """Take the rate that the range test recommends; the weights are afterwards as before."""
        kept = {name: value.clone() for name, value in self.network.state_dict().items()}
        kept_source = self.source.copy() if self.source else {}

        def train(number: int, rate: float) -> float:
            set_rates(self.optimizer, rate)
            self._set_training_mode(alone=len(self._mine(number)) < 2)
            losses = self._add_gradients(number)
            self.optimizer.step()
            return float(losses["loss"])

        found = find_rate(train)
        self.network.load_state_dict(kept, strict=True)
        if self.source is not None:
            self.source.load(kept_source)
        self.optimizer = self._make_optimizer()
        self.state.learning_rate = found.rate
        points = [[float(f"{rate:.4g}"), round(loss, 6)] for rate, loss in found.points]
        self.log("rate_finder", learning_rate=found.rate, points=points)

    # -- a step

    def _train_step(self) -> None:
        step = self.state.step
        rate = self.state.learning_rate * learning_rate_factor(
            step, self.total_steps, self.settings.warmup, self.settings.schedule
        )
        set_rates(self.optimizer, rate)
        if self.settings.gradual_unfreezing and self.unfreezing.apply(step, self.total_steps):
            self.forward = self._wrap()
            self.alone = None
        self._set_training_mode(alone=len(self._mine(step)) < 2)
        losses = self._add_gradients(step)
        self.pending.append((step, {**losses, "rate": torch.tensor(rate, device=self.device)}))
        self._check_losses(step)
        pull_to_pretrained(self.pretrained, self.settings.l2_sp)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        if self.source is not None and self.source_average is not None:
            self.source_average.update_parameters(self.source.head)
        self.state.step = step + 1

    def _explained_memory(self) -> contextlib.AbstractContextManager[None]:
        """A GPU that is too small is told with what would fit; among several processes nothing can be measured."""
        batch = math.ceil(self.settings.batch_size / self.world.size)
        measure = self._run_small_step if self.world.size == 1 else None
        return explain_out_of_memory(batch, self.settings.accumulate, run_step=measure, device=self.device)

    def _run_small_step(self, pictures: int) -> None:
        """One step of fewer pictures, to see what memory it takes; the weights are of no use afterwards."""
        self.most_pictures = pictures  # of the source task's batch too
        self._add_gradients(0)  # a step whose batch is whole
        self.optimizer.step()

    def _add_gradients(self, step: int) -> dict[str, Tensor]:
        """Gradients of the step's loss; returns this process's share of each loss, scalars on the device."""
        torch.manual_seed(_dropout_seed(self.job.seed, step, self.world.rank))
        target = self._draw(self.feed, step, self.class_weights)
        source = self._draw(self.source_feed, step, None) if self.source_feed else [None] * len(target)
        torch.manual_seed(_dropout_seed(self.job.seed, step, self.world.rank))  # reading may have drawn
        sums: dict[str, Tensor] = {}
        for number, (mine, other) in enumerate(zip(target, source, strict=True)):
            with self._synchronized(last=number == len(target) - 1):
                losses = self._losses(mine, other)
                if number == 0:  # not before: memory that is freed right ahead of its use comes back sooner
                    self.optimizer.zero_grad(set_to_none=True)
                # DistributedDataParallel takes the mean over processes, and these losses are shares of a sum.
                (losses["loss"] * self.world.size).backward()  # type: ignore[no-untyped-call] # torch
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    def _synchronized(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once in a step, with its last part."""
        no_sync = getattr(self.forward, "no_sync", None)
        return no_sync() if no_sync is not None and not last else contextlib.nullcontext()

    def _losses(self, mine: _Part, other: _Part | None) -> dict[str, Tensor]:
        """J = alpha * J_source + beta * J_target, and the parts of it where there is more than one."""
        smoothing = self.settings.label_smoothing
        pixels, labels, weights = mine.pixels, mine.labels, None
        if self.class_weights is not None:
            weights = torch.from_numpy(self.class_weights).to(self.device)
        if self.mix is not None:
            pixels, labels = self.mix(pixels, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._uses_bf16()):
            logits, source_logits = self.forward(pixels, other.pixels if other else None)
        logits = logits.float()
        target = nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        target = target * (mine.share if self.mix is not None else mine.weight)
        parts: dict[str, Tensor] = {}
        if self.teacher is not None and self.job.teacher is not None:
            weight, plain = self.job.teacher.weight, (pixels - self.model.offset) / self.model.scale
            taught = distillation_loss(logits, self.teacher.answer(plain), self.job.teacher.temperature)
            parts["teacher_loss"] = taught * mine.share
            target = (1 - weight) * target + weight * parts["teacher_loss"]
        if self.source is None or other is None:
            return {"loss": self.job.beta * target, **parts}
        source = nn.functional.cross_entropy(source_logits.float(), other.labels, label_smoothing=smoothing)
        source = source * other.share
        total = self.source.data.alpha * source + self.job.beta * target
        return {"loss": total, **parts, "target_loss": target, "source_loss": source}

    def _draw(
        self, feed: Feed, step: int, class_weights: np.ndarray[Any, np.dtype[np.float32]] | None
    ) -> list[_Part]:
        """The pictures of this process in a step, normalized, in as many parts as the recipe accumulates."""
        frames, labels = (whole[: self.most_pictures] for whole in feed.at(step))
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        pixels = frames.to(self.device, non_blocking=True).float().contiguous(memory_format=layout)
        pixels = normalize(pixels, self.model.scale, self.model.offset)
        everyone = feed.labels(step)
        mine = self.world.part(len(everyone))
        weigh = _weigh_by(class_weights)
        # No part of a single picture, of which BatchNorm has no statistics, where there are more.
        parts = 1 if self.most_pictures else min(self.settings.accumulate, max(1, len(labels) // 2))
        places = np.array_split(np.arange(mine.start, mine.stop), parts)
        there = labels.to(self.device, non_blocking=True)
        return [
            _Part(x, y, len(own) / len(everyone), weigh(everyone[own]) / weigh(everyone))
            for x, y, own in zip(pixels.tensor_split(parts), there.tensor_split(parts), places, strict=True)
        ]

    def _check_losses(self, step: int) -> None:
        """Read and log the losses that are due, and stop where one is no number, before the weights take it."""
        due = self.device.type == "cpu" or (step + 1) % _GPU_STEPS == 0
        if not due and (step + 1) % self.steps_per_epoch:
            return
        names = list(self.pending[0][1])
        values = torch.stack([torch.stack([losses[name] for name in names]) for _, losses in self.pending])
        rates = values[:, names.index("rate")].clone()
        values = self.world.sum(values)
        values[:, names.index("rate")] = rates  # the same in every process
        for (number, _), row in zip(self.pending, values.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            if not math.isfinite(losses["loss"]):
                raise self._diverged(f"The loss became {losses['loss']}", number + 1, losses["rate"])
            rounded = {name: round(losses[name], 6) for name in names if name != "rate"}
            self.log("step", number + 1, **rounded, learning_rate=float(f"{losses['rate']:.6g}"))
        self.pending.clear()

    def _diverged(self, what: str, step: int, rate: float) -> GateError:
        """The error; the leader puts what was best so far beside the log as a checkpoint."""
        what = f"{what} at step {step} of {self.total_steps}"
        if self.folder is None:
            return GateError(f"{what}.", hint="Lower finetune.learning_rate.")
        epoch = self.state.best_step // max(1, self.steps_per_epoch)
        best = BestWeights(epoch, self.state.best_top1, self.state.best)
        return stop_diverged(what, rate, best, self.job.contract, self.job.backbone.model, self.folder)

    def _uses_bf16(self) -> bool:
        if self.settings.precision == "auto":
            return self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.settings.precision == "bf16"

    def _mine(self, step: int) -> range:
        """Places in the step's batch of the pictures that this process has."""
        count = len(self.feed.labels(step))
        return range(count)[self.world.part(count)]

    def _set_training_mode(self, *, alone: bool = False) -> None:
        """Training mode; BatchNorm keeps its statistics where it is frozen, and for one picture ``alone``.

        A network that is in it already is not walked through again, which takes a percent of a small step.
        """
        if self.network.training and self.alone is alone:
            return
        self.alone = alone
        self.network.train()
        everywhere = alone or self.job.backbone.freeze_batchnorm or self.job.backbone.freeze == "backbone"
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (everywhere or is_frozen(module)):
                module.eval()

    # -- judging

    def _judge_epoch(self, world: World) -> None:
        """Keep the weights of the best epoch on val: top-1 first, loss where that is equal."""
        world.align(self.judged)
        mine = world.part(len(self.job.val))
        right, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        if mine.stop > mine.start:
            logits = evaluate_model(self.judged, self.job.val.frames[mine], self.device)
            labels = torch.from_numpy(self.job.val.labels[mine])
            right = (logits.argmax(1) == labels).double().sum()
            total = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        sums = world.sum(torch.stack([right, total]).to(self.device)) / len(self.job.val)
        top1, loss = sums.tolist()
        if self.state.best and not math.isfinite(loss):  # the last step's weights; no further step would tell
            rate = self.optimizer.param_groups[0]["lr"]
            raise self._diverged(f"The loss on val became {loss}", self.state.step, rate)
        if (top1, -loss) > (self.state.best_top1, -self.state.best_loss):
            self.state.best_top1, self.state.best_loss, self.state.best_step = top1, loss, self.state.step
            weights = self.judged.network.state_dict()
            self.state.best = {k: v.detach().cpu().clone() for k, v in weights.items()}
            self.state.best_source = self._copy_source_head()
        epoch = self.state.step // max(1, self.steps_per_epoch)
        self.log("epoch", epoch=epoch, val_top1=round(top1, 6), val_loss=round(loss, 6))

    def _copy_source_head(self) -> dict[str, Tensor]:
        """The source's head that belongs to the weights that are judged."""
        if self.source is None:
            return {}
        if self.source_average is None:
            return self.source.copy()
        head = self.source_average.module.state_dict()
        return {name: value.detach().cpu().clone() for name, value in head.items()}

    def _has_stalled(self) -> bool:
        """Whether ``patience`` epochs went by without a better one; the state alone tells, so a resumed run agrees."""
        epochs = (self.state.step - self.state.best_step) // self.steps_per_epoch
        return 0 < self.settings.patience <= epochs

    def _report_speed(self, started: float, first: int) -> None:
        rate = (self.state.step - first) * self.settings.batch_size / (time.monotonic() - started)
        note = f"{rate:.0f} img/s, best val top-1 {max(0.0, self.state.best_top1):.4f}"
        self.job.advance(self.state.step, self.total_steps, note)

    def log(self, event: str, step: int | None = None, **values: object) -> None:
        """One line of the training log, by the process that writes."""
        if self.folder is None:
            return
        line = {"event": event, "step": self.state.step if step is None else step, **values}
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.events is not None:
            self.events.event(line)

    # -- persistence

    def _save_progress(self) -> None:
        if self.folder is None:
            return
        parts = {"model": self.network.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.source is not None:
            parts["source"] = self.source.copy()
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if self.source_average is not None:
            parts["source_average"] = self.source_average.state_dict()
        save_progress(parts, self.state, self.folder)

    def resume(self, path: Path) -> None:
        """Go on from the leader's progress file."""
        tensors, counters = load_tensors(path)
        parts = split_progress(tensors)
        self.network.load_state_dict(parts["model"], strict=True)
        if self.source is not None:
            self.source.load(parts["source"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"], strict=True)
        if self.source_average is not None:
            self.source_average.load_state_dict(parts["source_average"], strict=True)
        load_optimizer(self.optimizer, parts["optimizer"])
        self.state = TrainingState.of(counters, parts["best"], parts["best_source"])
        if self.world.size > 1:
            self.state.threads = self.threads
        torch.set_num_threads(self.state.threads)
        self.forward = self._wrap()
        if self.folder is not None:
            _forget_lines_after(self.state.step, self.folder / LOG_NAME)
            self._open_events(self.folder)

    def _open_events(self, folder: Path) -> None:
        """TensorBoard's event files follow the log, where the recipe asks for them."""
        if self.settings.tensorboard:
            self.events = EventFiles(folder / LOG_NAME, event_folder(folder))

    def _write_checkpoint(self, folder: Path) -> None:
        self.log("done", best_step=self.state.best_step, best_val_top1=round(self.state.best_top1, 6))
        save_checkpoint(self.state.best, self.job.contract, self.job.backbone.model, folder / CHECKPOINT_NAME)
        for name in (PROGRESS_NAME, KEPT_NAME):  # the latter of an attempt that diverged
            (folder / name).unlink(missing_ok=True)


def _forget_lines_after(step: int, log: Path) -> None:
    """Steps after the last save are trained again; their lines would stand twice."""
    lines = log.read_text("utf-8").splitlines()
    events = [(line, json.loads(line)) for line in lines if line.endswith("}")]
    kept = [line for line, event in events if event["step"] <= step and not _tells_of_the_end(event)]
    log.write_text("".join(f"{line}\n" for line in kept), "utf-8")


def _tells_of_the_end(event: Mapping[str, Any]) -> bool:
    return event["event"] in {"stopped", "done"} or event.get("when") == "after"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _place(backbone: Backbone, device: torch.device, *, channels_last: bool) -> PixelModel:
    model = PixelModel(backbone.network, backbone.normalization)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return] # torch types no memory_format here


def weigh_classes(job: FinetuneJob) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (classes,): N / (C n_c), so that every class counts alike in the loss, with a mean of 1 per picture."""
    counts = np.bincount(job.train.labels, minlength=len(job.contract.classes))
    return (len(job.train) / (len(counts) * counts)).astype(np.float32)


def _weigh_by(
    class_weights: np.ndarray[Any, np.dtype[np.float32]] | None,
) -> Callable[[Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]], float]:
    """A function from labels to the sum of their weights."""
    if class_weights is None:
        return lambda labels: float(len(labels))
    return lambda labels: float(class_weights[labels].sum())


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Of dropout and of mixed pairs; each process has its own pictures, and so its own chance."""
    return step_seed(seed, step, rank) if rank else step_seed(seed, step)
