"""A recipe's network with its first weights, taking the pixels that every model of edgekiln takes.

A backbone pretrained with another mean and std gets them folded into its first convolution, once, so that every
model of edgekiln takes (x - 127) / 128. This module knows nothing of data or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.constructors import create_network
from edgekiln.pipeline.training.heads import find_head
from edgekiln.pipeline.training.weight_files import StoredWeights, read_weights
from edgekiln.pipeline.training.weights import adapt_weights, fit_weights, rename_weights
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Normalization
from edgekiln.runtime.errors import RecipeError

__all__ = ["Backbone", "build_backbone", "fold_normalization"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network with its new head, and the normalization that its graph must apply to pixels.

    Attributes:
        told: how the names of a weight file were brought to the network's, in sentences.
    """

    network: nn.Module
    normalization: Normalization
    told: tuple[str, ...] = ()


def build_backbone(
    settings: BackboneSettings, num_classes: int, size: int, *, load_weights: bool = True
) -> Backbone:
    """Make the network of a recipe, with a fresh head of ``num_classes`` outputs.

    Args:
        settings: the recipe's backbone section.
        num_classes: outputs of the new head.
        size: height and width of the input, pixels.
        load_weights: ``False`` builds the same structure with random weights, to load a checkpoint into.

    Raises:
        RecipeError: unknown model, or weights that do not fit; the mismatched layers are named.
        MissingExtraError: the weights' package is absent.
    """
    weights = settings.weights if load_weights else "none"
    network, trained_with = create_network(settings, weights, num_classes, size)
    if load_weights and settings.from_file:
        trained_with, told = _load_file(network, settings, num_classes, size, trained_with)
        own = settings.normalization == "own"
        return Backbone(network, trained_with if own else SHARED_NORMALIZATION, told)
    if settings.normalization == "own":
        return Backbone(network, trained_with)
    if settings.weights != "none" and trained_with != SHARED_NORMALIZATION:
        # Structure first: a checkpoint of this backbone holds the bias that folding adds.
        fold_normalization(network, trained_with if load_weights else SHARED_NORMALIZATION, size)
    return Backbone(network, SHARED_NORMALIZATION)


def _load_file(
    network: nn.Module, settings: BackboneSettings, num_classes: int, size: int, trained_with: Normalization
) -> tuple[Normalization, tuple[str, ...]]:
    """Weights from a local file; the normalization that the network then expects, and how names were changed."""
    stored = read_weights(Path(settings.weights))
    if stored.backbone not in {None, settings.model}:
        raise RecipeError(
            f"{stored.path} holds {stored.backbone}, the recipe names {settings.model}.", path=stored.path
        )
    optional: frozenset[str] = frozenset()
    folds = settings.normalization == "shared" and trained_with != SHARED_NORMALIZATION
    if stored.contract is not None:
        if folds:
            # The structure that folding leaves, as in the earlier run: its first convolution has a bias.
            fold_normalization(network, SHARED_NORMALIZATION, size)
            optional = frozenset({f"{_first_convolution(network, size)[0]}.bias"})
        trained_with = _check_normalization(stored, settings, trained_with)
    head = find_head(network, num_classes)[0]
    replaced = settings.head == "replace"
    stored = rename_weights(network, stored, head, replace_head=replaced, optional=optional)
    stored = adapt_weights(network, stored, size, replace_head=replaced)
    fit_weights(network, stored, head, replace_head=replaced, optional=optional)
    if folds and (stored.contract is None or trained_with != SHARED_NORMALIZATION):
        fold_normalization(network, trained_with, size)
    return trained_with, stored.told


def _check_normalization(
    stored: StoredWeights, settings: BackboneSettings, trained_with: Normalization
) -> Normalization:
    """What the checkpoint's contract says; only with ``normalization = "own"`` must it be the library's."""
    assert stored.contract is not None
    if settings.normalization == "own" and stored.contract.normalization != trained_with:
        raise RecipeError(
            f"{stored.path} was trained with another normalization than {settings.model} has by itself.",
            hint="Leave backbone.normalization out.",
            path=stored.path,
        )
    return stored.contract.normalization


def fold_normalization(network: nn.Module, trained_with: Normalization, size: int) -> None:
    """Make a network trained on (x - M) / S take y = (x - 127) / 128 instead, in place.

    With x = 128 y + 127, the old input is u = a y + b, a = 128 / S, b = (127 - M) / S, per input channel. A
    convolution W of u is the convolution (W a) of y plus the constant sum(W b), which becomes its bias. At
    zero-padded borders the constant is not exact, since the padding was u = 0 and now is y = 0: interior outputs
    agree to rounding, borders differ slightly until fine-tuning absorbs it.

    Raises:
        RecipeError: the first layer is no convolution of the picture itself.
    """
    convolution = _first_convolution(network, size)[1]
    mean, std = torch.tensor(trained_with.mean), torch.tensor(trained_with.std)
    scale = (128.0 / std).view(1, 3, 1, 1)
    shift = ((127.0 - mean) / std).view(1, 3, 1, 1)
    with torch.no_grad():
        weight = convolution.weight
        constant = (weight * shift.to(weight)).sum(dim=(1, 2, 3))
        if convolution.bias is None:
            convolution.bias = nn.Parameter(torch.zeros_like(constant))
        convolution.bias += constant
        weight *= scale.to(weight)


def _first_convolution(network: nn.Module, size: int) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that sees the picture untouched, found by running one picture through."""
    picture = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found: list[nn.Conv2d] = []

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if found or not isinstance(module, nn.Conv2d) or module.groups != 1:
            return
        if arguments[0].shape == picture.shape and torch.equal(arguments[0], picture):
            found.append(module)

    hooks = [m.register_forward_pre_hook(look) for m in network.modules()]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(picture)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if not found:
        raise RecipeError(
            "The network's first layer is no plain convolution of the picture, so mean and std cannot be folded.",
            hint="backbone.normalization = 'own' keeps them in the graph.",
        )
    return next(name for name, module in network.named_modules() if module is found[0]), found[0]
