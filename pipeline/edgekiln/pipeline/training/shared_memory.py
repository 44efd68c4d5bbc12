"""Loading workers hand batches over in shared memory, below /dev/shm: how many fit, and what it means if none did.

A container has 64 MB of it where nobody asked for more (Docker's default). A write beyond it ends a worker by SIGBUS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from edgekiln.pipeline.capacity import describe_bytes, free_disk_bytes
from edgekiln.runtime.errors import ResourceError

__all__ = ["SHARED_MEMORY", "explain_lost_worker", "fit_workers"]

SHARED_MEMORY = Path("/dev/shm")  # where glibc's shm_open puts it
_AHEAD = 2
"""Batches that each worker has ready or in work: torch.utils.data.DataLoader's default prefetch_factor."""
_IN_USE = 2  # the batch that is trained on, and the one that replaces it
_SHARE = 0.9  # of what is free: other things use it too
_REMEDY = "Give the container more shared memory (docker run --shm-size=2g; --ipc=host shares the host's)"


def fit_workers(wanted: int, batch_bytes: int, sharers: int, tell: Callable[[str], None]) -> int:
    """How many of the ``wanted`` workers find room in shared memory; 0 reads in this process and needs none.

    Args:
        wanted: workers of one stream of batches.
        batch_bytes: of the pixels of a batch of one process.
        sharers: streams that share the memory: tasks times processes on this machine.
        tell: hears it where fewer are taken.
    """
    if not wanted:
        return 0
    free = free_disk_bytes(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else 0
    batches = int(free * _SHARE) // (batch_bytes * sharers)
    taken = max(0, min(wanted, (batches - _IN_USE) // _AHEAD))
    if taken < wanted:
        needed = describe_bytes((wanted * _AHEAD + _IN_USE) * batch_bytes * sharers)
        instead = f"{taken} of them start" if taken else "pictures are loaded without workers"
        tell(
            f"{wanted} loading workers need up to {needed} of shared memory, and {SHARED_MEMORY} has "
            f"{describe_bytes(free)} free: {instead}. {_REMEDY} for faster loading."
        )
    return taken


def explain_lost_worker(error: RuntimeError | OSError) -> ResourceError | None:
    """The error to raise for one of a DataLoader's, or ``None`` where it is none of the machine's resources."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC  # of a semaphore, which lies there too
    if full or "shared memory" in text or "</torch_" in text or "signal: Bus error" in text:
        free = (
            f", which has {describe_bytes(free_disk_bytes(SHARED_MEMORY))} free"
            if SHARED_MEMORY.is_dir()
            else ""
        )
        return ResourceError(
            f"A loading worker ran out of shared memory ({SHARED_MEMORY}{free}): {_last_line(text)}",
            hint=f"{_REMEDY}, or set finetune.workers = 0, and run the same command again.",
            path=SHARED_MEMORY,
        )
    if "signal: Killed" in text:
        return ResourceError(
            "A loading worker was killed (signal 9), which is what the system does when memory runs out.",
            hint="Set finetune.workers = 0 or fewer, close other programs, or raise the container's limit of memory.",
        )
    return None


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
