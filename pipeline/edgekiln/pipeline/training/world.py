"""The processes that train together: which of them this one is, and what they exchange. It knows no training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.runtime.errors import EnvironmentProblem, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ALONE", "World", "check_batch", "read_world"]


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


def read_world() -> World:
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


def check_batch(batch_size: int, accumulate: int, world: World) -> None:
    """Raise RecipeError where a batch cannot be divided among all processes and parts."""
    if batch_size < world.size * accumulate:
        raise RecipeError(
            f"finetune.batch_size {batch_size} is smaller than {world.size} processes x {accumulate} parts.",
            hint="batch_size is that of a whole step: raise it, or start fewer processes.",
        )
