"""Which weights are trained, and when: the stages of a network, freezing, gradual unfreezing."""

from __future__ import annotations

import math

from torch import nn

from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.heads import find_head
from edgekiln.runtime.errors import RecipeError

__all__ = ["GradualUnfreezing", "freeze", "is_frozen", "list_stages"]


def list_stages(network: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network in their order, by name: its children, and in the place of a list of blocks its blocks.

    A child that holds most of the weights, and these in lists of blocks, is a network in the network (the ``encoder``
    of torchvision's ViT, or what a module of one's own wraps): its own stages are told in its place.
    """
    stages: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if _is_list(child):
            stages |= {f"{name}.{part}": module for part, module in child.named_children()}
        elif _has_most(child, network) and _has_most(
            nn.ModuleList(filter(_is_list, child.children())), child
        ):
            stages |= {f"{name}.{part}": module for part, module in list_stages(child).items()}
        else:
            stages[name] = child
    return {name: module for name, module in stages.items() if any(True for _ in module.parameters())}


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1


def _has_most(part: nn.Module, whole: nn.Module) -> bool:
    """Whether more than half of the weights are in a part."""
    inside, all_of_them = (sum(p.numel() for p in module.parameters()) for module in (part, whole))
    return 2 * inside > all_of_them


def freeze(network: nn.Module, settings: BackboneSettings, num_classes: int) -> None:
    """Switch off the gradients of what ``backbone.freeze`` names: nothing, all but the head, or all before a stage.

    Raises:
        RecipeError: the network has no such stage; those that it has are listed.
    """
    if settings.freeze == "none":
        return
    head = find_head(network, num_classes)[1]
    if settings.freeze == "backbone":
        network.requires_grad_(False)
    else:
        for module in _before_stage(network, settings.freeze.removeprefix("until:")):
            module.requires_grad_(False)
    head.requires_grad_(True)


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


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has weights of its own and none of them is trained."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def count_depths(network: nn.Module, head: nn.Linear) -> dict[nn.Parameter, int]:
    """How many stages lie between a weight and the head: 0 for the head's own stage and what follows it.

    Weights outside of all stages (class token, position embedding) belong to the input: they are as deep as the
    first stage.
    """
    stages = list(list_stages(network).values())
    last = next((i for i, stage in enumerate(stages) if head in set(stage.modules())), len(stages) - 1)
    depths = dict.fromkeys(network.parameters(), max(0, last))
    for index, stage in enumerate(stages):
        for parameter in stage.parameters():
            depths[parameter] = max(0, last - index)
    return depths


class GradualUnfreezing:
    """Trains the head alone first, then one stage after the other down to the input.

    Howard and Ruder 2018 (arXiv:1801.06146, section 3.3) unfreeze one layer each epoch; here the stages are spread
    evenly over the first ``share`` of all steps, so that a deep network in few epochs is wholly trained as well. What
    ``backbone.freeze`` holds stays frozen.
    """

    def __init__(self, network: nn.Module, head: nn.Linear, share: float) -> None:
        depths = count_depths(network, head)
        self._depths = {p: depth for p, depth in depths.items() if p.requires_grad}
        self._deepest = max(self._depths.values(), default=0)
        self._share = share

    def depth(self, step: int, total: int) -> int:
        """The depth down to which weights are trained in a step."""
        if step >= self._share * total:
            return self._deepest
        return math.floor(step / (self._share * total) * self._deepest)

    def apply(self, step: int, total: int) -> bool:
        """Switch gradients on as the step wants; whether anything changed."""
        depth, changed = self.depth(step, total), False
        for parameter, own in self._depths.items():
            if parameter.requires_grad is not (own <= depth):
                parameter.requires_grad_(own <= depth)
                parameter.grad, changed = None, True
        return changed
