"""The batcher: what is grouped, what is refused, and that each request ends once and alone."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from serving_support import PATIENCE_S, GatedSession, flat

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import (
    DeadlineError,
    EdgekilnError,
    ExitCode,
    ImageError,
    NonFiniteError,
    OverloadedError,
    ResourceError,
    UsageError,
)
from edgekiln.runtime.serving.batching import wait as batching_wait
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection

SELECTION = Selection("fp32", "fake", "fp32", "made by hand")
FOREVER_US = 1e12  # a batch that is not full would never run


@pytest.fixture
def session():
    return GatedSession()


@pytest.fixture
def classifier(session, contract):
    with Classifier(session, contract, SELECTION) as classifier:
        yield classifier


@pytest.fixture
def held(session, classifier):
    """A batcher whose engine is busy with a first request: what is submitted now waits. (batcher, its future)"""
    session.gate.clear()
    with Batcher(classifier, max_batch=4, max_wait_us=0, max_queue=6) as batcher:
        first = batcher.submit(flat(1))
        session.wait_until_entered()
        yield batcher, first
        session.gate.set()


def red(future):
    return float(future.result(PATIENCE_S).logits[0])


def test_a_request_gets_the_classifiers_own_answer(classifier):
    with Batcher(classifier, max_wait_us=0) as batcher:
        got, wanted = batcher.submit(flat(3, 9, 5)).result(PATIENCE_S), classifier.predict(flat(3, 9, 5))
    assert (got.label, got.index, got.score) == (wanted.label, wanted.index, wanted.score) == (
        "green", 1, wanted.score,
    )  # fmt: skip
    np.testing.assert_array_equal(got.logits, wanted.logits)


def test_what_waits_is_run_together_up_to_max_batch(held, session):
    batcher, first = held
    futures = [batcher.submit(flat(i)) for i in range(10, 16)]
    session.gate.set()
    assert [red(future) for future in (first, *futures)] == [1, *range(10, 16)]
    assert session.batches == [1, 4, 2]
    assert batcher.read_counters().batches == {1: 1, 2: 1, 4: 1}


def test_a_full_batch_does_not_wait(classifier, session):
    with Batcher(classifier, max_batch=3, max_wait_us=FOREVER_US) as batcher:
        futures = [batcher.submit(flat(i)) for i in range(3)]
        assert [red(future) for future in futures] == [0, 1, 2]
    assert session.batches == [3]


def test_a_batch_that_is_not_full_runs_when_its_time_is_over(classifier, session):
    with Batcher(classifier, max_batch=100, max_wait_us=2000) as batcher:
        begun = time.monotonic()
        assert red(batcher.submit(flat(7))) == 7
        assert time.monotonic() - begun >= 0.002 - batching_wait._FIRST_LATENESS_S - batching_wait._HANDOVER_S
    assert session.batches == [1]


def test_where_sleeps_end_late_they_are_begun_shorter(classifier, monkeypatch):
    with Batcher(classifier, max_batch=100, max_wait_us=2000) as batcher:
        waits, real = [], batcher._changed.wait

        def wait_long(timeout=None):
            if timeout is None:
                return real()
            waits.append(timeout)
            time.sleep(timeout + 0.01)  # as on a processor that is slow to wake
            return False

        monkeypatch.setattr(batcher._changed, "wait", wait_long)
        while len(waits) < 40:
            assert red(batcher.submit(flat(7))) == 7
        assert (
            0.8 * batching_wait._MOST_LATENESS_S < batcher._wait.lateness_s <= batching_wait._MOST_LATENESS_S
        )
    assert max(waits[30:]) <= 0.002 - 0.8 * batching_wait._MOST_LATENESS_S


def test_waiting_for_others_makes_nobody_late(classifier, session):
    with Batcher(classifier, max_batch=100, max_wait_us=FOREVER_US) as batcher:
        patient = batcher.submit(flat(1))
        hurried = batcher.submit(flat(2), deadline_ms=2000)
        assert (red(patient), red(hurried)) == (1, 2)
    assert session.batches == [2]


def test_a_wait_beyond_what_a_lock_can_wait_is_a_long_one(classifier):
    with Batcher(classifier, max_batch=2, max_wait_us=1e300) as batcher:
        futures = [batcher.submit(flat(i)) for i in range(2)]
        assert [red(future) for future in futures] == [0, 1]


def test_a_callback_that_ends_its_thread_ends_only_itself(classifier, caplog):
    with Batcher(classifier, max_wait_us=0) as batcher:
        first = batcher.submit(flat(1))
        first.add_done_callback(lambda _: sys.exit())
        assert red(first) == 1
        assert red(batcher.submit(flat(2))) == 2


def test_being_refused_costs_no_walk_through_the_queue(held):
    batcher, _ = held
    for number in range(6):
        batcher.submit(flat(number), deadline_ms=1e9)
    queue = batcher._queue.waiting
    for _ in range(3):
        with pytest.raises(OverloadedError):
            batcher.submit(flat(9))
    assert batcher._queue.waiting is queue, "it was not gone through"


def test_what_waits_for_the_pool_can_be_cancelled_and_can_be_too_late(classifier, session, monkeypatch):
    decoding, go_on = threading.Event(), threading.Event()
    prepared = []
    model = classifier._model

    def prepare(picture, color_order):
        prepared.append(int(picture[0, 0, 0]))
        decoding.set()
        assert go_on.wait(PATIENCE_S)
        return picture

    monkeypatch.setattr(type(model), "prepare", lambda self, picture, order: prepare(picture, order))

    async def ask():
        with Batcher(classifier, max_wait_us=0, max_queue=3, prepare_threads=1) as batcher:
            first = asyncio.create_task(batcher.predict_async(flat(1)))
            while not decoding.is_set():
                await asyncio.sleep(0.001)
            late = asyncio.create_task(batcher.predict_async(flat(2), deadline_ms=1))
            cancelled = asyncio.create_task(batcher.predict_async(flat(3)))
            await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError):
                await batcher.predict_async(flat(4))
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            taken = asyncio.create_task(batcher.predict_async(flat(5)))
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(DeadlineError):
                await late
            assert [(await task).logits[0] for task in (first, taken)] == [1, 5]
            return batcher

    batcher = asyncio.run(ask())
    assert prepared == [1, 5], "the others were not decoded"
    counters = batcher.read_counters()
    assert (counters.answered, counters.cancelled, counters.expired, counters.refused) == (2, 1, 1, 1)
    assert counters.waiting == 0


def test_where_no_thread_can_be_had_any_more_it_is_told_and_nothing_hangs(classifier):
    class NoPool:
        def submit(self, *arguments):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

        def shutdown(self, wait):
            pass

    with Batcher(classifier) as batcher:
        batcher._pool = NoPool()
        with pytest.raises(ResourceError, match="edgekiln-prepare cannot be started: cannot schedule"):
            asyncio.run(batcher.predict_async(flat(1)))
        assert batcher.read_counters().waiting == 0


INTERRUPTS = """
import random, signal, sys, threading, time
from serving_support import GatedSession, flat
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier, Selection
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import OverloadedError
signal.signal(signal.SIGALRM, signal.default_int_handler)
contract = Contract(height=4, width=8, classes=("a", "b", "c"))
classifier = Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", ""))
random.seed(0)
for trial in range(300):
    batcher = Batcher(classifier, max_wait_us=0)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.005))
        end = time.monotonic() + 0.02  # Python swallows an interrupt that comes while it tidies up
        while time.monotonic() < end:
            try:
                batcher.submit(flat(1))
            except OverloadedError:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    closing = threading.Thread(target=batcher.close, kwargs={"drain": trial % 2 == 0}, daemon=True)
    closing.start()
    closing.join(20)
    if closing.is_alive():
        print("hangs", trial)
        sys.exit()
print("ends")
"""


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_a_batcher_that_can_be_closed():
    assert run_script(INTERRUPTS) == ["ends"]


def test_closing_ends_the_waiting_for_more(classifier, session):
    with Batcher(classifier, max_batch=100, max_wait_us=FOREVER_US) as batcher:
        futures = [batcher.submit(flat(i)) for i in range(3)]
    assert [red(future) for future in futures] == [0, 1, 2]
    assert session.batches == [3]


def test_a_full_queue_refuses_with_a_typed_error(held):
    batcher, _ = held
    futures = [batcher.submit(flat(i)) for i in range(6)]
    with pytest.raises(OverloadedError, match=r"6 requests wait already.*Ask again later") as caught:
        batcher.submit(flat(9))
    assert isinstance(caught.value, ResourceError)
    assert (caught.value.code, caught.value.exit_code) == ("overloaded", ExitCode.RESOURCES)
    counters = batcher.read_counters()
    assert (counters.waiting, counters.refused, counters.answered) == (6, 1, 0)
    assert not any(future.done() for future in futures)


def test_a_refused_picture_is_not_decoded(held, monkeypatch):
    batcher, _ = held
    for i in range(6):
        batcher.submit(flat(i))
    with pytest.raises(OverloadedError):
        batcher.submit("/no/such/picture.png")
    assert batcher.read_counters().failed == 0


def test_cancelled_and_late_requests_make_room(held, session):
    batcher, _ = held
    futures = [batcher.submit(flat(i)) for i in range(4)]
    late = [batcher.submit(flat(i), deadline_ms=1) for i in range(2)]
    assert futures[2].cancel()
    time.sleep(0.002)  # the monotonic clock is past the deadlines then, whatever the machine's load
    assert red_after(session, batcher.submit(flat(40))) == 40
    for future in late:
        with pytest.raises(DeadlineError):
            future.result(PATIENCE_S)
    assert futures[2].cancelled()
    assert [red(futures[i]) for i in (0, 1, 3)] == [0, 1, 3]
    counters = batcher.read_counters()
    assert (counters.cancelled, counters.expired, counters.refused, counters.answered) == (1, 2, 0, 5)


def red_after(session, future):
    session.gate.set()
    return red(future)


def test_a_cancelled_request_is_not_run(held, session):
    batcher, first = held
    kept, dropped = batcher.submit(flat(5)), batcher.submit(flat(6))
    assert dropped.cancel()
    assert not first.cancel()  # its batch runs
    session.gate.set()
    assert (red(first), red(kept)) == (1, 5)
    with pytest.raises(CancelledError):
        dropped.result(PATIENCE_S)
    assert session.batches == [1, 1]
    assert batcher.read_counters().cancelled == 1


def test_a_request_past_its_deadline_is_not_run(held, session):
    batcher, _ = held
    late, patient = batcher.submit(flat(5), deadline_ms=1), batcher.submit(flat(6), deadline_ms=1e9)
    time.sleep(0.002)
    session.gate.set()
    with pytest.raises(DeadlineError, match=r"waited for .* ms, past its deadline") as caught:
        late.result(PATIENCE_S)
    assert (caught.value.code, caught.value.exit_code) == ("deadline", ExitCode.RESOURCES)
    assert red(patient) == 6
    assert session.batches == [1, 1]
    assert batcher.read_counters().expired == 1


@pytest.mark.parametrize("deadline_ms", [0, -1, float("nan")])
def test_a_deadline_that_is_over_is_a_wrong_argument(classifier, deadline_ms):
    with Batcher(classifier) as batcher, pytest.raises(UsageError, match="deadline_ms must be over 0"):
        batcher.submit(flat(1), deadline_ms=deadline_ms)
    assert batcher.read_counters().waiting == 0


def test_a_broken_picture_fails_its_own_future_only(held, session):
    batcher, _ = held
    futures = [batcher.submit(picture) for picture in (flat(5), b"", "/no/such.png", 12, flat(6))]
    session.gate.set()
    for future, reason in zip(futures[1:4], ("format", "missing", "type"), strict=True):
        error = future.exception(PATIENCE_S)
        assert isinstance(error, ImageError)
        assert error.reason == reason
    assert (red(futures[0]), red(futures[4])) == (5, 6)
    assert session.batches == [1, 2]
    assert batcher.read_counters().failed == 3


def test_an_engine_that_fails_on_one_picture_fails_that_one_only(held, session):
    batcher, _ = held
    futures = [batcher.submit(flat(i)) for i in (5, 66, 7)]
    session.fails_on = 66
    session.gate.set()
    assert isinstance(futures[1].exception(PATIENCE_S), NonFiniteError)
    assert (red(futures[0]), red(futures[2])) == (5, 7)
    assert session.batches == [1, 3, 1, 1, 1]
    assert batcher.read_counters().failed == 1


def test_closing_answers_what_waits_and_refuses_what_comes(held, session):
    batcher, first = held
    futures = [first, *(batcher.submit(flat(i)) for i in range(2, 6))]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(UsageError, match="batcher is closed"):
        batcher.submit(flat(6))
    session.gate.set()
    closer.join(PATIENCE_S)
    assert [red(future) for future in futures] == [1, 2, 3, 4, 5]
    batcher.close()


def test_closing_without_draining_ends_what_waits_with_an_error(held, session):
    batcher, first = held
    waiting = [batcher.submit(flat(i)) for i in range(3)]
    closer = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closer.start()
    for future in waiting:
        with pytest.raises(UsageError, match="batcher is closed"):
            future.result(PATIENCE_S)
    assert not first.done()
    session.gate.set()
    closer.join(PATIENCE_S)
    assert red(first) == 1


def test_an_exception_in_the_with_block_does_not_wait_for_the_queue(classifier, session):
    futures = []

    def use_and_fail():
        with Batcher(classifier, max_batch=9, max_wait_us=FOREVER_US) as batcher:
            futures.append(batcher.submit(flat(1)))
            raise KeyError

    with pytest.raises(KeyError):
        use_and_fail()
    assert isinstance(futures[0].exception(PATIENCE_S), UsageError)


def test_a_future_s_callback_may_close_the_batcher(classifier):
    batcher, closed = Batcher(classifier, max_batch=1, max_wait_us=0), threading.Event()
    future = batcher.submit(flat(1))
    future.add_done_callback(lambda _: (batcher.close(), closed.set()))
    assert closed.wait(PATIENCE_S)
    batcher.close()
    assert not batcher._thread.is_alive()


def test_a_closed_classifier_is_told_and_takes_no_place(session, contract):
    classifier = Classifier(session, contract, SELECTION)
    with Batcher(classifier) as batcher:
        classifier.close()
        with pytest.raises(UsageError, match="session is closed"):
            batcher.submit(flat(1))
        assert batcher.read_counters().waiting == 0


def test_the_classifier_stays_open_and_is_let_go_of(classifier, session):
    with Batcher(classifier, max_wait_us=0) as batcher:
        batcher.submit(flat(1)).result(PATIENCE_S)
        batcher.submit(b"").exception(PATIENCE_S)
    assert session.closed == 0
    classifier.close()
    assert session.closed == 1


def test_counters_tell_percentiles_of_the_last_answers(classifier):
    with Batcher(classifier, max_wait_us=0) as batcher:
        assert batcher.read_counters().latency_ms == {}
        for i in range(20):
            batcher.submit(flat(i)).result(PATIENCE_S)
        counters = batcher.read_counters()
        batcher._tally.latencies_ms.extend([5.0] * 3000)
        assert batcher.read_counters().latency_ms == {"p50": 5.0, "p90": 5.0, "p99": 5.0}
    latency = counters.latency_ms
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert (counters.answered, counters.waiting) == (20, 0)


def test_answered_requests_keep_nothing_alive(classifier):
    with Batcher(classifier, max_wait_us=0) as batcher:
        future = batcher.submit(flat(1))
        future.result(PATIENCE_S)
        gone = weakref.ref(future)
        batcher.submit(flat(2)).result(PATIENCE_S)  # the engine's thread is past the first one
        del future
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("limit", ["max_batch", "max_queue", "prepare_threads"])
def test_limits_below_one_are_refused(classifier, limit):
    with pytest.raises(UsageError, match=f"{limit} must be at least 1, got 0"):
        Batcher(classifier, **{limit: 0})


@pytest.mark.parametrize("wait", [-1, float("inf"), float("nan")])
def test_a_wait_that_is_no_time_is_refused(classifier, wait):
    with pytest.raises(UsageError, match="max_wait_us must be 0 or more"):
        Batcher(classifier, max_wait_us=wait)


# -- asyncio


def test_asyncio_gets_the_same_answers_in_batches(held, session):
    batcher, _ = held

    async def ask():
        tasks = [asyncio.create_task(batcher.predict_async(flat(i))) for i in range(4)]
        while len(batcher._queue.waiting) < 4:
            await asyncio.sleep(0)
        session.gate.set()
        return [float(prediction.logits[0]) for prediction in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [0, 1, 2, 3]
    assert session.batches == [1, 4]


def test_asyncio_gets_typed_errors(held):
    batcher, _ = held

    async def ask():
        with pytest.raises(ImageError):
            await batcher.predict_async(b"")
        for i in range(6):
            batcher.submit(flat(i))
        with pytest.raises(OverloadedError):
            await batcher.predict_async(flat(1))

    asyncio.run(ask())


def test_cancelling_the_task_cancels_the_request(held, session):
    batcher, _ = held

    async def ask():
        task = asyncio.create_task(batcher.predict_async(flat(3)))
        while not batcher._queue.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    session.gate.set()
    batcher.close()
    assert session.batches == [1]
    assert batcher.read_counters().cancelled == 1


def test_a_request_for_the_pool_of_a_closed_batcher_is_refused(classifier, session):
    # The moment between being admitted and being handed over, without the luck that it takes to hit it.
    batcher = Batcher(classifier)
    request = batcher._admit(flat(1), None, "rgb")
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while not batcher._closed:
        time.sleep(0.001)
    batcher._hand_to_pool(request)
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert isinstance(request.future.exception(PATIENCE_S), UsageError)
    classifier.close()
    assert session.closed == 1


# -- reload, forks, many threads


def test_a_reload_between_two_requests_mixes_no_batch(held, session, classifier, contract):
    batcher, first = held
    before = [batcher.submit(flat(i)) for i in (2, 3)]
    # Another size too: what was prepared for the old model can only be run by the old model.
    newer = GatedSession(scale=-1.0, frame_shape=(8, 8))
    classifier.adopt(Classifier(newer, replace(contract, height=8), SELECTION))
    after = [batcher.submit(flat(i)) for i in (4, 5)]
    assert session.closed == 0
    session.gate.set()
    assert [red(future) for future in (first, *before, *after)] == [1, 2, 3, -4, -5]
    assert session.batches == [1, 2]
    assert newer.batches == [1, 2]  # the first is the run that proved it
    assert (session.closed, newer.closed) == (1, 0)


FORK = """
import os, sys, threading
import numpy as np
from serving_support import GatedSession, flat
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier, Selection
from edgekiln.runtime.contract import Contract
contract = Contract(height=4, width=8, classes=("a", "b", "c"))
batcher = Batcher(Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", "")), max_wait_us=0)
batcher.submit(flat(1)).result(30)
if os.fork() == 0:
    try:
        batcher.submit(flat(1))
    except Exception as error:
        print(type(error).__name__, flush=True)
    batcher.close()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def run_script(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_fork_is_told_and_ends():
    assert run_script(FORK) == ["ForkedError", "7"]


def test_a_process_that_forgets_to_close_ends_all_the_same():
    code = FORK.partition("if os.fork()")[0] + "batcher.submit(flat(2)); print('end')"
    assert run_script(code) == ["end"]


def test_many_threads_get_their_own_answers(mean_model, contract):
    with (
        Classifier(open_session("onnxruntime-cpu", mean_model, threads=1), contract, SELECTION) as classifier,
        Batcher(classifier, max_batch=8, max_wait_us=200, max_queue=64) as batcher,
        ThreadPoolExecutor(16) as pool,
    ):

        def ask(seed):
            colors = np.random.default_rng(seed).integers(0, 256, (40, 3))
            return all(
                np.array_equal(batcher.submit(flat(*color)).result(PATIENCE_S).logits, color)
                for color in colors
            )

        assert all(pool.map(ask, range(16)))
        counters = batcher.read_counters()
    assert (counters.answered, counters.failed, counters.waiting) == (640, 0, 0)
    assert sum(size * count for size, count in counters.batches.items()) == 640


def test_what_is_no_picture_fails_alone(classifier):
    with Batcher(classifier, max_batch=4, max_wait_us=50_000) as batcher:
        futures = [batcher.submit(picture) for picture in (None, flat(1), flat(2), flat(3))]
        assert [red(future) for future in futures[1:]] == [1, 2, 3]
        with pytest.raises(ImageError, match="got NoneType"):
            futures[0].result(PATIENCE_S)
        with pytest.raises(ImageError, match="got NoneType"):
            asyncio.run(batcher.predict_async(None))
        assert red(batcher.submit(flat(4))) == 4


def test_a_picture_that_was_taken_away_unheard_is_left_out_of_its_batch(classifier, session):
    session.gate.clear()
    with Batcher(classifier, max_batch=4, max_wait_us=0) as batcher:
        running = batcher.submit(flat(0))
        session.wait_until_entered()
        futures = [batcher.submit(flat(i)) for i in (1, 2, 3)]
        batcher._queue.waiting[1].frame = None  # a task was cancelled, and its future has not heard of it yet
        session.gate.set()
        assert [red(future) for future in (running, futures[0], futures[2])] == [0, 1, 3]
        with pytest.raises(CancelledError):
            futures[1].result(PATIENCE_S)


def test_a_future_that_its_holder_ends_disturbs_nobody(classifier, session):
    session.gate.clear()
    with Batcher(classifier, max_batch=1, max_wait_us=0) as batcher:
        running = batcher.submit(flat(0))
        session.wait_until_entered()
        given_up = batcher.submit(flat(1))
        given_up.set_exception(TimeoutError("the caller has waited long enough"))
        later = batcher.submit(flat(2))
        session.gate.set()
        assert [red(running), red(later)] == [0, 2]
        assert batcher.read_counters().cancelled == 1


def test_an_error_of_the_batchers_own_leaves_nobody_waiting(classifier, session, monkeypatch, caplog):
    session.gate.clear()
    with Batcher(classifier, max_batch=2, max_wait_us=0) as batcher:
        running = batcher.submit(flat(0))
        session.wait_until_entered()
        waiting = [batcher.submit(flat(i)) for i in (1, 2, 3)]
        for future in waiting[1:]:
            future.add_done_callback(lambda _: sys.exit())  # must not keep the others from hearing of it
        monkeypatch.setattr(batcher, "_begin", lambda request, now: 1 / 0)
        session.gate.set()
        assert red(running) == 0
        for future in waiting:
            with pytest.raises(EdgekilnError, match="ended by an error of its own"):
                future.result(PATIENCE_S)
        with pytest.raises(UsageError, match="closed"):
            batcher.submit(flat(4))
    assert "ZeroDivisionError" in caplog.text


def test_where_the_pool_gets_no_more_threads_each_request_ends_once(classifier, monkeypatch):
    unpatched, started = threading.Thread.start, []

    def start_one(thread):
        if thread.name.startswith("edgekiln-prepare"):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        unpatched(thread)

    large = np.full((3000, 3000, 3), 9, np.uint8)

    async def ask():
        asked = [batcher.predict_async(large) for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with Batcher(classifier, prepare_threads=2) as batcher:
        answers = asyncio.run(ask())
        counters = batcher.read_counters()
    refused = [answer for answer in answers if isinstance(answer, ResourceError)]
    assert len(refused) >= 1
    assert (counters.answered, counters.failed, counters.cancelled) == (3 - len(refused), len(refused), 0)
    assert classifier._model._users == 0


def test_a_callback_in_the_pool_may_close_the_batcher(classifier):
    batcher = Batcher(classifier, prepare_threads=1)
    closed = threading.Event()

    def close(future):
        batcher.close()
        closed.set()

    async def ask():
        request = batcher._admit(None, None, "rgb")
        request.future.add_done_callback(close)
        batcher._hand_to_pool(request)
        with pytest.raises(ImageError):
            await asyncio.wrap_future(request.future)

    asyncio.run(ask())
    assert closed.wait(PATIENCE_S)


# -- where the time went


@pytest.mark.parametrize("in_pool", [False, True])
def test_an_answered_future_tells_where_its_time_went(held, session, in_pool):
    batcher, first = held
    assert first.times is None  # its batch still runs
    begun = time.monotonic()
    second, third = (batcher.submit(flat(red), in_pool=in_pool) for red in (2, 3))
    while len(batcher._queue.waiting) < 2:  # prepared both, not only on their way: they run together
        time.sleep(0.001)
    held_for = time.monotonic() - begun
    session.gate.set()
    assert [round(f.result(PATIENCE_S).logits[0]) for f in (first, second, third)] == [1, 2, 3]
    whole_ms = 1000 * (time.monotonic() - begun)
    assert (first.times.batch, second.times.batch, third.times.batch) == (1, 2, 2)
    assert (
        first.times.engine_ms >= 1000 * held_for
    )  # it was in the engine all that time, the others waited for it
    assert second.times.wait_ms + second.times.decode_ms >= 1000 * held_for
    for times in (second.times, third.times):
        parts = (times.decode_ms, times.wait_ms, times.engine_ms)
        assert all(part >= 0 for part in parts)
        assert sum(parts) <= whole_ms


def test_a_picture_that_is_broken_fails_its_own_future_in_the_pool_too(classifier):
    with Batcher(classifier, max_wait_us=0) as batcher:
        broken, good = batcher.submit(b"no picture", in_pool=True), batcher.submit(flat(1), in_pool=True)
        with pytest.raises(ImageError):
            broken.result(PATIENCE_S)
        assert good.result(PATIENCE_S).label
        assert broken.times is None
