"""What an engine's logits say: the nouns of an answer, and how they are read. It knows no engine and no picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekiln.runtime.arguments import check_whole_number
from edgekiln.runtime.spec import Logits

__all__ = ["Candidate", "Prediction", "Selection", "read_logits", "softmax"]


_FEW_CLASSES = 8
_FEW_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class with its softmax probability (0 to 1)."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label, index: the most likely class.
        score: its softmax probability, 0 to 1. It is as well calibrated as the model is.
        logits: float32 (num_classes,), read-only.
    """

    label: str
    index: int
    score: float
    logits: Logits = field(repr=False, compare=False)  # arrays have no single truth value
    classes: tuple[str, ...] = field(repr=False)

    def top(self, k: int) -> tuple[Candidate, ...]:
        """The ``k`` most likely classes, best first; all of them where there are fewer."""
        check_whole_number("k", k)
        scores = _score_each(self.logits[np.newaxis])[0]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
        return tuple(Candidate(self.classes[i], i, scores[i]) for i in order)

    def _repr_html_(self) -> str:
        """What a notebook shows: the five most likely classes."""
        from edgekiln.runtime.bundles.notebook import show_table

        return show_table(
            f"{self.label}, the likeliest of {len(self.classes)} classes",
            ("class", "score"),
            [(candidate.label, candidate.score) for candidate in self.top(5)],
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which variant of a bundle runs, and why that one.

    Attributes:
        notice: what is other here than where it was judged; empty where nothing is.
    """

    name: str
    backend: str
    precision: str
    reason: str
    notice: str = ""


def softmax(logits: Logits) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Softmax over the last axis in float64, shifted by the maximum so that it cannot overflow."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def read_logits(logits: Logits, classes: Sequence[str]) -> list[Prediction]:
    """One answer for each row of ``logits``, float32 (N, C), in their order; ``classes`` names the C columns.

    Of few logits the answers share one copy: a row of its own, copied and sealed, takes longer than all the rest.
    """
    names = tuple(classes)
    shared = logits.nbytes <= _FEW_BYTES
    if shared:
        logits = logits.copy()
        logits.flags.writeable = False
    predictions = []
    for row, values, score in zip(logits, logits.tolist(), _score_likeliest(logits), strict=True):
        own = row
        if not shared:
            own = row.copy()  # a view would keep the whole batch alive
            own.flags.writeable = False
        index = values.index(max(values))  # not of the best score: logits apart by next to nothing share it
        predictions.append(Prediction(names[index], index, score, own, names))
    return predictions


def _score_likeliest(logits: Logits) -> list[float]:
    """The largest value of ``softmax`` of each row of float32 (N, C): its own exponential is that of 0, which is 1."""
    if logits.shape[1] > _FEW_CLASSES:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        scores: list[float] = (1 / np.exp(shifted).sum(axis=-1)).tolist()
        return scores
    return [1 / math.fsum(_exponentials_of_few(row)) for row in logits.tolist()]


def _score_each(logits: Logits) -> list[list[float]]:
    """``softmax`` of each row of float32 (N, C), as Python's own numbers.

    Of few classes without numpy: behind an inference the processor's caches hold little of its machinery, and a row
    then takes it ten times as long as when it is timed alone.
    """
    if logits.shape[1] > _FEW_CLASSES:
        scores: list[list[float]] = softmax(logits).tolist()
        return scores
    rows = [_exponentials_of_few(row) for row in logits.tolist()]
    return [[value / total for value in row] for row, total in zip(rows, map(math.fsum, rows), strict=True)]


def _exponentials_of_few(row: list[float]) -> list[float]:
    top = max(row)
    return [math.exp(value - top) for value in row]
