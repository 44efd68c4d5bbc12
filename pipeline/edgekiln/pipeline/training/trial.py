"""Whether a recipe's network can be built, answers pictures of the recipe's size, and answers as training expects.

Asked before anything is trained, and of libraries' networks before pictures are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekiln.export.to_onnx import quiet_exporter
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.heads import find_head
from edgekiln.runtime.errors import EdgekilnError, RecipeError

__all__ = ["try_backbone"]

_CLASSES = 7  # of libraries' networks, which have any number: one that no layer has by chance
_USUAL_SIZES = (224, 256, 299, 384, 448, 512)
_TOLERANCE = 1e-3  # of the largest answer: libraries choose other algorithms for other batches


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a network gave for two pictures in training and in evaluation, and for the first one alone.

    ``head`` is what its last linear layer gave for the two in evaluation; ``None`` where it was not called once.
    """

    training: Any
    evaluation: Any
    alone: Any
    head: Tensor | None


def try_backbone(settings: BackboneSettings, size: int, classes: int = _CLASSES) -> None:
    """Build the recipe's network without its weights, and let it answer random pictures of ``size`` pixels.

    Args:
        settings: the recipe's backbone section.
        size: height and width of the input, pixels.
        classes: outputs of its head; a callable of one's own may take no other number than the data's.

    Raises:
        RecipeError: the network takes no such pictures (with a size that it takes), its answers are no logits of its
            last linear layer, one for each picture whatever comes with it, or its own code cannot be exported.
        MissingExtraError: its library is absent.
    """
    try:
        network = _build(settings, size, classes)
        answers = _ask(network, size, classes)
    except EdgekilnError:
        raise
    except Exception as error:  # a network's own code, of any library or of the user: it raises what it likes
        raise _explain(settings, size, classes, error) from error
    _check_shapes(settings.model, answers, classes)
    _check_values(settings.model, answers, find_head(network, classes)[0])
    if ":" in settings.model:  # what the libraries' networks do is known
        _check_export(settings.model, network, size)


def _build(settings: BackboneSettings, size: int, classes: int) -> nn.Module:
    return build_backbone(settings, classes, size, load_weights=False).network


def _pictures(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def _ask(network: nn.Module, size: int, classes: int) -> _Answers:
    pictures, seen = _pictures(size), []
    training = network.train()(pictures)
    hook = find_head(network, classes)[1].register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        evaluation = network.eval()(pictures)
    finally:
        hook.remove()
    return _Answers(training, evaluation, network(pictures[:1]), seen[0] if len(seen) == 1 else None)


def _explain(settings: BackboneSettings, size: int, classes: int, error: Exception) -> RecipeError:
    """Whether it is the size that does not fit, which another size shows, or the network itself."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    for other in _sizes_to_try(size):
        try:
            _ask(_build(settings, other, classes), other, classes)
        except Exception:  # does not fit either; the next one may
            continue
        return RecipeError(
            f"data.size = {size}: {settings.model} takes no pictures of {size} x {size} pixels: {reason}.",
            hint=f"data.size = {other} works.",
        )
    return RecipeError(
        f"backbone.model: {settings.model} cannot answer pictures of {size} x {size} pixels: {reason}.",
        hint="It takes float32 (N, 3, H, W), any N, and returns logits (N, classes). Another data.size does not help.",
    )


def _sizes_to_try(size: int) -> list[int]:
    """The next larger multiples of 32, then usual sizes: what networks are made for."""
    larger = [size - size % 32 + 32 * step for step in (1, 2, 3)]
    return list(dict.fromkeys([*larger, *(usual for usual in _USUAL_SIZES if usual != size)]))


def _check_shapes(model: str, answers: _Answers, classes: int) -> None:
    for when, pictures, got in (
        ("in training", 2, answers.training),
        ("in evaluation", 2, answers.evaluation),
        ("in evaluation", 1, answers.alone),
    ):
        if isinstance(got, Tensor) and got.shape == (pictures, classes):
            continue
        shape = f"a tensor {tuple(got.shape)}" if isinstance(got, Tensor) else f"a {type(got).__name__}"
        raise RecipeError(
            f"backbone.model: {model} returns {shape} {when} for {pictures} picture{'s' * (pictures > 1)} and "
            f"{classes} classes, wanted a tensor ({pictures}, {classes}).",
            hint="Return the logits alone, float (N, classes): a module:callable may wrap the network and pick them.",
        )


def _check_values(model: str, answers: _Answers, head: str) -> None:
    if not _agree(answers.alone, answers.evaluation[:1]):
        raise RecipeError(
            f"backbone.model: {model} answers a picture otherwise alone than together with another one.",
            hint="In evaluation each answer may depend on its own picture only: look for sums and reshapes over the "
            "first dimension.",
        )
    if answers.head is None or not _agree(answers.head.flatten(1), answers.evaluation):
        raise RecipeError(
            f"backbone.model: what {model} returns is not what its last linear layer {head!r} gives, so that layer "
            "cannot be trained as its head.",
            hint="Return that layer's output as it is: no softmax, scale, or average of several heads behind it.",
        )


def _agree(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool(
        (first - second).abs().max() <= _TOLERANCE * second.abs().max()
    )


def _check_export(model: str, network: nn.Module, size: int) -> None:
    """Whether the user's own code can be traced with a batch of any size, as the export will."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet_exporter():
            torch.export.export(network.eval(), (_pictures(size),), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export has errors of many modules
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise RecipeError(
            f"backbone.model: {model} cannot be exported for batches of any size: {reason}.",
            hint="Its code may neither branch on the pictures' values nor fix the number of pictures.",
        ) from error
