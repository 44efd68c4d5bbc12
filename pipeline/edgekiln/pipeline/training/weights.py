"""First weights from a local file, of an earlier run of edgekiln or of another training, put into a network.

Nothing is loaded in part: what does not fit is listed and refused, except for the head where the recipe replaces it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from edgekiln.pipeline.training.heads import AUXILIARY_HEADS
from edgekiln.pipeline.training.weight_files import StoredWeights
from edgekiln.pipeline.training.weight_names import counters, describe_shape, match_names, name_nearest
from edgekiln.runtime.errors import RecipeError

__all__ = ["adapt_weights", "fit_weights", "load_state", "rename_weights", "resize_embeddings"]

_MOST_NAMED = 5


def fit_weights(
    network: nn.Module, stored: StoredWeights, head: str, *, replace_head: bool, optional: frozenset[str]
) -> None:
    """Copy a file's tensors into a network.

    Args:
        network: of the recipe's structure.
        stored: what ``read_weights`` gave.
        head: name of the last linear layer, for example ``fc``.
        replace_head: the file's head is left aside and the network keeps its fresh one.
        optional: names that the file may lack; the network keeps its own values there.

    Raises:
        RecipeError: names and shapes of what differs.
    """
    ours = network.state_dict()
    own_head = _own_head(head)
    given = {k: v for k, v in stored.tensors.items() if not (replace_head and k in own_head)}
    free = optional | (own_head if replace_head else set()) | counters(ours)
    wrong = [
        _compare(key, given.get(key), ours.get(key))
        for key in sorted(set(ours) | set(given))
        if not (key in free and key not in given) and _shape(given.get(key)) != _shape(ours.get(key))
    ]
    if wrong:
        only_head = len(wrong) <= len(own_head) and all(text.split(" ")[0] in own_head for text in wrong)
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise RecipeError(
            f"{stored.path.name} does not fit the model; {len(wrong)} tensors differ: "
            f"{', '.join(wrong[:_MOST_NAMED])}{more}.{_tell_nearest(ours, given, free)}{_tell_changes(stored)}",
            hint=f"Only the head differs{_count_classes(given, ours, head)}: backbone.head = 'replace' starts a fresh "
            "one."
            if only_head
            else "Take weights of the same network as backbone.model.",
            path=stored.path,
        )
    load_state(network, {**ours, **given})


def rename_weights(
    network: nn.Module, stored: StoredWeights, head: str, *, replace_head: bool, optional: frozenset[str]
) -> StoredWeights:
    """A file's tensors under the network's names, where one prefix is the difference; arguments as ``fit_weights``."""
    return match_names(stored, network.state_dict(), optional | (_own_head(head) if replace_head else set()))


def _own_head(head: str) -> set[str]:
    return {f"{head}.weight", f"{head}.bias"}


def _tell_nearest(ours: Mapping[str, Tensor], given: Mapping[str, Tensor], free: Collection[str]) -> str:
    """What in the file is called most like the first name that it lacks."""
    missing = next((key for key in ours if key not in given and key not in free), None)
    unknown = {key: tensor for key, tensor in given.items() if key not in ours}
    if missing is None or not unknown:
        return ""
    wanted = describe_shape(ours[missing])
    return f" Nearest in the file to {missing} ({wanted}): {name_nearest(missing, unknown)}."


def _tell_changes(stored: StoredWeights) -> str:
    return "".join(f" {sentence}" for sentence in stored.told)


def _count_classes(given: Mapping[str, Tensor], ours: Mapping[str, Tensor], head: str) -> str:
    """How many classes the file's head has, and the data."""
    theirs = given.get(f"{head}.weight")
    return (
        ""
        if theirs is None
        else f" ({len(theirs)} classes in the file, {len(ours[f'{head}.weight'])} in the data)"
    )


def load_state(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors of a network, as ones of the network's own version.

    A file of tensors alone lacks what torch keeps beside a state dict: torchvision's MNASNet refuses to load without.
    """
    state = network.state_dict()
    versions = state._metadata  # type: ignore[attr-defined] # torch sets it on the dict
    state = type(state)(tensors)
    state._metadata = versions  # type: ignore[attr-defined] # as above
    network.load_state_dict(state, strict=True)


def adapt_weights(
    network: nn.Module, stored: StoredWeights, size: int, *, replace_head: bool
) -> StoredWeights:
    """A library's own file for the network as it is built here: without auxiliary heads, for ``size`` pixels.

    Where the head is replaced, so is a second one, for a teacher's answers.

    Position embeddings and relative position biases of another size of input are interpolated, as timm and torchvision
    themselves do it. Everything else is left as it is, to be compared by name and shape.
    """
    ours = network.state_dict()
    auxiliary = tuple(f"{name}." for name in AUXILIARY_HEADS if hasattr(network, name))
    tensors = {
        name: tensor
        for name, tensor in stored.tensors.items()
        if not name.startswith(auxiliary) and not (replace_head and "head_dist" in name.split("."))
    }
    if all(name not in ours or tensor.shape == ours[name].shape for name, tensor in tensors.items()):
        return replace(stored, tensors=tensors)
    return replace(stored, tensors=resize_embeddings(network, tensors, size))


def resize_embeddings(network: nn.Module, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The tensors, those replaced that the network's library can bring to its shapes for ``size`` pixels."""
    ours, module = network.state_dict(), sys.modules[type(network).__module__]
    resized: Mapping[str, Tensor] = {}
    if hasattr(module, "checkpoint_filter_fn"):  # timm's, a function of each family
        resized = module.checkpoint_filter_fn(dict(tensors), network)
    elif "encoder.pos_embedding" in tensors and hasattr(
        module, "interpolate_embeddings"
    ):  # torchvision's ViT
        resized = module.interpolate_embeddings(size, network.patch_size, dict(tensors))
    return {
        name: resized[name]
        if name in ours and name in resized and resized[name].shape == ours[name].shape
        else tensor
        for name, tensor in tensors.items()
    }


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _compare(key: str, given: Tensor | None, wanted: Tensor | None) -> str:
    if given is None:
        return f"{key} is missing"
    if wanted is None:
        return f"{key} is not of this model"
    return f"{key} is {describe_shape(given)}, wanted {describe_shape(wanted)}"
