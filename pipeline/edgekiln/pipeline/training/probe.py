"""What a network makes of prepared pictures: logits, what its head sees, and a linear probe on that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.data import PreparedSplit
from edgekiln.runtime.errors import ResourceError

__all__ = ["evaluate_model", "extract_features", "fit_head", "set_head"]

_EVALUATION_BATCH = 64
_PROBE_LIMIT = 10_000  # images; beyond it the probe's matrix costs more than it teaches
_PROBE_PENALTIES = (1e-4, 1e-3, 1e-2)

Frames = np.ndarray[Any, np.dtype[np.uint8]]


@torch.inference_mode()
def evaluate_model(model: PixelModel, frames: Frames, device: torch.device | None = None) -> Tensor:
    """Logits float32 (N, C) of uint8 frames (N, H, W, 3), in evaluation mode, on the CPU at the end.

    A GPU whose memory does not hold a batch is given half of it, down to a single picture.

    Raises:
        ResourceError: not even one picture fits.
    """
    model.eval()
    parts: list[Tensor] = []
    size, start = _EVALUATION_BATCH, 0
    while start < len(frames):
        batch = torch.from_numpy(np.array(frames[start : start + size]))  # mmap is read-only
        try:
            parts.append(model(batch.to(device or "cpu")).float().cpu())
        except torch.OutOfMemoryError as error:
            size = _halve(size, error)
            continue
        start += size
    return torch.cat(parts)


def _halve(size: int, error: torch.OutOfMemoryError) -> int:
    if size == 1:
        raise ResourceError(
            "The GPU's memory does not hold one picture of this size in this network.",
            hint="End what else uses the GPU, or lower data.size.",
        ) from error
    return size // 2


def extract_features(model: PixelModel, head: nn.Linear, frames: Frames, device: torch.device) -> Tensor:
    """What ``head`` sees of uint8 frames (N, H, W, 3), float64 (N, features)."""
    seen: list[Tensor] = []
    # After the head, not before: a batch that memory runs out on comes again, in parts.
    hook = head.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].double().cpu()))
    try:
        evaluate_model(model, frames, device)
    finally:
        hook.remove()
    return torch.cat(seen)


def set_head(head: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Put weight (classes, features) and bias (classes,) into a head, in its own type and place."""
    with torch.no_grad():
        head.weight.copy_(weight.to(head.weight))
        head.bias.copy_(bias.to(head.bias))


def fit_head(
    model: PixelModel,
    head: nn.Linear,
    splits: tuple[PreparedSplit, PreparedSplit],
    classes: int,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, float]:
    """Weight (classes, features), bias (classes,) and penalty of a linear probe on what ``head`` sees.

    An L2-penalized logistic regression on frozen features; ``splits`` are train and val. Features are divided by one
    common factor, their root mean square, so that the penalty has the same meaning for every backbone; a factor per
    feature would blow up the weights of nearly constant ones. The penalty is chosen on val.
    """
    train, val = splits
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:_PROBE_LIMIT])
    features = extract_features(model, head, train.frames[chosen], device)
    labels, val_labels = torch.from_numpy(train.labels[chosen]), torch.from_numpy(val.labels)
    val_features = extract_features(model, head, val.frames, device)
    scale = features.square().mean().sqrt().clamp_min(1e-12)
    best = (math.inf, 0.0, torch.empty(0), torch.empty(0))
    for penalty in _PROBE_PENALTIES:
        weight, bias = _logistic_regression(features / scale, labels, classes, penalty)
        logits = val_features / scale @ weight.T + bias
        loss = float(nn.functional.cross_entropy(logits, val_labels))
        if loss < best[0]:
            best = (loss, penalty, weight / scale, bias)
    return best[2], best[3], best[1]


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
