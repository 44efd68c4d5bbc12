"""Which pictures a step takes, and their augmented pixels, read ahead by other processes where that pays.

A picture's augmentation depends on (seed, step, place in the batch) alone: however many processes read or train, and
wherever a run is continued, a step sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.training.shared_memory import explain_lost_worker
from edgekiln.pipeline.training.world import ALONE, World
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.spec import Frames

__all__ = ["Batches", "Feed", "step_seed"]

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Augment: TypeAlias = Callable[[Frames, Sequence[int]], Tensor]


def step_seed(*parts: int) -> int:
    """64 bits that depend on all ``parts``; no two tuples are related."""
    # The same words, and sooner as an array; a seed may be larger.
    words = np.array(parts, np.uint32) if max(parts) < 2**32 else parts
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


class Batches:
    """Which pictures each step takes: a new order every epoch, which depends on (seed, epoch) alone.

    A last batch of one picture joins the one before: BatchNorm has no statistics of one.
    """

    def __init__(
        self,
        pictures: int,
        size: int,
        seed: int,
        stream: tuple[int, ...] = (),
        balance: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ) -> None:
        """
        Args:
            pictures: how many there are, and how many an epoch takes.
            size: of a batch.
            seed: of the order.
            stream: tells apart orders of the same seed.
            balance: labels int64 (pictures,): every class is then drawn equally often, rare ones repeatedly
                (class-balanced sampling, Kang et al. 2020, arXiv:1910.09217, section 4.1).
        """
        self.pictures, self.size = pictures, size
        self._seed, self._stream, self._balance = seed, stream, balance
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def per_epoch(self) -> int:
        """Steps until as many pictures were taken as there are."""
        whole, rest = divmod(self.pictures, self.size)
        return max(1, whole + (rest > 1))

    def indices(self, step: int) -> Indices:
        """int64 (batch,), sorted, so that memory-mapped frames are read in the order of the file."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._make_order(epoch)
        end = None if position == self.per_epoch - 1 else (position + 1) * self.size
        return np.sort(self._order[position * self.size : end])

    def _make_order(self, epoch: int) -> Indices:
        generator = np.random.default_rng((self._seed, epoch, *self._stream))
        if self._balance is None:
            return generator.permutation(self.pictures)
        members = [np.flatnonzero(self._balance == label) for label in np.unique(self._balance)]
        each = np.full(len(members), self.pictures // len(members))
        each[generator.permutation(len(members))[: self.pictures % len(members)]] += 1
        drawn = [_draw_evenly(own, int(times), generator) for own, times in zip(members, each, strict=True)]
        return generator.permutation(np.concatenate(drawn))


def _draw_evenly(members: Indices, times: int, generator: np.random.Generator) -> Indices:
    """So many of ``members`` that each stands in it as often as any other, give or take one."""
    rounds = -(-times // len(members))
    return np.concatenate([generator.permutation(members) for _ in range(rounds)])[:times]


class _AugmentedPictures(Dataset[tuple[Tensor, Tensor]]):
    """Batches by a list of (step, place, index): pixels uint8 (B, 3, H, W) and labels int64 (B,)."""

    def __init__(self, split: PreparedSplit, augment: Augment, seed: int, stream: int) -> None:
        self._split, self._augment, self._seed, self._stream = split, augment, seed, stream

    def __getitems__(self, items: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor] | EdgekilnError:
        """A batch; an error is returned, since a DataLoader would turn it into another type on its way here."""
        chosen = [index for _, _, index in items]
        try:
            frames = np.asarray(self._split.frames[chosen])
        except EdgekilnError as error:
            return error
        seeds = [step_seed(self._seed, step, place, self._stream) for step, place, _ in items]
        return self._augment(frames, seeds), torch.from_numpy(self._split.labels[chosen])


def _share(batch: Any) -> Any:
    if not isinstance(batch, EdgekilnError) and get_worker_info() is not None:
        # Here it can fail, and be told. What is not shared yet is shared by the queue's own thread, whose errors nobody
        # hears: the training would wait for ever.
        for tensor in batch:
            tensor.share_memory_()
    return batch


class Feed:
    """The pictures of each step, for one of the processes that train.

    In order it is a stream that ``workers`` processes read ahead; any other step starts it anew there.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batches: Batches,
        augment: Augment,
        seed: int,
        *,
        stream: int = 0,
        world: World = ALONE,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        """
        Args:
            split: pictures and labels.
            batches: which of them a step takes.
            augment: frames uint8 (B, H, W, 3) and the seed of each to uint8 (B, 3, H, W).
            seed: of the augmentation.
            stream: tells apart feeds of the same seed.
            world: gives this process its part of each batch.
            workers: processes that read ahead; 0 reads in this one.
            pin: put batches where a GPU can fetch them by itself.
        """
        self.batches, self._world, self._labels = batches, world, split.labels
        self._dataset = _AugmentedPictures(split, augment, seed, stream)
        self._workers, self._pin = workers, pin
        self._next = -1
        self._stream: Iterator[Any] | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, 3, H, W) and labels int64 (B,) of this process's part; one picture where it has none.

        Raises:
            ImageError: a picture that is decoded only now is not as it was listed.
            ResourceError: a worker ran out of shared memory, or was killed.
        """
        if self._stream is None or step != self._next:
            self._stream = None  # its workers end, and leave their shared memory, before others start
        try:
            if self._stream is None:
                self._stream = self._open(step)
            found = next(self._stream)
        except (RuntimeError, OSError) as error:
            raise explain_lost_worker(error) or error from error
        self._next = step + 1
        if isinstance(found, EdgekilnError):
            raise found
        pixels, labels = found
        return pixels, labels

    def labels(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Labels int64 (batch,) of the whole step, of all processes."""
        return self._labels[self.batches.indices(step)]

    def close(self) -> None:
        """Stop reading ahead."""
        self._stream = None

    def _open(self, first: int) -> Iterator[Any]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._keys(first),
            collate_fn=_share,
            num_workers=self._workers,
            pin_memory=self._pin,
        )
        return iter(loader)

    def _keys(self, first: int) -> Iterator[list[tuple[int, int, int]]]:
        for step in count(first):
            chosen = self.batches.indices(step)
            mine = self._world.part(len(chosen))
            places = range(mine.start, mine.stop) or range(1)
            yield [(step, place, int(chosen[place])) for place in places]
