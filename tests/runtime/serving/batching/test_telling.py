"""Answers beside the engine: each is told once, whatever callbacks do, and no more than a few are kept."""

import gc
import sys
import threading
import weakref

import pytest
from serving_support import PATIENCE_S, GatedSession, flat

from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.batching.telling import Teller
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection

SELECTION = Selection("fp32", "fake", "fp32", "made by hand")


@pytest.fixture
def session():
    return GatedSession()


@pytest.fixture
def teller():
    teller = Teller()
    yield teller
    teller.close(wait=True)


@pytest.fixture
def loaded_twice(session, contract):
    """A batcher whose engine is busy with one full batch while another one waits. (batcher, futures of both)"""
    session.gate.clear()
    with (
        Classifier(session, contract, SELECTION) as classifier,
        Batcher(classifier, max_batch=2, max_wait_us=1e9) as batcher,
    ):
        futures = [batcher.submit(flat(i)) for i in range(2)]
        session.wait_until_entered()
        yield batcher, futures + [batcher.submit(flat(i)) for i in range(2, 4)]
        session.gate.set()


def test_the_engine_runs_the_next_batch_while_the_answers_of_the_last_are_told(loaded_twice, session):
    batcher, futures = loaded_twice
    engine_runs_on = threading.Event()
    seen = []

    def wait_for_the_engine(_):
        seen.append((threading.current_thread().name, engine_runs_on.wait(PATIENCE_S)))

    futures[0].add_done_callback(wait_for_the_engine)
    session.gate.set()
    assert futures[3].result(PATIENCE_S).logits[0] == 3  # though the first one's callback has not come back
    engine_runs_on.set()
    assert [future.result(PATIENCE_S).logits[0] for future in futures] == [0, 1, 2, 3]
    assert seen == [("edgekiln-teller", True)]
    assert batcher.read_counters().answered == 4


def test_closing_waits_for_the_answers_that_are_being_told(loaded_twice, session):
    batcher, futures = loaded_twice
    let_go = threading.Event()
    futures[0].add_done_callback(lambda _: let_go.wait(PATIENCE_S))
    session.gate.set()
    futures[3].result(PATIENCE_S)
    threading.Timer(0.05, let_go.set).start()
    batcher.close()
    assert all(future.done() for future in futures)


def test_a_callback_may_close_the_batcher_from_the_telling_thread(loaded_twice, session):
    batcher, futures = loaded_twice
    closed = threading.Event()
    futures[0].add_done_callback(lambda _: (batcher.close(), closed.set()))
    session.gate.set()
    assert closed.wait(PATIENCE_S)
    assert [future.result(PATIENCE_S).logits[0] for future in futures] == [0, 1, 2, 3]
    batcher.close()


def test_one_that_does_not_keep_up_gets_no_more_to_do(teller):
    hangs, let_go, told = threading.Event(), threading.Event(), []
    teller.tell(lambda: (hangs.set(), let_go.wait(PATIENCE_S)), later=True)
    teller.tell_kept()
    assert hangs.wait(PATIENCE_S)
    teller.tell(lambda: told.append("kept"), later=True)
    teller.tell(lambda: told.append("at once, as one is kept"), later=True)
    teller.tell_kept()
    teller.tell(lambda: told.append("at once, as one waits behind the one that hangs"), later=True)
    assert told == ["at once, as one is kept", "at once, as one waits behind the one that hangs"]
    let_go.set()
    teller.close(wait=True)
    assert told[-1] == "kept"
    teller.tell(lambda: told.append("behind the end"), later=True)
    assert told[-1] == "behind the end"


def test_what_was_kept_is_told_at_the_end(teller):
    told = []
    teller.tell(lambda: told.append(1), later=True)
    assert told == []
    teller.close(wait=True)
    assert told == [1]


def test_where_no_thread_can_be_had_answers_are_told_here(teller, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told = []
    teller.tell(lambda: told.append(threading.current_thread()), later=True)
    assert told == [threading.current_thread()]


def _until_told(teller):
    done = threading.Event()
    while not done.is_set():
        teller.tell(lambda: threading.current_thread().name == "edgekiln-teller" and done.set(), later=True)
        teller.tell_kept()


def test_what_fails_is_logged_and_the_thread_goes_on(teller, caplog):
    teller.tell(sys.exit, later=True)
    teller.tell_kept()
    _until_told(teller)
    assert "SystemExit" in caplog.text


def test_what_was_told_is_not_kept_alive(teller):
    answer = threading.Event()
    gone = weakref.ref(answer)
    teller.tell(answer.set, later=True)
    teller.tell_kept()
    assert answer.wait(PATIENCE_S)
    del answer
    teller.close(wait=True)
    gc.collect()
    assert gone() is None
