"""A session with its contract, closed when it was retired and its last call has ended.

That is what makes a hot swap invisible: a call holds the model that it began with, and the model lives until the
last of them lets go. This module knows nothing of bundles.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

import numpy as np

from edgekiln.runtime.bundles.canaries import CanaryResult
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EngineError, InputError
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture, prepare
from edgekiln.runtime.serving.memory import give_back_memory
from edgekiln.runtime.serving.prediction import Prediction, Selection, read_logits
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import DLPackArray, Frames, Logits

__all__ = ["LoadedModel", "ModelHolder"]

_log = logging.getLogger("edgekiln.runtime")


class LoadedModel:
    """One generation of a classifier's engine. Counts who uses it; safe from any thread.

    Attributes:
        fast_decode: JPEGs are decoded at a fraction of their size; see ``pictures/fast_decode.py``.
        self_test: what came of asking it the variant's canaries; ``None`` where it was not asked.
        before_batch: called with their number before pictures run together; it raises where they may not, and takes
            itself away.
    """

    def __init__(
        self, session: Session, contract: Contract, variant: Selection, *, fast_decode: bool = False
    ) -> None:
        _check_fit(session, contract)
        self.session = session
        self.contract = contract
        self.variant = variant
        self.fast_decode = fast_decode
        self.self_test: CanaryResult | None = None
        self.before_batch: Callable[[int], None] | None = None
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()

    def try_acquire(self) -> bool:
        """Become a user, who has to call ``release``; False where the model is retired."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """End a use; the last one of a retired model closes its session."""
        with self._lock:
            self._users -= 1
            last = self._retired and self._users == 0
        if last:
            self._close_after_the_last_call()

    def retire(self) -> None:
        """Take no more users, and close the session when the last one has gone. Retiring twice does nothing.

        Raises:
            EdgekilnError: the session has no user and could not be closed.
        """
        with self._lock:
            idle = not self._retired and self._users == 0
            self._retired = True
        if idle:
            self.session.close()

    def _close_after_the_last_call(self) -> None:
        """What goes wrong is logged: whoever made that call has an answer, and did not ask for the closing."""
        try:
            self.session.close()
        except Exception as error:
            _log.error("a model that was replaced or closed could not be freed: %s", error)
        give_back_memory()

    def prepare(self, picture: Picture, color_order: ColorOrder) -> Frame:
        """uint8 (height, width, 3) as this model's contract wants it; raises ImageError."""
        if self.fast_decode:
            from edgekiln.runtime.pictures.fast_decode import prepare_fast

            return prepare_fast(picture, self.contract, color_order=color_order)
        return prepare(picture, self.contract, color_order=color_order)

    def predict_frames(self, frames: Sequence[Frame]) -> list[Prediction]:
        """One call of the engine for frames that ``prepare`` made, at least one; the answers in their order.

        Raises:
            SelfTestError: the engine's first batch, which is of made pictures, was answered wrongly.
        """
        return self.read(self.session.run(self.stack(frames)))

    def stack(self, frames: Sequence[Frame]) -> Frames:
        """Frames that ``prepare`` made, at least one, as the session takes them; raises as ``predict_frames``."""
        if len(frames) > 1 and (ask := self.before_batch) is not None:
            ask(len(frames))
        return np.stack(frames) if len(frames) > 1 else frames[0][np.newaxis]  # one needs no copy

    def read(self, logits: Logits) -> list[Prediction]:
        """What logits of this model say, float32 (N, num_classes), in their order."""
        return read_logits(logits, self.contract.classes)

    def predict_array(self, frames: DLPackArray, color_order: ColorOrder) -> list[Prediction]:
        """One call of the engine for an array of another library with frames that are prepared; see ``Session.run``."""
        if color_order != "rgb":
            raise InputError(
                "Prepared frames of another library are RGB, got color_order='bgr'.",
                hint="Flip the channels there, or hand in pictures.",
            )
        count = int(getattr(frames, "shape", (2,))[0])
        if count > 1 and (ask := self.before_batch) is not None:
            ask(count)
        return self.read(self.session.run(frames))

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ModelHolder(Protocol):
    """What streams and the agreement of fast decoding need of a classifier."""

    def hold(self) -> LoadedModel:
        """The model that serves now, open until the caller calls its ``release`` or leaves its ``with``."""
        ...


def _check_fit(session: Session, contract: Contract) -> None:
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
