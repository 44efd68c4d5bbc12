"""Distillation: a network learns the answers of a larger one that was fine-tuned on the same classes.

L = (1 - weight) * L_labels + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), with the factor T^2 that
keeps the two gradients in proportion whatever the temperature (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgekiln.export.to_onnx import PixelModel, normalize
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.weight_files import StoredWeights, read_weights
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract
from edgekiln.runtime.errors import RecipeError

__all__ = ["Teacher", "distillation_loss"]


class Teacher:
    """A checkpoint of an earlier run that answers, and learns nothing."""

    def __init__(self, path: Path, contract: Contract, device: torch.device) -> None:
        """Load it.

        Raises:
            RecipeError: no checkpoint of edgekiln, other classes, or pictures prepared otherwise than the student's.
        """
        stored = read_weights(path)
        _check(stored, contract)
        assert stored.contract is not None
        assert stored.backbone is not None
        shared = stored.contract.normalization == SHARED_NORMALIZATION
        settings = BackboneSettings(
            model=stored.backbone, weights=str(path), normalization="shared" if shared else "own"
        )
        backbone = build_backbone(settings, len(contract.classes), contract.height)
        model = PixelModel(backbone.network, backbone.normalization).eval()
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch types no memory_format here

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes) of pictures float32 (B, 3, H, W), 0 to 255."""
        logits: Tensor = self._model.network(normalize(pixels, self._model.scale, self._model.offset))
        return logits.float()


def _check(stored: StoredWeights, contract: Contract) -> None:
    theirs, path = stored.contract, stored.path
    if theirs is None or stored.backbone is None:
        raise RecipeError(
            f"{path} is no checkpoint of edgekiln, so nothing tells what its network is.",
            hint="teacher.checkpoint names the checkpoint.safetensors of an earlier run.",
            path=path,
        )
    if theirs.classes != contract.classes:
        missing = sorted(set(contract.classes) - set(theirs.classes))
        extra = sorted(set(theirs.classes) - set(contract.classes))
        differing = "; ".join(
            f"{text} {', '.join(names[:5])}"
            for text, names in (("it lacks", missing), ("it adds", extra))
            if names
        )
        raise RecipeError(
            f"The teacher in {path.name} knows other classes than the data: {differing or 'another order'}.",
            hint="Train the teacher on the same classes, in the same order, or name the checkpoint of such a run.",
            path=path,
        )
    for key in ("height", "width", "resize", "shorter_side", "interpolation", "background", "sensor_bits"):
        got, wanted = getattr(theirs, key), getattr(contract, key)
        if got != wanted:
            raise RecipeError(
                f"The teacher in {path.name} was trained with {key} {got!r}, the recipe prepares with {wanted!r}.",
                hint="Teacher and student see the same pixels: train the teacher with the same [data] section.",
                path=path,
            )


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch; logits (B, classes)."""
    divergence = nn.functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence
