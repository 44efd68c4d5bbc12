"""The requests that a batcher has taken: which are being prepared, which wait, and which of them run together.

It has no lock and wakes nobody: its owner's lock guards it, but for ``note_cancelled``, which any thread may call.
"""

from __future__ import annotations

import math
from collections import deque

from edgekiln.runtime.serving.batching.request import Request

__all__ = ["RequestQueue"]


class RequestQueue:
    """What is being prepared and what waits, together at most ``max_queue`` requests.

    Attributes:
        waiting: prepared requests, in the order in which they run.
        preparing: requests that have a place and are not ready yet.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self.waiting: deque[Request] = deque()
        self.preparing: set[Request] = set()
        self._maybe_gone = False  # whether one that waits may have been cancelled
        self._first_deadline = math.inf  # of those that wait, or earlier

    def __len__(self) -> int:
        return len(self.preparing) + len(self.waiting)

    def is_full(self) -> bool:
        """Whether there is no place left."""
        return len(self) >= self._max_queue

    def note_cancelled(self) -> None:
        """Tell that a request was cancelled, which may be one that waits."""
        self._maybe_gone = True

    def append(self, request: Request) -> None:
        """Let a prepared request wait."""
        self.waiting.append(request)
        if request.deadline is not None:
            self._first_deadline = min(self._first_deadline, request.deadline)

    def sweep(self, now: float) -> list[Request]:
        """Take out what will not run: what was cancelled, or came too late, must not keep others out.

        Refusing has to be cheap, or those who ask again keep the engine's thread from the lock.
        """
        if not self._maybe_gone and now < self._first_deadline:
            return []
        self._maybe_gone = False
        swept: list[Request] = []
        kept: list[Request] = []
        for request in self.waiting:
            gone = request.future.cancelled() or request.is_expired(now)
            (swept if gone else kept).append(request)
        self.waiting = deque(kept)
        self._first_deadline = min((r.deadline for r in kept if r.deadline is not None), default=math.inf)
        return swept

    def take_batch(self, max_batch: int) -> list[Request]:
        """The longest run of requests of one model from the front; none where all were swept meanwhile."""
        batch: list[Request] = []
        while self.waiting and len(batch) < max_batch:
            if batch and self.waiting[0].model is not batch[0].model:
                break
            batch.append(self.waiting.popleft())
        return batch
