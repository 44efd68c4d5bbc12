"""What an engine's logits say: the nouns of an answer, and how they are read. It knows no engine and no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekiln.runtime.arguments import check_whole_number
from edgekiln.runtime.spec import Logits

__all__ = ["Candidate", "Prediction", "Selection", "read_logits", "softmax"]


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
        scores = softmax(self.logits)
        order = np.argsort(-scores, kind="stable")[:k]
        return tuple(Candidate(self.classes[i], int(i), float(scores[i])) for i in order)

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
    """One answer for each row of ``logits``, float32 (N, C), in their order; ``classes`` names the C columns."""
    scores, winners = softmax(logits), logits.argmax(axis=1)
    names = tuple(classes)
    predictions = []
    for row, score, index in zip(logits, scores, winners.tolist(), strict=True):
        own = row.copy()  # a view would keep the whole batch alive
        own.flags.writeable = False
        predictions.append(Prediction(names[index], index, float(score[index]), own, names))
    return predictions
