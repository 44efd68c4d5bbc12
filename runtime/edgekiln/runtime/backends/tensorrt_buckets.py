"""Which batch sizes (buckets) a session prepares, and which of them runs a batch.

Knows the batch ranges of engines and no library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ["BatchRange", "choose_bucket", "plan_buckets"]


class BatchRange(Protocol):
    """An engine, as far as its batch sizes go. A static one has one size, which is both ends."""

    @property
    def min_batch(self) -> int:
        """The smallest batch that it runs."""

    @property
    def max_batch(self) -> int:
        """The largest batch that it runs."""


_Engine = TypeVar("_Engine", bound=BatchRange)


def plan_buckets(engines: Iterable[_Engine]) -> dict[int, _Engine]:
    """Batch sizes to prepare, each with the engine that runs it.

    A static engine gives its one size, a range the powers of two in it and its ends. Where two engines serve one
    size, the one with the narrower range is faster.
    """
    plan: dict[int, _Engine] = {}
    for engine in sorted(engines, key=lambda e: e.min_batch - e.max_batch):
        powers = (2**k for k in range(engine.max_batch.bit_length()))
        sizes = {engine.min_batch, engine.max_batch, *(p for p in powers if p > engine.min_batch)}
        plan |= dict.fromkeys(sizes, engine)
    return plan


def choose_bucket(sizes: Sequence[int], count: int) -> int:
    """The smallest of the ascending ``sizes`` that holds ``count`` frames, which are at most the largest."""
    return next(size for size in sizes if size >= count)
