"""The last layer of a network: finding it, and making it the one linear layer that the rest of training takes it for.

Libraries end some networks otherwise: in a convolution, in two heads whose answers are averaged, with auxiliary heads
beside. What is made of them here has the same features and computes the same kind of answer; the head is a fresh one in
any case.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn

from edgekiln.runtime.errors import RecipeError

__all__ = [
    "AUXILIARY_HEADS",
    "drop_auxiliary_heads",
    "find_head",
    "make_head_linear",
    "merge_distilled_heads",
    "replace_head",
]

AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")
"""torchvision's Inception v3, and its GoogLeNet's two; used in training alone."""


def find_head(network: nn.Module, num_classes: int) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer, which must have ``num_classes`` outputs."""
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or linears[-1][1].out_features != num_classes:
        raise RecipeError(
            f"backbone.model: the network's last layer is no Linear with {num_classes} outputs, so its head cannot be "
            "found.",
            hint="Take a model that ends in a linear layer, or write a module:callable that gives it one.",
        )
    return linears[-1]


def replace_head(network: nn.Module, old_classes: int, num_classes: int) -> None:
    """A fresh linear head in the place of one of ``old_classes`` outputs, in place."""
    make_head_linear(network, old_classes)
    path, head = find_head(network, old_classes)
    _put(network, path, nn.Linear(head.in_features, num_classes))


def make_head_linear(network: nn.Module, num_classes: int) -> None:
    """Where the last layer is a 1 x 1 convolution to the classes, pool before it and make it linear, in place.

    In a sequence (torchvision's SqueezeNet: convolution, ReLU, average) what follows is left out: a ReLU on logits
    would cut those below zero, and the average of a 1 x 1 convolution is the linear layer of the average.
    """
    last = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1:]
    if not last or not isinstance(last[0][1], nn.Conv2d):
        return
    path, convolution = last[0][0], last[0][1]
    if convolution.kernel_size != (1, 1) or convolution.out_channels != num_classes:
        return
    linear = (nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(convolution.in_channels, num_classes))
    parent_path = path.rpartition(".")[0]
    parent = network.get_submodule(parent_path)
    if isinstance(parent, nn.Sequential) and parent_path:
        before = list(parent.children())[: list(parent.children()).index(convolution)]
        _put(network, parent_path, nn.Sequential(*before, *linear))
    else:
        _put(network, path, nn.Sequential(*linear))


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def merge_distilled_heads(network: nn.Module) -> None:
    """Where timm averages the answers of two heads, for labels and for a teacher, keep only the first, in place.

    The average of two fresh linear layers is one fresh linear layer; but a probe that fits one of them would have the
    other's noise in each answer.
    """
    each: Any
    for each in list(network.modules()):
        if not isinstance(getattr(each, "head_dist", None), nn.Module):
            continue
        each.head_dist = nn.Identity()
        if isinstance(getattr(each, "distillation", None), bool):  # RepViT's classifier asks it
            each.distillation = False
        else:
            # A method, not a function: a copy of the network gets its own.
            each.forward_head = types.MethodType(_answer_with_one_head, each)


def _answer_with_one_head(self: Any, x: Tensor, pre_logits: bool = False) -> Tensor:
    """In the place of ``forward_head``; of two tokens the class gives the mean, as it does with its heads' answers."""
    features: Tensor = type(self).forward_head(self, x, pre_logits=True)
    return features if pre_logits else self.head(features)


def drop_auxiliary_heads(network: Any) -> None:
    """Leave out the heads that torchvision's pretrained weights bring for its own training, in place."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for name in AUXILIARY_HEADS:
            if hasattr(network, name):
                setattr(network, name, None)
