"""Groups the requests of many callers into batches: ``max_batch`` of them or ``max_wait_us``, whichever comes first.

A picture is prepared before it is queued: in the caller's thread by ``submit``, which so brings its own processor
time and its own back pressure, and in a small pool by ``predict_async``, since an event loop must not decode. One
thread runs the engine. Everything is bounded: what is being prepared and what waits count against ``max_queue``.

A queued request holds the model that prepared it, so a reload may come at any time: a batch never mixes models.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, cast
from weakref import WeakSet

import numpy as np

from edgekiln.runtime.arguments import MAX_THREADS, check_duration, check_whole_number
from edgekiln.runtime.errors import DeadlineError, EdgekilnError, OverloadedError, UsageError
from edgekiln.runtime.forking import HomeProcess
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.loaded import LoadedModel
from edgekiln.runtime.serving.prediction import Prediction
from edgekiln.runtime.threads import explain_no_thread, start_thread

__all__ = ["Batcher", "BatcherCounters"]

_log = logging.getLogger("edgekiln.runtime")
_T = TypeVar("_T")

# Sleeps end late: by Linux's timer slack (50 us, PR_SET_TIMERSLACK in prctl(2)) and by what it takes to wake a core.
# How late is learned from the sleeps themselves, since max_wait_us is meant as an upper bound.
_FIRST_LATENESS_S, _MOST_LATENESS_S, _LEARNING_RATE = 50e-6, 300e-6, 0.1
# An answer ends with waking its caller, which cannot be seen from here; measured on the cores that the figures are of.
_HANDOVER_S = 40e-6
_MARGIN, _LEAST_MARGIN_S = 0.1, 1e-3
_WINDOW = 2048  # answers: enough for a p99 of 20 samples, and 16 KiB

_TAKEN_AWAY: Any = object()
"""In a picture's place: it has been prepared, or its task was cancelled. Anything else may be a caller's picture."""
_POOL_NAME = "edgekiln-prepare"
_ENDS = ("answered", "failed", "cancelled", "expired", "refused")


@dataclass(frozen=True, slots=True)
class BatcherCounters:
    """What a batcher has done since it was made.

    Attributes:
        waiting: requests that are being prepared or wait for the engine, now.
        answered, failed, cancelled, expired, refused: requests that ended so. Refused ones were never taken.
        batches: how often the engine ran a batch of each size.
        latency_ms: ``p50``, ``p90`` and ``p99`` from the call to the answer, over the last 2,048 answers; empty
            before the first.
    """

    waiting: int
    answered: int
    failed: int
    cancelled: int
    expired: int
    refused: int
    batches: Mapping[int, int]
    latency_ms: Mapping[str, float]


class _Answer(Future[Prediction]):
    """Tells when it is cancelled, so that nobody has to look through the queue for it."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._on_cancel()
        return cancelled


@dataclass(eq=False, slots=True)
class _Request:
    """One picture on its way. ``begun`` and ``deadline`` are seconds of the monotonic clock."""

    picture: Picture
    color_order: ColorOrder
    begun: float
    deadline: float | None
    future: _Answer
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
        return self.deadline is not None and now >= self.deadline


class Batcher:
    """Answers single requests from any thread, or from asyncio, by running them in batches.

    The classifier stays the caller's: it may be reloaded meanwhile, and is to be closed after the batcher. Use the
    batcher as a context manager, or call ``close``. It belongs to the process that made it.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        max_batch: int = 8,
        max_wait_us: float = 1000,
        max_queue: int = 64,
        prepare_threads: int = 2,
    ) -> None:
        """Start the thread that runs the engine.

        Args:
            classifier: what answers.
            max_batch: pictures in a batch, at most.
            max_wait_us: how long the first picture of a batch waits for others, in microseconds.
            max_queue: requests that are being prepared or wait, at most; more are refused.
            prepare_threads: threads that decode for ``predict_async``; made when they are first needed.

        Raises:
            UsageError: a limit below 1, or a negative wait.
            ResourceError: no thread can be started.
        """
        check_whole_number("max_batch", max_batch)
        check_whole_number("max_queue", max_queue)
        check_whole_number("prepare_threads", prepare_threads, at_most=MAX_THREADS)
        check_duration("max_wait_us", max_wait_us, "microseconds", zero=True)
        self._classifier = classifier
        self._max_batch, self._max_queue = max_batch, max_queue
        self._max_wait_s = max_wait_us / 1e6
        self._lateness_s = _FIRST_LATENESS_S
        self._home = HomeProcess()
        # Guards everything below. Taken as itself and not as the condition, whose methods are Python: an interrupt
        # inside them would leave it locked for good.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[_Request] = deque()
        self._preparing: set[_Request] = set()
        self._maybe_gone = False  # whether one that waits may have been cancelled
        self._first_deadline = math.inf  # of those that wait, or earlier
        self._wakes_at = math.inf  # when the engine's thread stops waiting for more
        self._running: list[_Request] = []
        self._closed = self._dropping = False
        self._prepare_threads = prepare_threads
        self._pool: ThreadPoolExecutor | None = None
        self._ended: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=_WINDOW)
        self._thread = start_thread(self._serve, "edgekiln-batcher", daemon=True)
        _open_batchers.add(self)

    def submit(
        self, picture: Picture, *, deadline_ms: float | None = None, color_order: ColorOrder = "rgb"
    ) -> Future[Prediction]:
        """Prepare a picture here and now, and queue it.

        A picture that cannot be read fails its own future, with the ImageError of ``Classifier.predict``. Cancelling
        a future that waits takes it out of the queue; one whose batch runs cannot be cancelled any more.

        Args:
            picture: as for ``Classifier.predict``.
            deadline_ms: milliseconds from now by which its batch has to begin, or the future gets a DeadlineError.
                It is told when the engine is free the next time; a batch that has begun is answered.
            color_order: as for ``Classifier.predict``.

        Raises:
            OverloadedError: ``max_queue`` requests wait already.
            UsageError: the batcher or its classifier is closed.
            ForkedError: this is a fork of the process that made the batcher.
        """
        request = self._admit(picture, deadline_ms, color_order)
        try:
            self._prepare(request)
        except BaseException:  # Ctrl-C, wherever it came
            self._leave_place(request)
            raise
        return request.future

    async def predict_async(
        self, picture: Picture, *, deadline_ms: float | None = None, color_order: ColorOrder = "rgb"
    ) -> Prediction:
        """As ``submit``, with the picture prepared in the pool; raises what the future of ``submit`` would hold.

        Cancelling the task cancels the request.
        """
        request = self._admit(picture, deadline_ms, color_order)
        self._hand_to_pool(request)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            request.picture = _TAKEN_AWAY  # it may still lie in the pool's own queue, which has no bound
            self._leave_place(request)
            raise

    def read_counters(self) -> BatcherCounters:
        """What was done so far; from any thread, at any time, also after ``close``.

        Raises:
            ForkedError: this is a fork of the process that made the batcher.
        """
        self._home.check()
        with self._lock:
            waiting, latencies = len(self._preparing) + len(self._queue), list(self._latencies_ms)
            ended, batches = dict(self._ended), dict(sorted(self._batches.items()))
        percentiles = np.percentile(latencies, (50, 90, 99)).tolist() if latencies else []
        return BatcherCounters(
            waiting=waiting,
            batches=batches,
            latency_ms=dict(zip(("p50", "p90", "p99"), percentiles, strict=False)),
            **{end: ended.get(end, 0) for end in _ENDS},
        )

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, end those that wait, and stop the threads. Closing twice does nothing.

        Args:
            drain: answer what waits; otherwise its futures get a UsageError. The batch that runs is answered anyway.
        """
        if not self._home.is_here:
            return  # the threads are the parent's
        dropped: list[_Request] = []
        with self._lock:
            self._closed = True
            if not drain:
                self._dropping = True
                dropped.extend(self._queue)
                self._queue.clear()
            self._changed.notify_all()
        for request in dropped:
            self._fail_unrun(request, _closed_error())
        if self._pool is not None:  # whose threads may call this, too
            self._pool.shutdown(wait=not threading.current_thread().name.startswith(_POOL_NAME))
        if threading.current_thread() is not self._thread:  # a future's callback may close the batcher
            self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    # -- in the caller's thread, and in the pool

    def _admit(self, picture: Picture, deadline_ms: float | None, color_order: ColorOrder) -> _Request:
        """Take a place in the queue before any work is spent on the picture."""
        self._home.check()
        if deadline_ms is not None:
            check_duration("deadline_ms", deadline_ms, "milliseconds", zero=False)
        begun = monotonic()
        deadline = None if deadline_ms is None else begun + deadline_ms / 1000
        request = _Request(picture, color_order, begun, deadline, _Answer(self._note_cancelled))
        try:
            self._take_place(request)
            request.model = self._classifier.hold()
        except BaseException:
            self._leave_place(request)
            raise
        return request

    def _take_place(self, request: _Request) -> None:
        now = request.begun
        with self._lock:
            if self._closed:
                raise _closed_error()
            swept = self._sweep(now) if self._is_full() else []
            refused = self._is_full()
            if not refused:
                self._preparing.add(request)
            self._ended["refused"] += refused
        for gone in swept:
            self._begin(gone, now)
        if refused:
            raise OverloadedError(
                f"{self._max_queue} requests wait already, as many as max_queue allows.",
                hint="Ask again later, or send fewer.",
            )

    def _is_full(self) -> bool:
        return len(self._preparing) + len(self._queue) >= self._max_queue

    def _note_cancelled(self) -> None:
        self._maybe_gone = True

    def _sweep(self, now: float) -> list[_Request]:
        """Take out what will not run: what was cancelled, or came too late, must not keep others out.

        Refusing has to be cheap, or those who ask again keep the engine's thread from the lock.
        """
        if not self._maybe_gone and now < self._first_deadline:
            return []
        self._maybe_gone = False
        swept: list[_Request] = []
        kept: list[_Request] = []
        for request in self._queue:
            gone = request.future.cancelled() or request.is_expired(now)
            (swept if gone else kept).append(request)
        self._queue = deque(kept)
        self._first_deadline = min((r.deadline for r in kept if r.deadline is not None), default=math.inf)
        return swept

    def _leave_place(self, request: _Request) -> None:
        with self._lock:
            self._preparing.discard(request)
            self._changed.notify_all()

    def _hand_to_pool(self, request: _Request) -> None:
        error: EdgekilnError = _closed_error()
        with self._lock:  # so that no pool is made, and none is handed anything, once `close` has begun
            if not self._closed:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self._prepare_threads, _POOL_NAME)
                try:
                    self._pool.submit(self._prepare, request)
                    return
                except RuntimeError as refusal:  # a thread of the pool that lives may take it up all the same
                    request.picture = _TAKEN_AWAY
                    error = explain_no_thread(_POOL_NAME, refusal)
        self._leave_place(request)
        self._fail_unrun(request, error)

    def _prepare(self, request: _Request) -> None:
        """Decode and queue. What goes wrong is the request's own."""
        now = monotonic()
        if request.ended:
            return
        if request.is_expired(now):  # it waited for the pool
            self._leave_place(request)
            self._begin(request, now)
            return
        try:
            picture = request.picture  # which a cancellation may take away at any moment
            if picture is not _TAKEN_AWAY and not (request.future.cancelled() or self._dropping):
                request.frame = request.model.prepare(picture, request.color_order)
        except BaseException as error:
            self._leave_place(request)
            self._fail_unrun(request, error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C while decoding is also the caller's
            return
        finally:
            request.picture = _TAKEN_AWAY  # the frame is all that is needed; encoded bytes may be many
        if not self._enqueue(request):
            self._fail_unrun(request, _closed_error())

    def _enqueue(self, request: _Request) -> bool:
        """False where the batcher was told meanwhile to drop what waits."""
        request.queued = monotonic()
        with self._lock:
            self._preparing.discard(request)
            if not self._dropping:
                self._queue.append(request)
            hurries = False
            if request.deadline is not None:
                self._first_deadline = min(self._first_deadline, request.deadline)
                hurries = request.hurries_at < self._wakes_at
            # The engine's thread sleeps for the first of a batch and for the last one, not for those between.
            if len(self._queue) in (1, self._max_batch) or self._closed or hurries:
                self._changed.notify_all()
            return not self._dropping

    # -- in the thread that runs the engine

    def _serve(self) -> None:
        try:
            while self._serve_one():
                pass
        except BaseException:  # whatever it was, nobody must wait for ever
            _log.exception("the batcher's thread has ended by an error of its own")
            self._give_up()

    def _give_up(self) -> None:
        with self._lock:
            self._closed = self._dropping = True
            waiting = [*self._running, *self._queue]
            self._queue.clear()
            self._changed.notify_all()
        error = EdgekilnError("The batcher has ended by an error of its own: see the log.")
        self._end(waiting, "failed")
        for request in waiting:
            if not request.future.done():
                self._settle(request.future.set_exception, error)

    def _serve_one(self) -> bool:
        """Wait for a batch and run it; False when the batcher is closed and nothing is left."""
        with self._lock:
            self._changed.wait_for(self._has_work_or_ends)
            if not self._queue:
                return False
            self._wait_for_more()
            batch = self._take_batch()
        now = monotonic()
        self._running = batch
        self._run([request for request in batch if self._begin(request, now)])
        self._running = []
        return True

    def _has_work_or_ends(self) -> bool:
        """What is still prepared is waited for, unless it would be dropped anyway."""
        return bool(self._queue) or (self._closed and (self._dropping or not self._preparing))

    def _wait_for_more(self) -> None:
        """Until the batch is full or its first picture has waited long enough; at once when closing."""
        early = min(self._lateness_s + _HANDOVER_S, self._max_wait_s / 2)
        end = self._queue[0].queued + self._max_wait_s - early
        while self._queue and len(self._queue) < self._max_batch and not self._closed:
            # Nor must waiting for others make late what the engine, which is free, could answer in time.
            self._wakes_at = min(end, *(request.hurries_at for request in self._queue))
            begun = monotonic()
            left = self._wakes_at - begun
            if left <= 0:
                return
            if not self._changed.wait(min(left, threading.TIMEOUT_MAX)):
                late = min(monotonic() - begun - left, _MOST_LATENESS_S)
                self._lateness_s += _LEARNING_RATE * (late - self._lateness_s)
                return

    def _take_batch(self) -> list[_Request]:
        """The longest run of requests of one model from the front; none where all were swept meanwhile."""
        batch: list[_Request] = []
        while self._queue and len(batch) < self._max_batch:
            if batch and self._queue[0].model is not batch[0].model:
                break
            batch.append(self._queue.popleft())
        return batch

    def _begin(self, request: _Request, now: float) -> bool:
        """Whether a request is still wanted; otherwise it is ended here."""
        if request.is_expired(now):
            waited = 1000 * (now - request.begun)
            self._fail_unrun(
                request,
                DeadlineError(
                    f"The request waited for {waited:.1f} ms, past its deadline.",
                    hint="Allow more time, send fewer requests, or take a faster engine.",
                ),
            )
            return False
        if request.frame is None:  # taken away by a task whose future has not heard of it yet
            request.future.cancel()
        if _claim(request.future):
            return True
        self._end([request], "cancelled")
        return False

    def _run(self, batch: Sequence[_Request]) -> None:
        """Answer a batch. One that fails is run again one by one, so that only the culprit fails."""
        if not batch:
            return
        with self._lock:
            self._batches[len(batch)] += 1
        try:
            # Each has one: without it a request does not begin.
            frames = [cast("Frame", request.frame) for request in batch]
            predictions = batch[0].model.predict_frames(frames)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._run([request])
                return
            self._end(batch, "failed")
            self._settle(batch[0].future.set_exception, error)
            return
        self._end(batch, "answered")
        for request, prediction in zip(batch, predictions, strict=True):
            self._settle(request.future.set_result, prediction)

    # -- in any of them

    def _fail_unrun(self, request: _Request, error: BaseException) -> None:
        """End a request whose batch has not begun."""
        if not _claim(request.future):
            self._end([request], "cancelled")
            return
        self._end([request], "expired" if isinstance(error, DeadlineError) else "failed")
        self._settle(request.future.set_exception, error)

    def _settle(self, settle: Callable[[_T], None], value: _T) -> None:
        """End a future. A callback of it that calls ``sys.exit`` must not end the thread that serves all others."""
        try:
            settle(value)
        except BaseException:
            if threading.current_thread() is not self._thread:
                raise
            _log.exception("a callback of a future raised in the batcher's thread")

    def _end(self, requests: Sequence[_Request], end: str) -> None:
        """Count, and let go of the model, once: before a future tells, so that whoever waits for it sees both done."""
        now = monotonic()
        with self._lock:
            fresh = [request for request in requests if not request.ended]
            for request in fresh:
                request.ended = True
            self._ended[end] += len(fresh)
            if end == "answered":
                self._latencies_ms.extend(1000 * (now - request.begun) for request in fresh)
        for request in fresh:
            request.model.release()


def _claim(future: _Answer) -> bool:
    """Whether a future still waits: it was neither cancelled nor ended by whoever holds it. From now on it is ours."""
    if future.done() and not future.cancelled():
        return False
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # between the two lines, or told of its cancellation already
        return False


def _closed_error() -> UsageError:
    return UsageError("This batcher is closed.")


_open_batchers: WeakSet[Batcher] = WeakSet()


def _close_all() -> None:
    """A thread that is inside an engine library when the interpreter goes away may take the process down."""
    for batcher in list(_open_batchers):
        batcher.close(drain=False)


atexit.register(_close_all)
