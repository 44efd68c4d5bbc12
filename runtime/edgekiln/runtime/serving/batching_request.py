"""One picture on its way through a batcher, and the future that its caller holds.

Knows nothing of queues, batches or threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture
from edgekiln.runtime.serving.loaded import LoadedModel
from edgekiln.runtime.serving.prediction import Prediction

__all__ = ["TAKEN_AWAY", "Answer", "Request", "claim"]

_MARGIN, _LEAST_MARGIN_S = 0.1, 1e-3

TAKEN_AWAY: Any = object()
"""In a picture's place: it has been prepared, or its task was cancelled. Anything else may be a caller's picture."""


class Answer(Future[Prediction]):
    """Tells when it is cancelled, so that nobody has to look through the queue for it."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """As ``Future.cancel``, and tells of it."""
        cancelled = super().cancel()
        if cancelled:
            self._on_cancel()
        return cancelled


@dataclass(eq=False, slots=True)
class Request:
    """One picture on its way. ``begun`` and ``deadline`` are seconds of the monotonic clock."""

    picture: Picture
    color_order: ColorOrder
    begun: float
    deadline: float | None
    future: Answer
    model: LoadedModel = field(init=False)
    frame: Frame | None = None
    queued: float = 0.0
    ended: bool = False  # counted, and its model let go of

    @property
    def hurries_at(self) -> float:
        """When its batch should begin at the latest: somewhat before the deadline, since waking takes time."""
        if self.deadline is None:
            return math.inf
        return self.deadline - max(_LEAST_MARGIN_S, _MARGIN * (self.deadline - self.begun))

    def is_expired(self, now: float) -> bool:
        """Whether its deadline is over."""
        return self.deadline is not None and now >= self.deadline


def claim(future: Answer) -> bool:
    """Whether a future still waits: it was neither cancelled nor ended by whoever holds it. From now on it is ours."""
    if future.done() and not future.cancelled():
        return False
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # between the two lines, or told of its cancellation already
        return False
