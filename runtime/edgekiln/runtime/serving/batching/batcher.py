"""Groups the requests of many callers into batches: ``max_batch`` of them or ``max_wait_us``, whichever comes first.

A picture is prepared before it is queued: in the caller's thread by ``submit``, which so brings its own processor
time and its own back pressure, and in a small pool by ``predict_async``, since an event loop must not decode. One
thread runs the engine, and hands answers to another one where the next batch waits already. Everything is bounded:
what is being prepared and what waits count against ``max_queue``.

A queued request holds the model that prepared it, so a reload may come at any time: a batch never mixes models.
This module has the threads and the one lock. What they share has none of its own: ``queue.py``, ``wait.py`` and
``counters.py``; only the thread of ``telling.py`` is its own.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from types import TracebackType
from typing import TypeVar, cast
from weakref import WeakSet

from edgekiln.runtime.arguments import MAX_THREADS, check_duration, check_whole_number
from edgekiln.runtime.errors import DeadlineError, EdgekilnError, OverloadedError, UsageError
from edgekiln.runtime.limits import explain_no_thread, start_thread
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture
from edgekiln.runtime.processes import HomeProcess, NotPicklable
from edgekiln.runtime.serving.batching.counters import BatcherCounters, Tally
from edgekiln.runtime.serving.batching.queue import RequestQueue
from edgekiln.runtime.serving.batching.request import TAKEN_AWAY, Answer, Request, claim
from edgekiln.runtime.serving.batching.telling import Teller
from edgekiln.runtime.serving.batching.wait import BatchWait
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Prediction
from edgekiln.runtime.spec import Logits

__all__ = ["Batcher"]

_log = logging.getLogger("edgekiln.runtime")
_T = TypeVar("_T")
_POOL_NAME = "edgekiln-prepare"


class Batcher(NotPicklable):
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
        self._home = HomeProcess()
        # Guards everything below. Taken as itself and not as the condition, whose methods are Python: an interrupt
        # inside them would leave it locked for good.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue = RequestQueue(max_queue)
        self._wait = BatchWait(max_wait_us / 1e6)
        self._running: list[Request] = []
        self._closed = self._dropping = False
        self._prepare_threads = prepare_threads
        self._pool: ThreadPoolExecutor | None = None
        self._tally = Tally()
        self._teller = Teller()
        self._thread = start_thread(self._serve, "edgekiln-batcher", daemon=True)
        _open_batchers.add(self)

    def submit(
        self,
        picture: Picture,
        *,
        deadline_ms: float | None = None,
        color_order: ColorOrder = "rgb",
        in_pool: bool = False,
    ) -> Answer:
        """Prepare a picture here and now, and queue it. Returns a ``concurrent.futures.Future`` of the prediction.

        A picture that cannot be read fails its own future, with the ImageError of ``Classifier.predict``. Cancelling
        a future that waits takes it out of the queue; one whose batch runs cannot be cancelled any more. The ``times``
        of an answered future tell where the milliseconds went: ``decode_ms``, ``wait_ms``, ``engine_ms``, and the
        ``batch``.

        Args:
            picture: as for ``Classifier.predict``.
            deadline_ms: milliseconds from now by which its batch has to begin, or the future gets a DeadlineError.
                It is told when the engine is free the next time; a batch that has begun is answered.
            color_order: as for ``Classifier.predict``.
            in_pool: prepare it in the pool of ``predict_async``, and return at once.

        Raises:
            OverloadedError: ``max_queue`` requests wait already.
            UsageError: the batcher or its classifier is closed.
            ForkedError: this is a fork of the process that made the batcher.
        """
        request = self._admit(picture, deadline_ms, color_order)
        if in_pool:
            self._hand_to_pool(request)
            return request.future
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
            request.picture = TAKEN_AWAY  # it may still lie in the pool's own queue, which has no bound
            self._leave_place(request)
            raise

    def read_counters(self) -> BatcherCounters:
        """What was done so far; from any thread, at any time, also after ``close``.

        Raises:
            ForkedError: this is a fork of the process that made the batcher.
        """
        self._home.check()
        with self._lock:
            waiting, tally = len(self._queue), self._tally.copy()
        return tally.summarize(waiting)

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, end those that wait, and stop the threads. Closing twice does nothing.

        Args:
            drain: answer what waits; otherwise its futures get a UsageError. The batch that runs is answered anyway.
        """
        if not self._home.is_here:
            return  # the threads are the parent's
        dropped: list[Request] = []
        with self._lock:
            self._closed = True
            if not drain:
                self._dropping = True
                dropped.extend(self._queue.waiting)
                self._queue.waiting.clear()
            self._changed.notify_all()
        for request in dropped:
            self._fail_unrun(request, _closed_error())
        if self._pool is not None:  # whose threads may call this, too
            self._pool.shutdown(wait=not threading.current_thread().name.startswith(_POOL_NAME))
        # A future's callback may close the batcher: neither of the two threads may then wait for itself or the other.
        outside = not self._is_in_own_thread()
        if outside or self._teller.is_here():
            self._thread.join()
        self._teller.close(wait=outside)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    # -- in the caller's thread, and in the pool

    def _admit(self, picture: Picture, deadline_ms: float | None, color_order: ColorOrder) -> Request:
        """Take a place in the queue before any work is spent on the picture."""
        self._home.check()
        if deadline_ms is not None:
            check_duration("deadline_ms", deadline_ms, "milliseconds", zero=False)
        begun = monotonic()
        deadline = None if deadline_ms is None else begun + deadline_ms / 1000
        request = Request(picture, color_order, begun, deadline, Answer(self._queue.note_cancelled))
        try:
            self._take_place(request)
            request.model = self._classifier.hold()
        except BaseException:
            self._leave_place(request)
            raise
        return request

    def _take_place(self, request: Request) -> None:
        now = request.begun
        with self._lock:
            if self._closed:
                raise _closed_error()
            swept = self._queue.sweep(now) if self._queue.is_full() else []
            refused = self._queue.is_full()
            if not refused:
                self._queue.preparing.add(request)
            self._tally.ended["refused"] += refused
        for gone in swept:
            self._begin(gone, now)
        if refused:
            raise OverloadedError(
                f"{self._max_queue} requests wait already, as many as max_queue allows.",
                hint="Ask again later, or send fewer.",
            )

    def _leave_place(self, request: Request) -> None:
        with self._lock:
            self._queue.preparing.discard(request)
            self._changed.notify_all()

    def _hand_to_pool(self, request: Request) -> None:
        error: EdgekilnError = _closed_error()
        with self._lock:  # so that no pool is made, and none is handed anything, once `close` has begun
            if not self._closed:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self._prepare_threads, _POOL_NAME)
                try:
                    self._pool.submit(self._prepare, request)
                    return
                except RuntimeError as refusal:  # a thread of the pool that lives may take it up all the same
                    request.picture = TAKEN_AWAY
                    error = explain_no_thread(_POOL_NAME, refusal)
        self._leave_place(request)
        self._fail_unrun(request, error)

    def _prepare(self, request: Request) -> None:
        """Decode and queue. What goes wrong is the request's own."""
        now = request.taken_up = monotonic()
        if request.ended:
            return
        if request.is_expired(now):  # it waited for the pool
            self._leave_place(request)
            self._begin(request, now)
            return
        try:
            picture = request.picture  # which a cancellation may take away at any moment
            if picture is not TAKEN_AWAY and not (request.future.cancelled() or self._dropping):
                request.frame = request.model.prepare(picture, request.color_order)
        except BaseException as error:
            self._leave_place(request)
            self._fail_unrun(request, error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C while decoding is also the caller's
            return
        finally:
            request.picture = TAKEN_AWAY  # the frame is all that is needed; encoded bytes may be many
        if not self._enqueue(request):
            self._fail_unrun(request, _closed_error())

    def _enqueue(self, request: Request) -> bool:
        """False where the batcher was told meanwhile to drop what waits."""
        request.queued = monotonic()
        with self._lock:
            self._queue.preparing.discard(request)
            if not self._dropping:
                self._queue.append(request)
            hurries = request.hurries_at < self._wait.wakes_at
            # The engine's thread sleeps for the first of a batch and for the last one, not for those between.
            if len(self._queue.waiting) in (1, self._max_batch) or self._closed or hurries:
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
        self._teller.tell_kept()
        with self._lock:
            self._closed = self._dropping = True
            waiting = [*self._running, *self._queue.waiting]
            self._queue.waiting.clear()
            self._changed.notify_all()
        error = EdgekilnError("The batcher has ended by an error of its own: see the log.")
        self._end(waiting, "failed")
        for request in waiting:
            if not request.future.done():
                self._settle(request.future.set_exception, error)

    def _serve_one(self) -> bool:
        """Wait for a batch and run it; False when the batcher is closed and nothing is left."""
        with self._lock:
            if len(self._queue.waiting) < self._max_batch:  # the next batch is not now
                self._teller.tell_kept()
            self._changed.wait_for(self._has_work_or_ends)
            if not self._queue.waiting:
                return False
            self._wait_for_more()
            batch = self._queue.take_batch(self._max_batch)
        now = monotonic()
        self._running = batch
        self._run([request for request in batch if self._begin(request, now)])
        self._running = []
        return True

    def _has_work_or_ends(self) -> bool:
        """What is still prepared is waited for, unless it would be dropped anyway."""
        return bool(self._queue.waiting) or (self._closed and (self._dropping or not self._queue.preparing))

    def _wait_for_more(self) -> None:
        """Until the batch is full or its first picture has waited long enough; at once when closing."""
        end = self._wait.end_for(self._queue.waiting[0].queued)
        while self._queue.waiting and len(self._queue.waiting) < self._max_batch and not self._closed:
            # Nor must waiting for others make late what the engine, which is free, could answer in time.
            self._wait.wakes_at = min(end, *(request.hurries_at for request in self._queue.waiting))
            begun = monotonic()
            left = self._wait.wakes_at - begun
            if left <= 0:
                return
            if not self._changed.wait(min(left, threading.TIMEOUT_MAX)):
                self._wait.learn(monotonic() - begun - left)
                return

    def _begin(self, request: Request, now: float) -> bool:
        """Whether a request is still wanted; otherwise it is ended here."""
        if request.is_expired(now):
            self._fail_unrun(request, request.explain_lateness(now))
            return False
        if request.frame is None:  # taken away by a task whose future has not heard of it yet
            request.future.cancel()
        if claim(request.future):
            return True
        self._end([request], "cancelled")
        return False

    def _run(self, batch: Sequence[Request]) -> None:
        """Answer a batch. One that fails is run again one by one, so that only the culprit fails."""
        if not batch:
            self._teller.tell_kept()
            return
        with self._lock:
            self._tally.batches[len(batch)] += 1
        try:
            # Each has one: without it a request does not begin.
            frames = batch[0].model.stack([cast("Frame", request.frame) for request in batch])
            self._teller.tell_kept()  # not before: while an array is copied, the other thread would take over
            ran = monotonic()
            logits = batch[0].model.session.run(frames)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._run([request])
                return
            self._end(batch, "failed")
            self._settle(batch[0].future.set_exception, error)
            return
        now = monotonic()
        another_waits = len(self._queue.waiting) >= self._max_batch
        self._teller.tell(lambda: self._answer(batch, logits, ran, now), later=another_waits)

    # -- in the teller's thread, or in the one that runs the engine

    def _answer(self, batch: Sequence[Request], logits: Logits, ran: float, now: float) -> None:
        """Tell a batch that the engine began at ``ran`` and ended ``now`` what it said."""
        for request in batch:
            request.note_times(ran, now, len(batch))
        try:
            predictions = batch[0].model.read(logits)
        except Exception as error:
            self._end(batch, "failed")
            for request in batch:
                self._settle(request.future.set_exception, error)
            return
        self._end(batch, "answered")
        for request, prediction in zip(batch, predictions, strict=True):
            self._settle(request.future.set_result, prediction)

    # -- in any of them

    def _fail_unrun(self, request: Request, error: BaseException) -> None:
        """End a request whose batch has not begun."""
        if not claim(request.future):
            self._end([request], "cancelled")
            return
        self._end([request], "expired" if isinstance(error, DeadlineError) else "failed")
        self._settle(request.future.set_exception, error)

    def _settle(self, settle: Callable[[_T], None], value: _T) -> None:
        """End a future. A callback of it that calls ``sys.exit`` must not end a thread that serves all others."""
        try:
            settle(value)
        except BaseException:
            if not self._is_in_own_thread():
                raise
            _log.exception("a callback of a future raised in the batcher's thread")

    def _is_in_own_thread(self) -> bool:
        return threading.current_thread() is self._thread or self._teller.is_here()

    def _end(self, requests: Sequence[Request], end: str) -> None:
        """Count, and let go of the model, once: before a future tells, so that whoever waits for it sees both done."""
        now = monotonic()
        with self._lock:
            fresh = [request for request in requests if not request.ended]
            for request in fresh:
                request.ended = True
            self._tally.ended[end] += len(fresh)
            if end == "answered":
                self._tally.latencies_ms.extend(1000 * (now - request.begun) for request in fresh)
        for request in fresh:
            request.model.release()


def _closed_error() -> UsageError:
    return UsageError("This batcher is closed.")


_open_batchers: WeakSet[Batcher] = WeakSet()


def _close_all() -> None:
    """A thread that is inside an engine library when the interpreter goes away may take the process down."""
    for batcher in list(_open_batchers):
        batcher.close(drain=False)


atexit.register(_close_all)
