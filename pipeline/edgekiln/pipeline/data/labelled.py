"""Labelled pictures as every source gives them, and how they are cut into splits. Reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.image import Picture

__all__ = ["SPLITS", "LabelledImages", "Sample", "SplitName", "split_samples"]

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. ``key`` names it in messages and reports; it is never an absolute path."""

    key: str
    label: int
    picture: Picture = field(repr=False)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What a source gives. A split that the source does not define is ``None`` and is cut from ``train``.

    Attributes:
        ignored: what was left out, by path; a folder's ends with a slash.
        notices: sentences for people on how the source was read and what was left out.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] | None = None
    test: tuple[Sample, ...] | None = None
    ignored: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def split_samples(
    images: LabelledImages,
    *,
    validation: float,
    test: float,
    seed: int,
    share: float = 1.0,
    test_seed: int | None = None,
    test_share: float = 1.0,
) -> dict[SplitName, tuple[Sample, ...]]:
    """Cut ``test`` and ``val`` from ``train``, stratified by class, where the source does not define them.

    ``share`` of train is kept, stratified too. It is taken after ``test`` was cut and before ``val`` is, so that every
    share is judged on the same pictures, and is validated on as few as somebody with so little data would have. Of one
    seed a smaller share is part of a larger. With a ``test_seed`` every seed is judged on the same pictures as well.
    ``test_share`` is of a test split that the source defines.
    """
    train = images.train
    held_out = images.test
    judge_seed = seed if test_seed is None else test_seed
    if held_out is None:
        if test_share < 1:
            raise DataError(
                "test_share takes a part of a source's own test split, and this source has none.",
                hint="Remove data.test_share; data.test is the share that is cut off.",
            )
        train, held_out = _cut(train, test, judge_seed)
    elif test_share < 1:
        held_out = _cut(held_out, test_share, judge_seed)[1]
    if share < 1:
        train = _cut(train, share, seed + 2)[1]
    val = images.val
    if val is None:
        train, val = _cut(train, validation, seed + 1)
    for name, part in (("test", held_out), ("val", val), ("train", train)):
        if not part:
            raise DataError(
                f"The {name} split is empty: {len(images.train)} pictures in {len(images.classes)} classes are too "
                "few to cut it from.",
                hint="Add pictures: each class needs three or more.",
            )
    return {"train": train, "val": val, "test": held_out}


def _cut(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(kept, cut): of every class the rounded fraction, at least one picture of a class that has two."""
    generator = np.random.default_rng(seed)
    labels = np.array([s.label for s in samples])
    chosen: set[int] = set()
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(int(i) for i in members[:count])
    kept = tuple(s for i, s in enumerate(samples) if i not in chosen)
    return kept, tuple(s for i, s in enumerate(samples) if i in chosen)
