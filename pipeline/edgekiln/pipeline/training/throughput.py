"""Images per second of fine-tuning against bare training loops. Run it as a module, with a recipe.

Loops take turns in blocks, in one process, on the same network, batch, precision and optimizer:

- ``edgekiln``: the trainer's own steps, with reading, augmentation, logging and the check of every loss;
- ``bare``: forward, loss, backward, step on one batch that lies ready, which is all that the arithmetic costs;
- ``default``: the same with the optimizer as torch makes it where nothing is asked of it, on a CPU not fused;
- ``augmented``: as ``bare``, after torchvision's augmentation of that batch, picture by picture.

Pictures are noise, since their content changes no speed. Judging an epoch is left out: a bare loop does not judge.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.benchmarks.environment import describe_machine
from edgekiln.export.to_onnx import normalize
from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import Recipe, load_recipe
from edgekiln.pipeline.training.augmentation import augment_picture
from edgekiln.pipeline.training.batches import step_seed
from edgekiln.pipeline.training.finetune import Trainer, training
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.optimization import set_rates
from edgekiln.pipeline.training.world import ALONE
from edgekiln.runtime.contract import Contract

__all__ = ["measure_rates"]

_CLASSES = ("a", "b", "c")


def _noise(count: int, size: int, seed: int) -> PreparedSplit:
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 256, (count, size, size, 3), np.uint8)
    labels = np.arange(count, dtype=np.int64) % len(_CLASSES)
    return PreparedSplit(frames, labels, tuple(map(str, range(count))), ("",) * count)


def _make_job(recipe: Recipe) -> FinetuneJob:
    size, batch = recipe.data.size, recipe.finetune.batch_size
    settings = recipe.finetune.model_copy(update={"probe": False, "epochs": 10_000})
    contract = Contract(height=size, width=size, classes=_CLASSES)
    return FinetuneJob(
        recipe.backbone, settings, contract, _noise(16 * batch, size, 0), _noise(6, size, 1), 0
    )


class _BareLoop:
    """What a person writes by hand."""

    def __init__(
        self, trainer: Trainer, *, optimizer: torch.optim.Optimizer | None = None, augmented: bool = False
    ) -> None:
        self._trainer, self._augmented = trainer, augmented
        self._optimizer = optimizer or trainer.learner.optimizer
        self._augment = augment_picture(trainer.job.settings.augmentation, trainer.job.contract)
        self._frames = torch.from_numpy(trainer.job.train.frames[: trainer.job.settings.batch_size])
        self._labels = torch.from_numpy(trainer.job.train.labels[: trainer.job.settings.batch_size])
        self._labels = self._labels.to(trainer.learner.device)
        self._ready = self._to_device(self._frames.permute(0, 3, 1, 2))
        torch.manual_seed(step_seed(0))

    def _to_device(self, frames: Tensor) -> Tensor:
        layout = torch.channels_last if self._trainer.job.settings.channels_last else torch.contiguous_format
        pixels = frames.to(self._trainer.learner.device).float().contiguous(memory_format=layout)
        return normalize(pixels, self._trainer.learner.model.scale, self._trainer.learner.model.offset)

    def step(self) -> None:
        trainer, pixels = self._trainer, self._ready
        if self._augmented:
            pictures = [self._augment(picture) for picture in self._frames.permute(0, 3, 1, 2)]
            pixels = self._to_device(torch.stack(pictures))
        with torch.autocast(trainer.learner.device.type, torch.bfloat16, enabled=trainer.learner.uses_bf16):
            logits, _ = trainer.learner.forward(pixels, None)
        smoothing = trainer.job.settings.label_smoothing
        loss = nn.functional.cross_entropy(logits.float(), self._labels, label_smoothing=smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch
        self._optimizer.step()


def _make_default(trainer: Trainer) -> torch.optim.Optimizer:
    """A second optimizer of the same weights, in the form that torch chooses by itself."""
    own = trainer.learner.optimizer
    trainer.learner.reset_optimizer()
    default, trainer.learner.optimizer = trainer.learner.optimizer, own
    for group in default.param_groups:
        group["fused"] = None
    set_rates(default, trainer.state.learning_rate)
    return default


def measure_rates(recipe: Recipe, *, rounds: int, steps: int) -> dict[str, Any]:
    """Images per second of each loop and ratios to the bare ones, as medians over rounds with their range.

    Args:
        recipe: gives backbone, size and training settings.
        rounds: how often each loop has its turn.
        steps: of a turn.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        training(_make_job(recipe), Path(folder), ALONE) as trainer,
    ):
        trainer.begin()
        trainer.learner.set_training_mode()
        loops: dict[str, Callable[[], None]] = {
            "edgekiln": trainer.step.take,
            "bare": _BareLoop(trainer).step,
            "default": _BareLoop(trainer, optimizer=_make_default(trainer)).step,
            "augmented": _BareLoop(trainer, augmented=True).step,
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(rounds + 1):
            for name in sorted(loops, key=list(loops).index, reverse=bool(number % 2)):
                taken = _time_steps(loops[name], steps, trainer.learner.device)
                if number:  # the first round warms up
                    seconds[name].append(taken)
        threads, device = torch.get_num_threads(), str(trainer.learner.device)
    images = steps * recipe.finetune.batch_size
    return {
        "backbone": recipe.backbone.model,
        "size": recipe.data.size,
        "batch": recipe.finetune.batch_size,
        "device": device,
        "threads": threads,
        "machine": describe_machine(),
        "rounds": rounds,
        "steps_per_turn": steps,
        "images_per_second": {name: round(images / statistics.median(s), 1) for name, s in seconds.items()},
        "ratio_to": {
            name: _summarize([b / own for b, own in zip(seconds[name], seconds["edgekiln"], strict=True)])
            for name in list(loops)[1:]
        },
    }


def _time_steps(step: Callable[[], None], steps: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _summarize(ratios: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(ratios, n=4)
    return {k: round(v, 3) for k, v in (("median", statistics.median(ratios)), ("q1", low), ("q3", high))}


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2), help="Turns of each loop.")
@click.option(
    "--steps", default=1, show_default=True, type=click.IntRange(1), help="Steps of a turn; 20 on a GPU."
)
@click.option("--set", "overrides", multiple=True, help="SECTION.KEY=VALUE of the recipe.")
def _main(recipe: Path, rounds: int, steps: int, overrides: tuple[str, ...]) -> None:
    result = measure_rates(load_recipe(recipe, overrides), rounds=rounds, steps=steps)
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    _main()
