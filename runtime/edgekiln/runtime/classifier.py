"""A loaded engine plus its contract: any picture in, a typed answer out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EngineError, UsageError
from edgekiln.runtime.image import ColorOrder, Picture, prepare
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Logits

__all__ = ["Candidate", "Classifier", "Prediction", "Selection"]


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
    logits: Logits = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    def top(self, k: int) -> tuple[Candidate, ...]:
        """The ``k`` most likely classes, best first; all of them where there are fewer."""
        if k < 1:
            raise UsageError(f"top({k}): k must be at least 1.")
        scores = softmax(self.logits)
        order = np.argsort(-scores, kind="stable")[:k]
        return tuple(Candidate(self.classes[i], int(i), float(scores[i])) for i in order)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which variant of a bundle runs, and why that one."""

    name: str
    backend: str
    precision: str
    reason: str


def softmax(logits: Logits) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Softmax over the last axis in float64, shifted by the maximum so that it cannot overflow."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


class Classifier:
    """Predicts from paths, bytes, PIL images and uint8 arrays. Safe to share between threads.

    Usually made by ``edgekiln.runtime.load``. Use it as a context manager, or call ``close``.
    """

    def __init__(self, session: Session, contract: Contract, variant: Selection) -> None:
        if session.frame_shape != (contract.height, contract.width):
            raise EngineError(
                f"The engine takes frames of {session.frame_shape}, the contract says "
                f"{(contract.height, contract.width)}."
            )
        if session.num_classes != len(contract.classes):
            raise EngineError(
                f"The engine gives {session.num_classes} logits, the contract names "
                f"{len(contract.classes)} classes."
            )
        self._session = session
        self._contract = contract
        self._variant = variant

    @property
    def contract(self) -> Contract:
        """How pictures are prepared, and the class names."""
        return self._contract

    @property
    def session(self) -> Session:
        """The engine, for callers that prepare their own frames."""
        return self._session

    @property
    def variant(self) -> Selection:
        """Which variant runs, and why."""
        return self._variant

    def predict(self, picture: Picture, *, color_order: ColorOrder = "rgb") -> Prediction:
        """Classify one picture.

        Args:
            picture: path, encoded bytes, PIL image, or uint8 array (H, W, 3).
            color_order: ``bgr`` for arrays as OpenCV and camera drivers give them.

        Raises:
            ImageError: the picture cannot be read.
            NonFiniteError: the engine gave NaN or infinity.
        """
        return self.predict_batch([picture], color_order=color_order)[0]

    def predict_batch(
        self, pictures: Iterable[Picture], *, color_order: ColorOrder = "rgb"
    ) -> list[Prediction]:
        """Classify several pictures in one call of the engine, in their order; see ``predict``."""
        if isinstance(pictures, str | bytes | os.PathLike):
            raise UsageError("predict_batch takes several pictures, got one.", hint="Use predict.")
        frames = [prepare(picture, self._contract, color_order=color_order) for picture in pictures]
        if not frames:
            return []
        return [self._answer(row) for row in self._session.run(np.stack(frames))]

    def _answer(self, logits: Logits) -> Prediction:
        row = logits.copy()  # a view would keep the whole batch alive
        row.flags.writeable = False
        index = int(row.argmax())
        score = float(softmax(row)[index])
        return Prediction(self._contract.classes[index], index, score, row, self._contract.classes)

    def warm_up(self, runs: int = 3) -> None:
        """Run grey frames so that the first real picture does not pay for lazy initialization."""
        frames = np.full((1, self._contract.height, self._contract.width, 3), 127, np.uint8)
        for _ in range(runs):
            self._session.run(frames)

    def close(self) -> None:
        """Free the engine. Closing twice does nothing."""
        self._session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
