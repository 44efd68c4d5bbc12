"""A GPU that runs out of memory while training: says which batch size would fit, from steps that were measured.

The peak memory of a step is fixed + per_picture * batch: weights, gradients, moments and the library's own on one side,
activations on the other. Two small steps give both. It is an estimate: convolution libraries choose other algorithms,
with other workspaces, for other batches, and the allocator's blocks leave gaps; a tenth of the memory is left for that.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from edgekiln.runtime.errors import ResourceError

__all__ = ["StepMemory", "explain_out_of_memory", "measure_step_memory", "suggest_parts"]

_RESERVE = 0.1  # of the memory: gaps between the allocator's blocks, larger workspaces of larger batches
_SMALLEST = 2  # pictures: BatchNorm has no statistics of one
_GIB = 2**30
_WHAT = "The GPU's memory does not hold a training step's"

RunStep = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Peak bytes of a training step: ``fixed + per_picture * batch``."""

    fixed: float
    per_picture: float

    def at(self, batch: int) -> float:
        """Bytes that a step of so many pictures needs."""
        return self.fixed + self.per_picture * batch

    def largest_batch(self, available: float) -> int:
        """Most pictures whose step stays within ``available`` bytes; 0 where none does."""
        return max(0, int((available - self.fixed) / self.per_picture))


@contextlib.contextmanager
def explain_out_of_memory(
    batch_size: int,
    accumulate: int = 1,
    *,
    run_step: RunStep | None = None,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Turn torch's out-of-memory error inside the block into one that names what would fit.

    Args:
        batch_size: pictures of a step, in this process.
        accumulate: parts that it is computed in.
        run_step: trains one step of so many pictures, weights and moments included; called after the error, when all
            that should be kept is on disk. ``None`` where that is impossible, as among several processes, of which
            the others would wait: then nothing is measured, and no figure is told.
        device: the GPU; ``None`` is the current one.

    Raises:
        ResourceError: the GPU's memory was not enough.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        # The traceback holds the frames of the failed step, and these its activations.
        traceback.clear_frames(error.__traceback__)
        cause = error.with_traceback(None)
    else:
        return
    room, at_once = _Room.of(device), math.ceil(batch_size / accumulate)
    if run_step is None:
        hint = "Raise finetune.accumulate, which computes the same step in smaller parts."
        raise ResourceError(f"{_WHAT} {at_once} pictures at once: {room}.", hint=hint) from cause
    measured = measure_step_memory(run_step, at_once, device)
    raise _explain(batch_size, at_once, measured, room) from cause


def measure_step_memory(
    run_step: RunStep, batch_size: int, device: torch.device | None = None
) -> StepMemory | None:
    """Fit the two numbers to the peaks of two steps; ``None`` where not even the smallest two steps fit.

    The first step of all is not counted: an optimizer makes its moments there, after the peak.
    """
    small = max(_SMALLEST, batch_size // 8)
    while True:
        try:
            run_step(small)
            peaks = [_peak_bytes(run_step, batch, device) for batch in (small, 2 * small)]
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            if small == _SMALLEST:
                return None
            small = max(_SMALLEST, small // 4)
            continue
        per_picture = max(1.0, (peaks[1] - peaks[0]) / small)
        return StepMemory(peaks[0] - per_picture * small, per_picture)


def _peak_bytes(run_step: RunStep, batch: int, device: torch.device | None) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run_step(batch)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


@dataclass(frozen=True, slots=True)
class _Room:
    """Bytes of the GPU, and those of them that this process may have."""

    gpu: str
    total: int
    available: int

    @classmethod
    def of(cls, device: torch.device | None) -> _Room:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        return cls(torch.cuda.get_device_name(device), total, free + own)

    @property
    def usable(self) -> float:
        return (1 - _RESERVE) * self.available

    def __str__(self) -> str:
        others = self.total - self.available
        held = f", {_gib(others)} of its {_gib(self.total)} are held by others" if others > _GIB else ""
        return f"{self.gpu} has {_gib(self.available)}{held}"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"


def suggest_parts(batch_size: int, fits: int) -> tuple[int, int]:
    """(parts, pictures of the largest): as few parts of a step as keep each within ``fits`` pictures."""
    parts = math.ceil(batch_size / fits)
    return parts, math.ceil(batch_size / parts)


def _explain(batch_size: int, at_once: int, measured: StepMemory | None, room: _Room) -> ResourceError:
    less = "lower data.size, freeze more, or take a smaller backbone.model."
    if measured is None:
        hint = f"Steps of {_SMALLEST} and {2 * _SMALLEST} pictures do not both fit either: {less}"
        return ResourceError(f"{_WHAT} {at_once} pictures at once: {room}.", hint=hint)
    text = f"{_WHAT} {at_once} pictures at once, which need about {_gib(measured.at(at_once))}: {room}."
    # The part did not fit, whatever the estimate says.
    fits = min(measured.largest_batch(room.usable), at_once - 1)
    if fits < _SMALLEST:
        return ResourceError(text, hint=f"Not even {_SMALLEST} pictures would fit: {less}")
    parts, pictures = suggest_parts(batch_size, fits)
    hint = (
        f"{fits} would fit. finetune.accumulate = {parts} computes the same step in parts of {pictures}, in about "
        f"{_gib(measured.at(pictures))}, by two measured steps; finetune.batch_size = {fits} takes smaller steps."
    )
    return ResourceError(text, hint=hint)
