"""Names of tensors in a file against those of a network: what trainings put before them, and what is nearest.

Lightning, DistributedDataParallel, ``torch.compile`` and wrappers of one's own call a network's ``conv1.weight``
``model.conv1.weight``, ``module.conv1.weight`` or ``_orig_mod.conv1.weight``, also stacked. Where all of the network's
names are found under one prefix, they are taken from there.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from edgekiln.pipeline.training.weight_files import StoredWeights
from edgekiln.runtime.errors import RecipeError

__all__ = ["counters", "describe_shape", "match_names", "name_nearest"]

_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts into names wherever a part of a network is compiled, sharded or checkpointed; no part of it."""
_COUNTER = "num_batches_tracked"
"""Of BatchNorm, which files from before 2018 lack. It decides nothing where statistics have a momentum."""
_MOST_NAMED = 5


def match_names(stored: StoredWeights, ours: Collection[str], free: Collection[str]) -> StoredWeights:
    """The file's tensors under the network's names, where removing one prefix makes these equal; else as they are.

    Args:
        stored: what ``read_weights`` gave.
        ours: the network's names.
        free: those of them that the file may lack.

    Raises:
        RecipeError: the network is found under several prefixes.
    """
    wanted = set(ours) - set(free) - counters(ours)
    if wanted <= stored.tensors.keys():
        return stored
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in stored.tensors.items()}
    if len(tensors) < len(stored.tensors):  # two networks, one of them wrapped: their names would collide
        tensors = dict(stored.tensors)
    prefixes = _count_prefixes(tensors, set(ours))
    fitting = [prefix for prefix in prefixes if all(prefix + name in tensors for name in wanted)]
    averaged = [prefix for prefix in fitting if "ema" in re.split(r"[._]", prefix)]
    chosen = averaged if len(averaged) == 1 else fitting
    if len(chosen) > 1:
        raise RecipeError(
            f"{stored.path.name} holds the network's names under {len(chosen)} prefixes: "
            f"{', '.join(repr(prefix) for prefix in sorted(chosen))}.",
            hint="Write the tensors of one of them alone: {k: v for k, v in state.items() if k.startswith(PREFIX)}.",
            path=stored.path,
        )
    if not chosen:  # the error that follows is told in the names that are nearest to the network's
        prefix, count = max(prefixes.items(), key=lambda entry: entry[1], default=("", 0))
        chosen = [prefix if count >= len(wanted) / 2 else ""]
    return _take(stored, tensors, chosen[0], averaged=len(averaged) == 1 < len(fitting))


def counters(names: Collection[str]) -> set[str]:
    """BatchNorm's counters, which a file may lack."""
    return {name for name in names if name.endswith(_COUNTER)}


def _count_prefixes(names: Collection[str], ours: set[str]) -> Counter[str]:
    """How many of the network's names stand behind each prefix; a prefix ends at a dot, or is empty."""
    found: Counter[str] = Counter()
    for name in names:
        cuts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        found.update(name[:cut] for cut in cuts if name[cut:] in ours)
    return found


def _take(
    stored: StoredWeights, tensors: Mapping[str, Tensor], prefix: str, *, averaged: bool
) -> StoredWeights:
    """The tensors under a prefix without it, with a sentence on what was removed and what is left aside."""
    taken = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    wrappers = {match for name in stored.tensors for match in _WRAPPERS.findall(name)}
    removed = [f"{prefix!r}"] * bool(prefix) + [
        f"'{mark}.'" for mark in sorted(wrappers) if not taken.keys() <= stored.tensors.keys()
    ]
    if not removed:
        return replace(stored, tensors=taken)
    left = sorted(name for name in tensors if not name.startswith(prefix))
    more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
    aside = f"; not below it and not used: {', '.join(left[:_MOST_NAMED])}{more}" if left else ""
    average = ", the moving average" if averaged else ""
    told = f"{' and '.join(removed)} was removed from the names of {len(taken)} tensors{average}{aside}."
    return replace(stored, tensors=taken, told=(*stored.told, f"{stored.path.name}: {told}"))


def name_nearest(key: str, tensors: Mapping[str, Tensor]) -> str:
    """The five names in a file that are most like ``key``, with their shapes."""
    near = difflib.get_close_matches(key, tensors, n=_MOST_NAMED, cutoff=0.0)
    return ", ".join(f"{name} ({describe_shape(tensors[name])})" for name in near)


def describe_shape(tensor: Tensor) -> str:
    """``64 x 3 x 7 x 7``."""
    return " x ".join(map(str, tensor.shape)) or "a number"
