"""Quantization-aware training: a fine-tuned network learns to answer in INT8, over a few epochs.

The network is fake-quantized (``export/qat``) and trained on as it was fine-tuned: the same batches,
augmentation and loss, at a tenth of the rate and in float32 throughout, since a rounding must fall as it will in the
engine. Ranges are calibrated before the first step and stay. The best epoch on val is kept; epoch 0 is the calibrated
network, so that training never makes it worse there.
As fine-tuning does, a step depends on (seed, step) alone, and all state is in one atomic file of plain tensors: a run
killed at any moment ends, on the CPU with the same threads, with the weights of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekiln.export.qat.fake_quantization import (
    PIXEL_RANGE,
    calibrate,
    fit_weight_ranges,
    insert_quantizers,
    load_quantized_state,
    quantizers_off,
    set_weight_ranges,
)
from edgekiln.export.qat.graph import prepare_network
from edgekiln.export.to_onnx import PixelModel, normalize
from edgekiln.pipeline.recipe import BackboneSettings, QatSettings
from edgekiln.pipeline.training.augmentation import augment_batch
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.batch_augmentation import BatchAugmentation
from edgekiln.pipeline.training.batches import Batches, Feed, step_seed
from edgekiln.pipeline.training.checkpoint import load_checkpoint, load_tensors, save_tensors
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.log_writer import LogWriter
from edgekiln.pipeline.training.loss import weigh_classes
from edgekiln.pipeline.training.optimization import learning_rate_factor
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.shared_memory import fit_workers
from edgekiln.pipeline.training.threads import torch_threads
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract
from edgekiln.runtime.errors import GateError, RecipeError, UntrustedError
from edgekiln.runtime.limits import usable_threads
from edgekiln.runtime.spec import Frames

__all__ = ["TRAINED_NAME", "QatJob", "load_trained", "train_quantized"]

TRAINED_NAME = "trained.safetensors"
_PROGRESS_NAME = "progress.safetensors"
DEFAULT_SHARE = 0.1
"""Of the fine-tuning's learning rate. Weights are to move by fractions of an INT8 step around where they are good;
Wu et al. 2020 (arXiv:2004.09602, section 5.2) take a hundredth of the rate of training from scratch, for a tenth of its
epochs, along a cosine, and fine-tuning's rate is a tenth of that rate or so already."""


@dataclass(frozen=True, slots=True)
class QatJob:
    """Everything that determines the trained weights and ranges.

    Attributes:
        finetune: the fine-tuning that it goes on from: its data, contract, seed, batches, augmentation and loss. A
            source task and a teacher are left out.
        checkpoint: what that fine-tuning wrote.
        settings: epochs and learning rate.
        calibration: real training pictures, uint8 (N, H, W, 3), for the ranges.
        method: how ranges of activations are taken from them.
    """

    finetune: FinetuneJob
    checkpoint: Path
    settings: QatSettings
    calibration: Frames
    method: Literal["max", "entropy"] = "max"

    @property
    def learning_rate(self) -> float:
        """The highest; a tenth of the fine-tuning's unless the settings say otherwise."""
        rate = self.finetune.settings.learning_rate
        assert rate != "find" or self.settings.learning_rate  # the recipe sees to it
        return self.settings.learning_rate or DEFAULT_SHARE * float(rate)


@dataclass(slots=True)
class _State:
    """What a resumed run needs beside tensors.

    Attributes:
        float_top1: on val, before anything is quantized; ``largest_top1``: with every weight's range its largest
            value, as post-training quantization has it; ``calibrated_top1``: of epoch 0.
        ranges: of weights at epoch 0, ``largest`` or ``fitted``, whichever answers better on val.
    """

    step: int = 0
    threads: int = 0
    best_step: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    float_top1: float = 0.0
    largest_top1: float = 0.0
    calibrated_top1: float = 0.0
    ranges: str = ""
    best: dict[str, Tensor] = field(default_factory=dict)

    def counters(self) -> dict[str, Any]:
        values = asdict(self)
        del values["best"]
        return values


def train_quantized(job: QatJob, folder: Path) -> dict[str, Any]:
    """Train and write ``trained.safetensors`` and ``log.jsonl`` into ``folder``; returns what came of it, as JSON.

    ``folder`` may hold the progress of an earlier, interrupted call; it is then continued.

    Raises:
        GateError: the loss became NaN or infinite; the step is named.
        PrecisionError: the network cannot be fake-quantized.
        MissingExtraError: nvidia-modelopt is not installed.
    """
    return _Trainer(job, folder).run()


class _Trainer:
    """One training run."""

    def __init__(self, job: QatJob, folder: Path) -> None:
        tuning = job.finetune
        self.job, self.tuning, self.folder = job, tuning.settings, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, _ = load_checkpoint(job.checkpoint, tuning.backbone)
        _quantize(self.model, tuning.contract, job.method)
        self.model.to(self.device)
        self.network = self.model.network
        self.optimizer = self._make_optimizer()
        balance = tuning.train.labels if self.tuning.sampling == "balanced" else None
        self.batches = Batches(len(tuning.train), self.tuning.batch_size, tuning.seed, (), balance)
        self.total_steps = self.batches.per_epoch * job.settings.epochs
        augment = BatchAugmentation(self.tuning.augmentation, tuning.contract)
        workers = fit_workers(self.tuning.workers or 0, tuning.batch_bytes(), 1, tuning.tell)
        self.feed = Feed(tuning.train, self.batches, augment, tuning.seed, workers=workers)
        self.mix = augment_batch(self.tuning.augmentation, len(tuning.contract.classes))
        weights = weigh_classes(tuning) if self.tuning.class_balance else None
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(self.device)
        self.state = _State(threads=self.tuning.threads or usable_threads())
        self.log = LogWriter(folder, self.state)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        parameters, rate = list(self.network.parameters()), self.job.learning_rate
        if self.tuning.optimizer == "sgd":
            momentum, decay = self.tuning.momentum, self.tuning.weight_decay
            return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=self.tuning.weight_decay)

    def run(self) -> dict[str, Any]:
        resumed = self._resume()
        with torch_threads(self.state.threads):
            if not resumed:
                self._start()
            saved_at = time.monotonic()
            while self.state.step < self.total_steps:
                self._train_step()
                note = f"INT8 training, best val top-1 {self.state.best_top1:.4f}"
                self.job.finetune.advance(self.state.step, self.total_steps, note)
                epoch_ended = self.state.step % self.batches.per_epoch == 0
                if epoch_ended:
                    self._judge_epoch()
                if epoch_ended or time.monotonic() - saved_at > self.tuning.checkpoint_seconds:
                    self._save_progress()
                    saved_at = time.monotonic()
        return self._finish()

    # -- before the first step

    def _start(self) -> None:
        self.log.begin()
        self.log.write("start", device=str(self.device), threads=self.state.threads, torch=torch.__version__)
        self.job.finetune.advance(0, self.total_steps, "calibrating")
        shared = self.job.finetune.contract.normalization == SHARED_NORMALIZATION
        calibrate(
            self.network, self._run_calibration, self.job.method, input_range=PIXEL_RANGE if shared else None
        )
        with quantizers_off(self.network):
            self.state.float_top1, _ = self._judge()
        largest = self._judge()
        before = {key: value.clone() for key, value in self.network.state_dict().items()}
        set_weight_ranges(self.network, fit_weight_ranges(self.network, self._run_calibration))
        fitted = self._judge()
        self.state.largest_top1, self.state.ranges = largest[0], "fitted"
        if (largest[0], -largest[1]) >= (fitted[0], -fitted[1]):
            self.state.ranges = "largest"
            load_quantized_state(self.network, before)
        self.state.calibrated_top1 = max(largest[0], fitted[0])
        self.log.write(
            "calibrated",
            float_top1=round(self.state.float_top1, 6),
            largest_top1=round(largest[0], 6),
            fitted_top1=round(fitted[0], 6),
            ranges=self.state.ranges,
        )
        self._judge_epoch()
        self._save_progress()

    def _run_calibration(self, _: nn.Module) -> None:
        evaluate_model(self.model, self.job.calibration, self.device)

    # -- steps and epochs

    def _train_step(self) -> None:
        step, tuning = self.state.step, self.tuning
        images, labels = self._draw(step)
        factor = learning_rate_factor(step, self.total_steps, tuning.warmup, "cosine")
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.learning_rate * factor
        self._set_training_mode()
        logits = self.network(images).float()
        loss = nn.functional.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=tuning.label_smoothing
        )
        if not torch.isfinite(loss):
            raise GateError(
                f"The loss of quantization-aware training became {loss.item()} at step {step} of {self.total_steps}.",
                hint="Lower qat.learning_rate of the variant.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch
        self.optimizer.step()
        self.state.step = step + 1
        self.log.write("step", loss=round(loss.item(), 6))

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Pictures of a step, augmented and normalized, float32 (B, 3, H, W); and labels, int64 (B,) or mixed."""
        pictures, labels = self.feed.at(step)
        torch.manual_seed(step_seed(self.job.finetune.seed, step))  # of dropout and mixed pairs
        pixels = pictures.to(self.device).float().contiguous()
        images, labels = normalize(pixels, self.model.scale, self.model.offset), labels.to(self.device)
        return (images, labels) if self.mix is None else self.mix(images, labels)

    def _set_training_mode(self) -> None:
        """BatchNorm that no convolution comes before is not folded, and stays as the engine will have it."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _judge(self) -> tuple[float, float]:
        """Top-1 and loss on val."""
        val = self.job.finetune.val
        logits, labels = evaluate_model(self.model, val.frames, self.device), torch.from_numpy(val.labels)
        top1 = float((logits.argmax(1) == labels).float().mean())
        return top1, float(nn.functional.cross_entropy(logits, labels))

    def _judge_epoch(self) -> None:
        """Keep the state of the best epoch on val: top-1 first, loss where that is equal."""
        state = self.state
        top1, loss = self._judge()
        if (top1, -loss) > (state.best_top1, -state.best_loss):
            state.best_top1, state.best_loss, state.best_step = top1, loss, state.step
            state.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        epoch = state.step // self.batches.per_epoch
        self.log.write("epoch", epoch=epoch, val_top1=round(top1, 6), val_loss=round(loss, 6))

    # -- persistence

    def _save_progress(self) -> None:
        tensors = {f"model.{k}": v.detach().cpu() for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.state.best.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value.detach().cpu() for slot, value in slots.items()}
        save_tensors(tensors, self.folder / _PROGRESS_NAME, {"state": json.dumps(self.state.counters())})

    def _resume(self) -> bool:
        path = self.folder / _PROGRESS_NAME
        if not path.exists():
            return False
        tensors, metadata = load_tensors(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        load_quantized_state(self.network, parts["model"])
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, slot = key.partition(".")
            slots.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.state = _State(**json.loads(metadata["state"]), best=parts["best"])
        self.log = LogWriter(self.folder, self.state)
        self.log.go_on()
        return True

    def _finish(self) -> dict[str, Any]:
        job, state = self.job, self.state
        best_epoch = state.best_step // self.batches.per_epoch
        self.log.write("done", best_epoch=best_epoch, best_val_top1=round(state.best_top1, 6))
        metadata = {
            "contract": job.finetune.contract.to_json(),
            "backbone": job.finetune.backbone.model,
            "method": job.method,
        }
        save_tensors(state.best, self.folder / TRAINED_NAME, metadata)
        (self.folder / _PROGRESS_NAME).unlink(missing_ok=True)
        return {
            "epochs": job.settings.epochs,
            "learning_rate": job.learning_rate,
            "best_epoch": best_epoch,
            "weight_ranges": state.ranges,
            "val_images": len(job.finetune.val),
            "val_top1": {
                "float": state.float_top1,
                "largest_ranges": state.largest_top1,
                "calibrated": state.calibrated_top1,
                "trained": state.best_top1,
            },
        }


def _quantize(model: PixelModel, contract: Contract, method: Literal["max", "entropy"]) -> None:
    """Put the model's network, fake-quantized and without ranges, in its own place."""
    prepared = prepare_network(model.network, contract.height)
    insert_quantizers(prepared, method)
    model.network = prepared.network


def load_trained(path: Path, settings: BackboneSettings) -> PixelModel:
    """The fake-quantized model that ``train_quantized`` wrote, in evaluation mode on the CPU.

    Raises:
        RecipeError: the file is of another backbone.
        UntrustedError: the file is damaged, or its tensors are not those of the network.
    """
    tensors, metadata = load_tensors(path)
    contract = Contract.from_json(metadata.get("contract", ""))
    if metadata.get("backbone") != settings.model:
        raise RecipeError(
            f"{path} holds {metadata.get('backbone')}, the recipe names {settings.model}.", path=path
        )
    backbone = build_backbone(settings, len(contract.classes), contract.height, load_weights=False)
    model = PixelModel(backbone.network, backbone.normalization)
    method: Literal["max", "entropy"] = "entropy" if metadata.get("method") == "entropy" else "max"
    _quantize(model, contract, method)
    try:
        load_quantized_state(model.network, tensors)
    except RuntimeError as error:
        raise UntrustedError(
            f"{path} holds another network than its backbone has: {error}", path=path
        ) from error
    return model.eval()
