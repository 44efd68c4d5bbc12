"""First weights from a local file: a plain state dict, or a checkpoint of an earlier run of edgekiln.

Nothing is loaded in part: what does not fit is listed and refused, except for the head where the recipe replaces it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekiln.pipeline.training.heads import AUXILIARY_HEADS
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import RecipeError

__all__ = [
    "StoredWeights",
    "adapt_weights",
    "fit_weights",
    "load_state",
    "read_weights",
    "resize_embeddings",
]

_MOST_NAMED = 5
_SAVE_WEIGHTS = (
    "Wanted a file of tensors alone, as torch.save(model.state_dict(), path) or safetensors write it."
)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A file's tensors by name. ``backbone`` and ``contract`` are those of an edgekiln checkpoint, else ``None``."""

    path: Path
    tensors: Mapping[str, Tensor]
    backbone: str | None = None
    contract: Contract | None = None


def read_weights(path: Path) -> StoredWeights:
    """Read a ``.safetensors`` or ``.pth`` file; a ``.pth`` is never unpickled into anything but tensors.

    Raises:
        RecipeError: no such file, damaged, or no plain state dict.
    """
    if not path.is_file():
        raise RecipeError(
            f"There is no weight file {path}.",
            hint="A relative path is taken from the recipe's own folder.",
            path=path,
        )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors
        # torch's text goes on for lines, and advises to run the file's code: its first clause is enough.
        reason = re.split(r"[\n.] ?", str(error), maxsplit=1)[0]
        raise RecipeError(
            f"{path} cannot be read as weights: {reason}.", hint=_SAVE_WEIGHTS, path=path
        ) from error
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise RecipeError(f"{path} holds no plain state dict.", hint=_SAVE_WEIGHTS, path=path)
    return StoredWeights(path, stored)


def _read_safetensors(path: Path) -> StoredWeights:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("edgekiln", "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a mapping
    contract = Contract.from_json(about["contract"]) if "contract" in about else None
    return StoredWeights(path, tensors, about.get("backbone"), contract)


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
    own_head = {f"{head}.weight", f"{head}.bias"}
    given = {k: v for k, v in stored.tensors.items() if not (replace_head and k in own_head)}
    free = optional | (own_head if replace_head else set())
    wrong = [
        _describe(key, given.get(key), ours.get(key))
        for key in sorted(set(ours) | set(given))
        if not (key in free and key not in given) and _shape(given.get(key)) != _shape(ours.get(key))
    ]
    if wrong:
        only_head = len(wrong) <= len(own_head) and all(text.split(" ")[0] in own_head for text in wrong)
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise RecipeError(
            f"{stored.path.name} does not fit the model; {len(wrong)} tensors differ: "
            f"{', '.join(wrong[:_MOST_NAMED])}{more}.",
            hint="Only the head differs: backbone.head = 'replace' starts a fresh one."
            if only_head
            else "Take weights of the same network as backbone.model.",
            path=stored.path,
        )
    load_state(network, {**ours, **given})


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


def _describe(key: str, given: Tensor | None, wanted: Tensor | None) -> str:
    if given is None:
        return f"{key} is missing"
    if wanted is None:
        return f"{key} is not of this model"
    return f"{key} is {_size(given)}, wanted {_size(wanted)}"


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
