"""Data-parallel training in the processes that ``torchrun`` started.

The first of them (rank 0) does the whole command and alone writes files. The others wait until it trains, take part
with their share of every batch, and leave when it does. What a training is, they are told as JSON through torchrun's
own store; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.runtime.errors import DataError, EnvironmentProblem, GateError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekiln.pipeline.recipe import Recipe

__all__ = [
    "ALONE",
    "World",
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


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together, and which of them this one is.

    Attributes:
        rank: 0 leads and writes.
        size: how many processes there are, on all machines.
        local_rank: number on this machine, and of the GPU that is used.
        local_size: how many processes this machine runs.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and tells of progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's part of ``count`` things; all parts together are all of them, once."""
        each, rest = divmod(count, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def share_file(self, path: Path | None) -> bytes:
        """The bytes of the leader's file, in every process."""
        import numpy as np
        import torch
        import torch.distributed as dist

        content = np.frombuffer(path.read_bytes() if path else b"", np.uint8).copy()
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        length = torch.tensor([len(content)], dtype=torch.int64, device=device)
        dist.broadcast(length, 0)
        if not self.leads:
            content = np.empty(int(length), np.uint8)
        sent = torch.from_numpy(content).to(device)
        dist.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()

    def align(self, module: nn.Module) -> None:
        """Give every process the leader's buffers: each has BatchNorm's statistics of its own pictures."""
        if self.size > 1:
            import torch.distributed as dist

            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` in torch's DistributedDataParallel, which takes the leader's weights and adds up gradients."""
        if self.size == 1:
            return module
        import torch
        from torch.nn.parallel import DistributedDataParallel

        devices = [torch.cuda.current_device()] if next(module.parameters()).is_cuda else None
        return DistributedDataParallel(module, device_ids=devices)


ALONE = World()


def _read_world() -> World:
    """What torchrun put into the environment; alone where it did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    try:
        rank, size, local_rank, local_size = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
    except (KeyError, ValueError) as error:
        raise EnvironmentProblem(
            f"torchrun's environment is incomplete: {error}.", hint="Start edgekiln by torchrun itself."
        ) from error
    return World(rank, size, local_rank, local_size)


def has_followers() -> bool:
    """Whether this process leads others."""
    return _read_world().leads and _read_world().size > 1


def is_follower() -> bool:
    """Whether another process leads."""
    return not _read_world().leads


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
    world = _read_world()
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
    from edgekiln.pipeline.finetune import finetune
    from edgekiln.pipeline.recipe import Recipe
    from edgekiln.pipeline.training_job import make_job

    world = _read_world()
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
    world = _read_world()
    if world.leads and world.size > 1:
        _store().set(f"{_KEY}/{_done.trainings}", "null")


def check_batch(batch_size: int, accumulate: int, world: World) -> None:
    """Raise RecipeError where a batch cannot be divided among all processes and parts."""
    if batch_size < world.size * accumulate:
        raise RecipeError(
            f"finetune.batch_size {batch_size} is smaller than {world.size} processes x {accumulate} parts.",
            hint="batch_size is that of a whole step: raise it, or start fewer processes.",
        )
