"""Data-parallel training in the processes that ``torchrun`` started.

The first of them (rank 0) does the whole command and alone writes files. The others wait until it trains, take part
with their share of every batch, and leave when it does. What a training is, they are told as JSON through torchrun's
own store; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.pipeline.training.world import World, read_world
from edgekiln.runtime.errors import DataError, EnvironmentProblem, GateError

if TYPE_CHECKING:
    from edgekiln.pipeline.recipe import Recipe

__all__ = [
    "dismiss_followers",
    "follow_trainings",
    "has_followers",
    "is_follower",
    "train_together",
]

_PATIENCE = timedelta(
    days=7
)  # the first process may be decoding pictures, or searching; torchrun sees who died
_KEY = "edgekiln/training"


def has_followers() -> bool:
    """Whether this process leads others."""
    return read_world().leads and read_world().size > 1


def is_follower() -> bool:
    """Whether another process leads."""
    return not read_world().leads


@cache
def _store() -> Any:
    """torchrun's key-value store."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    return store


@dataclass(slots=True)
class _Count:
    """How many trainings this process took part in; leader and followers count alike."""

    trainings: int = 0


_done = _Count()


@contextlib.contextmanager
def train_together(recipe: Recipe, inputs: Mapping[str, Path]) -> Iterator[World]:
    """The leader's side: tell the others what is trained, and be one group with them.

    Args:
        recipe: which training.
        inputs: finished stages by name, in a folder that every machine sees.
    """
    world = read_world()
    if world.size == 1:
        yield world
        return
    order = {
        "recipe": recipe.model_dump_json(exclude_unset=True),
        "inputs": {k: str(v.resolve()) for k, v in inputs.items()},
    }
    _store().set(f"{_KEY}/{_done.trainings}", json.dumps(order))
    with _group(world):
        yield world


@contextlib.contextmanager
def _group(world: World) -> Iterator[None]:
    """torch's process group of one training."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if world.local_size > torch.cuda.device_count():
            raise EnvironmentProblem(
                f"{world.local_size} processes, and {torch.cuda.device_count()} GPUs that they can use.",
                hint="Start torchrun with --nproc-per-node gpu.",
            )
        torch.cuda.set_device(world.local_rank)
    store = dist.PrefixStore(  # type: ignore[attr-defined] # torch lists no stores in __all__
        f"group/{_done.trainings}", _store()
    )
    _done.trainings += 1
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=world.rank, world_size=world.size, timeout=_PATIENCE
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def follow_trainings() -> None:
    """A follower's whole life: take part in every training of the leader until it is done.

    Raises:
        EdgekilnError: this process could not take part; a training that failed in all of them is the leader's to tell.
    """
    from edgekiln.pipeline.recipe import Recipe
    from edgekiln.pipeline.training.finetune import finetune
    from edgekiln.pipeline.training.job import make_job

    world = read_world()
    while order := _next_order():
        recipe = Recipe.model_validate_json(order["recipe"])
        inputs = {name: Path(path) for name, path in order["inputs"].items()}
        with (
            _group(world),
            contextlib.suppress(GateError),
        ):  # the leader tells of it, and may have more to train
            _check_inputs(inputs, world)
            finetune(make_job(recipe, inputs), None, world)


def _next_order() -> dict[str, Any] | None:
    key = f"{_KEY}/{_done.trainings}"
    _store().wait([key], _PATIENCE)
    found: dict[str, Any] | None = json.loads(_store().get(key))
    return found


def _check_inputs(inputs: Mapping[str, Path], world: World) -> None:
    for path in inputs.values():
        if not path.is_dir():
            raise DataError(
                f"Process {world.rank} does not see the prepared pictures in {path}.",
                hint="Give --runs a folder that all machines share.",
                path=path,
            )


def dismiss_followers() -> None:
    """The leader is done, well or not: the others shall leave."""
    world = read_world()
    if world.leads and world.size > 1:
        _store().set(f"{_KEY}/{_done.trainings}", "null")
