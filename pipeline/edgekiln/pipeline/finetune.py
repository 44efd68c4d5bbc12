"""Fine-tuning: a linear probe starts the head, then AdamW with a warmed-up cosine, best epoch on val.

A source task may be learned beside the target's (``source_task``), and weights may be pulled towards the pretrained
ones (L2-SP). Order, augmentation and dropout of a step depend on (seed, step) alone, and all state is in one atomic
file, so that a run killed at any moment ends, on the CPU with the same threads, with the weights of an uninterrupted
one.
This module knows no export and no engine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.export.onnx import PixelModel, normalize
from edgekiln.pipeline.augmentation import augment_batch, augment_picture
from edgekiln.pipeline.backbones import Backbone, build_backbone, find_head
from edgekiln.pipeline.checkpoint import CHECKPOINT_NAME, load_tensors, save_checkpoint, save_tensors
from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import BackboneSettings, FinetuneSettings, TeacherSettings
from edgekiln.pipeline.source_task import Batches, SourceData, SourceTask
from edgekiln.pipeline.teacher import Teacher, distillation_loss
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError, RecipeError

__all__ = ["LOG_NAME", "FinetuneJob", "evaluate_model", "finetune", "fit_probe", "list_stages"]

LOG_NAME = "log.jsonl"
_PROGRESS_NAME = "progress.safetensors"
_EVALUATION_BATCH = 64
_PROBE_LIMIT = 10_000  # images; beyond it the probe's matrix costs more than it teaches
_PROBE_PENALTIES = (1e-4, 1e-3, 1e-2)

Advance = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """Everything that determines the weights.

    Attributes:
        advance: told of progress as ``advance(done, total, note)``.
        source: the source task of the combined loss, if any.
        beta: weight of the target's loss.
        teacher: a larger network to learn from, if any.
    """

    backbone: BackboneSettings
    settings: FinetuneSettings
    contract: Contract
    train: PreparedSplit
    val: PreparedSplit
    seed: int
    advance: Advance = lambda done, total, note: None
    source: SourceData | None = None
    beta: float = 1.0
    teacher: TeacherSettings | None = None


@dataclass(slots=True)
class _State:
    """What a resumed run needs beside the data: counters, and copies of weights by name."""

    step: int = 0
    threads: int = 0
    best_step: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    best_source: dict[str, Tensor] = field(default_factory=dict)


def finetune(job: FinetuneJob, folder: Path) -> None:
    """Train and write ``checkpoint.safetensors`` and ``log.jsonl`` into ``folder``.

    ``folder`` may hold the progress of an earlier, interrupted call; it is then continued.

    Raises:
        GateError: the loss became NaN or infinite; the step is named.
    """
    _Trainer(job, folder).run()


class _Trainer:
    """One training run. Split in methods only so that each fits a screen."""

    def __init__(self, job: FinetuneJob, folder: Path) -> None:
        self.job, self.settings, self.folder = job, job.settings, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(job.seed)  # before the head's random weights
        backbone = build_backbone(job.backbone, len(job.contract.classes), job.contract.height)
        self.model = _place(backbone, self.device)
        self.network = self.model.network
        _freeze(self.network, job.backbone, len(job.contract.classes))
        self.head = find_head(self.network, len(job.contract.classes))[1]
        self.pretrained = _remember(self.network, self.head) if job.settings.l2_sp else {}
        self.source: SourceTask | None = None
        if job.source is not None:
            batches = Batches(len(job.source.train), job.settings.batch_size, job.seed, (1,))
            self.source = SourceTask(job.source, self.head.in_features, batches, self.device)
        self.teacher = Teacher(job.teacher.checkpoint, job.contract, self.device) if job.teacher else None
        self.optimizer = _make_optimizer(self.network, self.head, self.source, job.settings)
        self.batches = Batches(len(job.train), job.settings.batch_size, job.seed)
        self.steps_per_epoch = self.batches.per_epoch
        self.total_steps = self.steps_per_epoch * job.settings.epochs
        self.augment = augment_picture(job.settings.augmentation, job.contract)
        self.mix = augment_batch(job.settings.augmentation, len(job.contract.classes))
        self.class_weights = _weigh_classes(job).to(self.device) if job.settings.class_balance else None
        self.state = _State(threads=job.settings.threads or usable_cores())

    def run(self) -> None:
        resumed = self._resume()
        with _torch_threads(self.state.threads):
            if not resumed:
                self._start()
            saved_at = time.monotonic()
            started, first = time.monotonic(), self.state.step
            while self.state.step < self.total_steps and not self._has_stalled():
                self._train_step()
                self._report_speed(started, first)
                epoch_ended = self.state.step % self.steps_per_epoch == 0
                if epoch_ended:
                    self._judge_epoch()
                if epoch_ended or time.monotonic() - saved_at > self.settings.checkpoint_seconds:
                    self._save_progress()
                    saved_at = time.monotonic()
            if self.state.step < self.total_steps:
                self._log("stopped", reason=f"no better epoch in {self.settings.patience}")
            self._judge_source_after()
        self._write_checkpoint()

    def _start(self) -> None:
        (self.folder / LOG_NAME).write_text("")
        self._log("start", device=str(self.device), threads=self.state.threads, torch=torch.__version__)
        if self.settings.probe and not self.job.backbone.keeps_head:
            self.job.advance(0, max(1, self.total_steps), "linear probe")
            penalty = fit_probe(self.model, self.job, self.device)
            self._log("probe", l2=penalty)
        if self.source is not None:
            self._start_source(self.source)
        self._judge_epoch()
        self._save_progress()

    def _start_source(self, source: SourceTask) -> None:
        """A fresh source head from a linear probe, and what the network knows of the source before it learns."""
        data = source.data
        if data.head is None:
            self.job.advance(0, max(1, self.total_steps), "linear probe of the source task")
            weight, bias, penalty = _fit_head(
                self.model, self.head, (data.train, data.val), len(data.classes), self.job.seed, self.device
            )
            source.load({"weight": weight.float(), "bias": bias.float()})
            self._log("source_probe", l2=penalty)
        self._log("source", when="before", val_top1=round(source.top1(self._extract), 6))

    def _judge_source_after(self) -> None:
        """What the kept weights still know of the source: the difference to before is what was forgotten."""
        if self.source is None or not self.total_steps:
            return
        self.network.load_state_dict(self.state.best, strict=True)
        self.source.load(self.state.best_source)
        self._log("source", when="after", val_top1=round(self.source.top1(self._extract), 6))

    def _extract(self, split: PreparedSplit) -> Tensor:
        return _features(self.model, self.head, split.frames, self.device)

    def _train_step(self) -> None:
        step = self.state.step
        torch.manual_seed(_step_seed(self.job.seed, step))  # augmentation and dropout of this step
        images, labels = self._batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(
                step, self.total_steps, self.settings.warmup, self.settings.schedule
            )
        self._set_training_mode()
        loss, parts = self._loss(step, images, labels)
        if not torch.isfinite(loss):
            raise GateError(
                f"The loss became {loss.item()} at step {step} of {self.total_steps}.",
                hint="Lower finetune.learning_rate.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch
        self._pull_to_pretrained()
        self.optimizer.step()
        self.state.step = step + 1
        self._log("step", loss=round(loss.item(), 6), **parts)

    def _loss(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """J = alpha * J_source + beta * J_target, and the two of them for the log where there is a source task."""
        smoothing = self.settings.label_smoothing
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network(images)
        target = nn.functional.cross_entropy(
            logits.float(), labels, weight=self.class_weights, label_smoothing=smoothing
        )
        parts: dict[str, float] = {}
        if self.teacher is not None and self.job.teacher is not None:
            weight, pixels = self.job.teacher.weight, (images - self.model.offset) / self.model.scale
            taught = distillation_loss(
                logits.float(), self.teacher.answer(pixels), self.job.teacher.temperature
            )
            parts["teacher_loss"] = round(taught.item(), 6)
            target = (1 - weight) * target + weight * taught
        if self.source is None:
            return self.job.beta * target, parts
        images, labels = self._draw(self.source.data.train, self.source.batches.indices(step))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            source = self.source.loss(_run_to_head(self.network, self.head, images), labels, smoothing)
        total = self.source.data.alpha * source + self.job.beta * target
        parts |= {"target_loss": round(target.item(), 6), "source_loss": round(source.item(), 6)}
        return total, parts

    def _pull_to_pretrained(self) -> None:
        """Add the gradient of L2-SP, (l2_sp / 2) * |w - w0|^2 over all weights but the heads' (Li et al. 2018,
        arXiv:1802.01483, equation 3)."""
        for parameter, start in self.pretrained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.settings.l2_sp)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The step's pictures of the target task."""
        return self._draw(self.job.train, self.batches.indices(step))

    def _draw(
        self, split: PreparedSplit, chosen: np.ndarray[Any, np.dtype[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        """Pictures augmented and normalized, float32 (B, 3, H, W) channels-last; and labels int64 (B,)."""
        frames, labels = torch.from_numpy(split.frames[chosen]), torch.from_numpy(split.labels[chosen])
        pictures = torch.stack([self.augment(picture) for picture in frames.permute(0, 3, 1, 2)])
        pixels = pictures.to(self.device).float().contiguous(memory_format=torch.channels_last)
        return normalize(pixels, self.model.scale, self.model.offset), labels.to(self.device)

    def _set_training_mode(self) -> None:
        self.network.train()
        everywhere = self.job.backbone.freeze_batchnorm or self.job.backbone.freeze == "backbone"
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (everywhere or _is_frozen(module)):
                module.eval()

    def _judge_epoch(self) -> None:
        """Keep the weights of the best epoch on val: top-1 first, loss where that is equal."""
        logits = evaluate_model(self.model, self.job.val.frames, self.device)
        labels = torch.from_numpy(self.job.val.labels)
        top1 = float((logits.argmax(1) == labels).float().mean())
        loss = float(nn.functional.cross_entropy(logits, labels))
        if (top1, -loss) > (self.state.best_top1, -self.state.best_loss):
            self.state.best_top1, self.state.best_loss, self.state.best_step = top1, loss, self.state.step
            self.state.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
            self.state.best_source = self.source.copy() if self.source else {}
        epoch = self.state.step // max(1, self.steps_per_epoch)
        self._log("epoch", epoch=epoch, val_top1=round(top1, 6), val_loss=round(loss, 6))

    def _has_stalled(self) -> bool:
        """Whether ``patience`` epochs went by without a better one; the state alone tells, so a resumed run agrees."""
        epochs = (self.state.step - self.state.best_step) // self.steps_per_epoch
        return 0 < self.settings.patience <= epochs

    def _report_speed(self, started: float, first: int) -> None:
        rate = (self.state.step - first) * self.settings.batch_size / (time.monotonic() - started)
        note = f"{rate:.0f} img/s, best val top-1 {max(0.0, self.state.best_top1):.4f}"
        self.job.advance(self.state.step, self.total_steps, note)

    def _log(self, event: str, **values: object) -> None:
        line = json.dumps({"event": event, "step": self.state.step, **values})
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    # -- persistence

    def _save_progress(self) -> None:
        tensors = {f"model.{k}": v.detach().cpu() for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.state.best.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value.detach().cpu() for slot, value in slots.items()}
        if self.source is not None:
            tensors |= {f"source.{k}": v for k, v in self.source.copy().items()}
            tensors |= {f"best_source.{k}": v for k, v in self.state.best_source.items()}
        counters = {
            name: repr(getattr(self.state, name))
            for name in ("step", "threads", "best_step", "best_top1", "best_loss")
        }
        save_tensors(tensors, self.folder / _PROGRESS_NAME, counters)

    def _resume(self) -> bool:
        path = self.folder / _PROGRESS_NAME
        if not path.exists():
            return False
        tensors, counters = load_tensors(path)
        kinds = ("model", "best", "optimizer", "source", "best_source")
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        self.network.load_state_dict(parts["model"], strict=True)
        if self.source is not None:
            self.source.load(parts["source"])
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, slot = key.partition(".")
            slots.setdefault(int(index), {})[slot] = value
        state = {"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(state)
        self.state = _State(
            step=int(counters["step"]),
            threads=int(counters["threads"]),
            best_step=int(counters["best_step"]),
            best_top1=float(counters["best_top1"]),
            best_loss=float(counters["best_loss"]),
            best=parts["best"],
            best_source=parts["best_source"],
        )
        self._forget_lines_after(self.state.step)
        return True

    def _forget_lines_after(self, step: int) -> None:
        """Steps after the last save are trained again; their lines would stand twice."""
        lines = (self.folder / LOG_NAME).read_text("utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        (self.folder / LOG_NAME).write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def _write_checkpoint(self) -> None:
        self._log("done", best_step=self.state.best_step, best_val_top1=round(self.state.best_top1, 6))
        path = self.folder / CHECKPOINT_NAME
        save_checkpoint(self.state.best, self.job.contract, self.job.backbone.model, path)
        (self.folder / _PROGRESS_NAME).unlink(missing_ok=True)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _place(backbone: Backbone, device: torch.device) -> PixelModel:
    model = PixelModel(backbone.network, backbone.normalization)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return] # torch types no memory_format here


def _freeze(network: nn.Module, settings: BackboneSettings, num_classes: int) -> None:
    """Switch off the gradients of what ``freeze`` names: nothing, all but the head, or all before a stage."""
    if settings.freeze == "none":
        return
    head = find_head(network, num_classes)[1]
    frozen: nn.Module | list[nn.Module] = network
    if settings.freeze != "backbone":
        frozen = _before_stage(network, settings.freeze.removeprefix("until:"))
    for module in [frozen] if isinstance(frozen, nn.Module) else frozen:
        module.requires_grad_(False)
    head.requires_grad_(True)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has weights of its own and none of them is trained."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def list_stages(network: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network in their order, by name: its children, and in the place of a list of blocks its blocks."""
    stages: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child) > 1:
            stages |= {f"{name}.{part}": module for part, module in child.named_children()}
        else:
            stages[name] = child
    return {name: module for name, module in stages.items() if any(True for _ in module.parameters())}


def _before_stage(network: nn.Module, wanted: str) -> list[nn.Module]:
    """Modules of all stages before ``wanted``, which may name a list of blocks as a whole."""
    stages = list_stages(network)
    names = list(stages)
    matching = [i for i, name in enumerate(names) if name == wanted or name.startswith(f"{wanted}.")]
    if not matching:
        raise RecipeError(
            f"The network has no stage {wanted!r} to freeze up to.", hint=f"It has: {', '.join(names)}."
        )
    return [stages[name] for name in names[: matching[0]]]


def _weigh_classes(job: FinetuneJob) -> Tensor:
    """float32 (classes,): N / (C n_c), so that every class counts alike in the loss, with a mean of 1 per picture."""
    counts = np.bincount(job.train.labels, minlength=len(job.contract.classes))
    return torch.from_numpy(len(job.train) / (len(counts) * counts)).float()


def _remember(network: nn.Module, head: nn.Linear) -> dict[nn.Parameter, Tensor]:
    """Copies of the pretrained weights by parameter, the head's left out: those have no pretrained value."""
    own_head = set(head.parameters())
    return {p: p.detach().clone() for p in network.parameters() if p.requires_grad and p not in own_head}


def _make_optimizer(
    network: nn.Module, head: nn.Linear, source: SourceTask | None, settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """AdamW or SGD over all that is trained. With L2-SP weight decay is for the heads alone: the others have a pull."""
    own_head = set(head.parameters())
    trained = [p for p in network.parameters() if p.requires_grad]
    heads = [] if source is None else list(source.head.parameters())
    groups: list[dict[str, Any]] = [{"params": [*trained, *heads]}]
    if settings.l2_sp:
        body = [p for p in trained if p not in own_head]
        groups = [
            {"params": body, "weight_decay": 0.0},
            {"params": [*(p for p in trained if p in own_head), *heads]},
        ]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)


def learning_rate_factor(step: int, total: int, warmup: float, schedule: str = "cosine") -> float:
    """Linear warm-up over the share ``warmup`` of all steps, then 1, or half a cosine down to 0 (arXiv:1608.03983)."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


@torch.inference_mode()
def evaluate_model(
    model: PixelModel, frames: np.ndarray[Any, np.dtype[np.uint8]], device: torch.device | None = None
) -> Tensor:
    """Logits float32 (N, C) of uint8 frames (N, H, W, 3), in evaluation mode, on the CPU at the end."""
    model.eval()
    parts = []
    for start in range(0, len(frames), _EVALUATION_BATCH):
        batch = torch.from_numpy(np.array(frames[start : start + _EVALUATION_BATCH]))  # mmap is read-only
        parts.append(model(batch.to(device or "cpu")).float().cpu())
    return torch.cat(parts)


def fit_probe(model: PixelModel, job: FinetuneJob, device: torch.device) -> float:
    """Fit the head alone by L2-penalized logistic regression on frozen features; returns the penalty chosen."""
    classes = len(job.contract.classes)
    _, head = find_head(model.network, classes)
    weight, bias, penalty = _fit_head(model, head, (job.train, job.val), classes, job.seed, device)
    with torch.no_grad():
        head.weight.copy_(weight.to(head.weight))
        head.bias.copy_(bias.to(head.bias))
    return penalty


def _fit_head(
    model: PixelModel,
    head: nn.Linear,
    splits: tuple[PreparedSplit, PreparedSplit],
    classes: int,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, float]:
    """Weight (classes, features), bias (classes,) and penalty of a linear probe on what ``head`` sees.

    Features are divided by one common factor, their root mean square, so that the penalty has the same meaning
    for every backbone; a factor per feature would blow up the weights of nearly constant ones. The penalty is
    chosen on val.
    """
    train, val = splits
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:_PROBE_LIMIT])
    features = _features(model, head, train.frames[chosen], device)
    labels, val_labels = torch.from_numpy(train.labels[chosen]), torch.from_numpy(val.labels)
    val_features = _features(model, head, val.frames, device)
    scale = features.square().mean().sqrt().clamp_min(1e-12)
    best = (math.inf, 0.0, torch.empty(0), torch.empty(0))
    for penalty in _PROBE_PENALTIES:
        weight, bias = _logistic_regression(features / scale, labels, classes, penalty)
        logits = val_features / scale @ weight.T + bias
        loss = float(nn.functional.cross_entropy(logits, val_labels))
        if loss < best[0]:
            best = (loss, penalty, weight / scale, bias)
    return best[2], best[3], best[1]


def _run_to_head(network: nn.Module, head: nn.Linear, images: Tensor) -> Tensor:
    """What the head sees of normalized images (B, 3, H, W), with its graph: (B, features)."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return seen[0]


def _features(
    model: PixelModel, head: nn.Linear, frames: np.ndarray[Any, np.dtype[np.uint8]], device: torch.device
) -> Tensor:
    """What the head sees, float64 (N, features)."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].double().cpu()))
    try:
        evaluate_model(model, frames, device)
    finally:
        hook.remove()
    return torch.cat(seen)


def _logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    weight = torch.zeros((num_classes, features.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = nn.functional.cross_entropy(features @ weight.T + bias, labels)
        value = value + 0.5 * penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call] # torch
        return value

    solver.step(loss)  # type: ignore[no-untyped-call] # torch
    return weight.detach(), bias.detach()
