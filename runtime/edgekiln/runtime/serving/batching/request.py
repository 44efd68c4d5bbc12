"""One picture on its way through a batcher, and the future that its caller holds.

Knows nothing of queues, batches or threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from edgekiln.runtime.errors import DeadlineError
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture
from edgekiln.runtime.serving.loaded import LoadedModel
from edgekiln.runtime.serving.prediction import Prediction

__all__ = ["TAKEN_AWAY", "Answer", "Request", "RequestTimes", "claim"]

_MARGIN, _LEAST_MARGIN_S = 0.1, 1e-3

TAKEN_AWAY: Any = object()
"""In a picture's place: it has been prepared, or its task was cancelled. Anything else may be a caller's picture."""


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Where the time of one answered request went, in milliseconds; together from the call to the answer.

    Attributes:
        decode_ms: preparing the picture.
        wait_ms: for a thread of the pool, for others of its batch, and for the engine.
        engine_ms: the engine's call for the whole batch.
        batch: pictures in that batch.
    """

    decode_ms: float
    wait_ms: float
    engine_ms: float
    batch: int


class Answer(Future[Prediction]):
    """Tells when it is cancelled, so that nobody has to look through the queue for it."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel
        self.spent: tuple[float, float, float, int] | None = None

    @property
    def times(self) -> RequestTimes | None:
        """Where the time went; ``None`` before the prediction is there, and where there is none."""
        if self.spent is None:  # plain numbers until somebody asks: every answer has them, and few are asked
            return None
        decode, wait, engine, batch = self.spent
        return RequestTimes(1000 * decode, 1000 * wait, 1000 * engine, batch)

    def cancel(self) -> bool:
        """As ``Future.cancel``, and tells of it."""
        cancelled = super().cancel()
        if cancelled:
            self._on_cancel()
        return cancelled


@dataclass(eq=False, slots=True)
class Request:
    """One picture on its way. Times are seconds of the monotonic clock."""

    picture: Picture
    color_order: ColorOrder
    begun: float
    deadline: float | None
    future: Answer
    model: LoadedModel = field(init=False)
    frame: Frame | None = None
    taken_up: float = 0.0  # when preparing began
    queued: float = 0.0
    ended: bool = False  # counted, and its model let go of

    @property
    def hurries_at(self) -> float:
        """When its batch should begin at the latest: somewhat before the deadline, since waking takes time."""
        if self.deadline is None:
            return math.inf
        return self.deadline - max(_LEAST_MARGIN_S, _MARGIN * (self.deadline - self.begun))

    def note_times(self, ran: float, now: float, batch: int) -> None:
        """Tell where its time went: the engine began its batch of so many pictures at ``ran`` and ends ``now``."""
        decode, engine = self.queued - self.taken_up, now - ran
        self.future.spent = decode, now - self.begun - decode - engine, engine, batch

    def is_expired(self, now: float) -> bool:
        """Whether its deadline is over."""
        return self.deadline is not None and now >= self.deadline

    def explain_lateness(self, now: float) -> DeadlineError:
        """What the future of a request is told that is expired ``now``."""
        return DeadlineError(
            f"The request waited for {1000 * (now - self.begun):.1f} ms, past its deadline.",
            hint="Allow more time, send fewer requests, or take a faster engine.",
        )


def claim(future: Answer) -> bool:
    """Whether a future still waits: it was neither cancelled nor ended by whoever holds it. From now on it is ours."""
    if future.done() and not future.cancelled():
        return False
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # between the two lines, or told of its cancellation already
        return False
