"""The loss of a step and its gradients: which pictures, both tasks, the teacher, in as many parts as are accumulated.

It moves no weights and knows no epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.pipeline.training.augmentation import augment_batch
from edgekiln.pipeline.training.batch_augmentation import BatchAugmentation
from edgekiln.pipeline.training.batches import Batches, Feed, step_seed
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.learner import Learner
from edgekiln.pipeline.training.shared_memory import fit_workers
from edgekiln.pipeline.training.teacher import distillation_loss
from edgekiln.pipeline.training.world import World
from edgekiln.runtime.limits import usable_threads

__all__ = ["Part", "StepLoss", "weigh_classes"]


@dataclass(frozen=True, slots=True)
class Part:
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


class StepLoss:
    """Draws the pictures of a step and adds its gradients to the learner's weights.

    Attributes:
        feed: the pictures of the target task; ``source_feed`` those of the source's, where there is one.
        most_pictures: of each task's batch, where a smaller step is tried; ``None``: the whole batch.
    """

    def __init__(self, learner: Learner, world: World) -> None:
        job = learner.job
        self._learner, self._job, self._settings, self._world = learner, job, job.settings, world
        self._mix = augment_batch(job.settings.augmentation, len(job.contract.classes))
        self._class_weights = weigh_classes(job) if job.settings.class_balance else None
        self.feed, self.source_feed = _open_feeds(job, world, on_gpu=learner.device.type == "cuda")
        self.most_pictures: int | None = None

    def close(self) -> None:
        """Stop what reads ahead."""
        for feed in (self.feed, self.source_feed):
            if feed is not None:
                feed.close()

    def count_own(self, step: int) -> int:
        """How many pictures of the step's batch this process has."""
        count = len(self.feed.labels(step))
        return len(range(count)[self._world.part(count)])

    def add_gradients(self, step: int) -> dict[str, Tensor]:
        """Gradients of the step's loss; returns this process's share of each loss, scalars on the device."""
        target = self.draw(self.feed, step, self._class_weights)
        source = self.draw(self.source_feed, step, None) if self.source_feed else [None] * len(target)
        self._seed_dropout(step)  # not before: reading may draw
        sums: dict[str, Tensor] = {}
        for number, (mine, other) in enumerate(zip(target, source, strict=True)):
            with self._synchronized(last=number == len(target) - 1):
                losses = self.compute(mine, other)
                if number == 0:  # not before: memory that is freed right ahead of its use comes back sooner
                    self._learner.optimizer.zero_grad(set_to_none=True)
                # DistributedDataParallel takes the mean over processes, and these losses are shares of a sum.
                (losses["loss"] * self._world.size).backward()  # type: ignore[no-untyped-call] # torch
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    def _seed_dropout(self, step: int) -> None:
        seed = _dropout_seed(self._job.seed, step, self._world.rank)
        # torch.manual_seed also writes down, for GPUs that are not there, where it was called: 0.4 ms.
        seed_all = (
            torch.manual_seed if self._learner.device.type == "cuda" else torch.default_generator.manual_seed
        )
        seed_all(seed)

    def _synchronized(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once in a step, with its last part."""
        no_sync = getattr(self._learner.forward, "no_sync", None)
        return no_sync() if no_sync is not None and not last else contextlib.nullcontext()

    def compute(self, mine: Part, other: Part | None) -> dict[str, Tensor]:
        """J = alpha * J_source + beta * J_target, and the parts of it where there is more than one."""
        learner, smoothing = self._learner, self._settings.label_smoothing
        pixels, labels, weights = mine.pixels, mine.labels, None
        if self._class_weights is not None:
            weights = torch.from_numpy(self._class_weights).to(learner.device)
        if self._mix is not None:
            pixels, labels = self._mix(pixels, labels)
        with torch.autocast(learner.device.type, torch.bfloat16, enabled=learner.uses_bf16):
            logits, source_logits = learner.forward(pixels, other.pixels if other else None)
        logits = logits.float()
        target = nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        target = target * (mine.share if self._mix is not None else mine.weight)
        parts: dict[str, Tensor] = {}
        if learner.teacher is not None and self._job.teacher is not None:
            weight, plain = self._job.teacher.weight, (pixels - learner.model.offset) / learner.model.scale
            taught = distillation_loss(logits, learner.teacher.answer(plain), self._job.teacher.temperature)
            parts["teacher_loss"] = taught * mine.share
            target = (1 - weight) * target + weight * parts["teacher_loss"]
        if learner.source is None or other is None:
            return {"loss": self._job.beta * target, **parts}
        source = nn.functional.cross_entropy(source_logits.float(), other.labels, label_smoothing=smoothing)
        source = source * other.share
        total = learner.source.data.alpha * source + self._job.beta * target
        return {"loss": total, **parts, "target_loss": target, "source_loss": source}

    def draw(
        self, feed: Feed, step: int, class_weights: np.ndarray[Any, np.dtype[np.float32]] | None
    ) -> list[Part]:
        """The pictures of this process in a step, normalized, in as many parts as the recipe accumulates."""
        device, model = self._learner.device, self._learner.model
        frames, labels = (whole[: self.most_pictures] for whole in feed.at(step))
        layout = torch.channels_last if self._settings.channels_last else torch.contiguous_format
        pixels = frames.to(device, non_blocking=True).float().contiguous(memory_format=layout)
        pixels = pixels.mul_(model.scale).add_(model.offset)  # ``normalize``, in the memory that is there
        everyone = feed.labels(step)
        mine = self._world.part(len(everyone))
        weigh = _weigh_by(class_weights)
        # No part of a single picture, of which BatchNorm has no statistics, where there are more.
        parts = 1 if self.most_pictures else min(self._settings.accumulate, max(1, len(labels) // 2))
        places = np.array_split(np.arange(mine.start, mine.stop), parts)
        there = labels.to(device, non_blocking=True)
        return [
            Part(x, y, len(own) / len(everyone), weigh(everyone[own]) / weigh(everyone))
            for x, y, own in zip(pixels.tensor_split(parts), there.tensor_split(parts), places, strict=True)
        ]


def _open_feeds(job: FinetuneJob, world: World, *, on_gpu: bool) -> tuple[Feed, Feed | None]:
    """The pictures of the target task, and of the source's."""
    settings = job.settings
    augment = BatchAugmentation(settings.augmentation, job.contract)
    cores = usable_threads() // world.local_size
    automatic = min(8, max(1, cores - 1)) if on_gpu else 0
    wanted = automatic if settings.workers is None else settings.workers
    sharers = world.local_size * (1 if job.source is None else 2)
    workers = fit_workers(wanted, job.batch_bytes(world), sharers, job.tell)
    common: dict[str, Any] = {"world": world, "workers": workers, "pin": on_gpu}
    balance = job.train.labels if settings.sampling == "balanced" else None
    batches = Batches(len(job.train), settings.batch_size, job.seed, (), balance)
    target = Feed(job.train, batches, augment, job.seed, **common)
    if job.source is None:
        return target, None
    batches = Batches(len(job.source.train), settings.batch_size, job.seed, (1,))
    return target, Feed(job.source.train, batches, augment, job.seed, stream=1, **common)


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
