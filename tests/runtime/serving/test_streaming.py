"""Streams: order, bounds, broken pictures in their place, and threads that end when the consumer does."""

import io
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from serving_support import PATIENCE_S, GatedSession, flat

from edgekiln.runtime.errors import ImageError, NonFiniteError, UsageError
from edgekiln.runtime.serving import streaming
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Prediction, Selection

SELECTION = Selection("fp32", "fake", "fp32", "made by hand")


@pytest.fixture
def session():
    return GatedSession()


@pytest.fixture
def classifier(session, contract):
    with Classifier(session, contract, SELECTION) as classifier:
        yield classifier
    assert session.closed == 1  # no stream has kept it


def reds(answers):
    return [float(answer.logits[0]) for answer in answers]


def stream_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("edgekiln-stream", "edgekiln-decode"))]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("max_batch", [1, 4])
def test_answers_come_in_order(classifier, session, workers, max_batch):
    answers = list(classifier.predict_stream(map(flat, range(50)), workers=workers, max_batch=max_batch))
    assert reds(answers) == list(range(50))
    assert sum(session.batches) == 50
    assert max(session.batches) <= max_batch
    assert not stream_threads()


def test_answers_are_those_of_predict(classifier, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pictures = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), pixels]
    wanted = classifier.predict(pixels)
    for answer in classifier.predict_stream(pictures):
        assert (answer.label, answer.score) == (wanted.label, wanted.score)
        np.testing.assert_array_equal(answer.logits, wanted.logits)
    [bgr] = classifier.predict_stream([flat(1, 2, 3)], color_order="bgr")
    assert bgr.logits.tolist() == [3, 2, 1]


def test_an_empty_stream_ends_at_once(classifier):
    assert list(classifier.predict_stream([])) == []


@pytest.mark.parametrize("max_batch", [1, 8])
def test_a_broken_picture_has_its_error_in_its_place(classifier, max_batch):
    pictures = [flat(0), b"", flat(2), "/no/such.png", None, flat(5)]
    answers = list(classifier.predict_stream(pictures, max_batch=max_batch))
    assert [type(answer) for answer in answers] == [
        Prediction, ImageError, Prediction, ImageError, ImageError, Prediction,
    ]  # fmt: skip
    assert [a.reason for a in answers if isinstance(a, ImageError)] == ["format", "missing", "type"]
    assert reds(a for a in answers if isinstance(a, Prediction)) == [0, 2, 5]


def test_a_stream_of_broken_pictures_runs_no_engine(classifier, session):
    answers = list(classifier.predict_stream([b""] * 9, max_batch=4))
    assert [type(answer) for answer in answers] == [ImageError] * 9
    assert session.batches == []


def test_a_broken_picture_may_end_the_stream(classifier):
    answers = classifier.predict_stream([flat(0), b"", flat(2)], on_error="raise")
    assert reds([next(answers)]) == [0]
    with pytest.raises(ImageError, match="0 bytes"):
        next(answers)
    assert not stream_threads()
    assert list(answers) == []


def test_what_the_source_raises_comes_after_the_answers_to_what_it_gave(classifier):
    def source():
        yield flat(0)
        yield flat(1)
        raise OSError("the camera was unplugged")

    got = []
    with pytest.raises(OSError, match="unplugged"):
        got.extend(classifier.predict_stream(source()))
    answers = classifier.predict_stream(source())
    assert reds(itertools.islice(answers, 2)) == [0, 1]
    answers.close()
    assert not stream_threads()


def test_what_the_engine_raises_ends_the_stream(classifier, session):
    session.fails_on = 1
    with pytest.raises(NonFiniteError):
        list(classifier.predict_stream([flat(0), flat(1), flat(2)]))
    assert not stream_threads()


def test_an_endless_source_is_read_only_so_far_ahead(classifier):
    taken = itertools.count()
    answers = classifier.predict_stream((flat(next(taken) % 256) for _ in itertools.count()), workers=3)
    for _ in range(20):
        next(answers)
    # Nobody may wait for what must not happen, so the reader's thread is given the chance to go too far.
    while stream_threads() and answers.gi_frame.f_locals["reader"]._ready.qsize() < 2 * 3:
        threading.Event().wait(0.001)
    answers.close()
    assert next(taken) <= 20 + 2 * 3 + 1
    assert not stream_threads()


def test_the_source_is_read_while_the_engine_runs(classifier, session):
    read = threading.Semaphore(0)

    def source():
        for i in itertools.count():
            read.release()
            yield flat(i % 256)

    session.gate.clear()
    answers = classifier.predict_stream(source(), workers=2)
    first = []
    consumer = threading.Thread(target=lambda: first.append(next(answers)))
    consumer.start()
    session.wait_until_entered()
    for _ in range(4):  # one in the engine, and three more behind it
        assert read.acquire(timeout=PATIENCE_S)
    session.gate.set()
    consumer.join(PATIENCE_S)
    assert reds(first) == [0]
    answers.close()


def test_pictures_that_are_ready_run_together(classifier, session, monkeypatch):
    """The decoded ones that lie in the queue while the engine is busy are one batch."""
    begun = []

    class Recorded(streaming._Prepared):
        def __init__(self, *parts):
            super().__init__(*parts)
            begun.append(self)

    monkeypatch.setattr(streaming, "_Prepared", Recorded)
    session.gate.clear()
    answers = classifier.predict_stream(map(flat, range(12)), workers=3, max_batch=4)
    got = []
    consumer = threading.Thread(target=lambda: got.extend(answers))
    consumer.start()
    session.wait_until_entered()
    ready = answers.gi_frame.f_locals["reader"]._ready
    while not (ready.qsize() >= 5 and all(item.frame.done() for item in list(begun))):
        threading.Event().wait(0.001)
    session.gate.set()
    consumer.join(PATIENCE_S)
    assert reds(got) == list(range(12))
    assert session.batches[1] == 4  # the first is whatever was ready when the stream began


def test_closing_early_stops_the_threads(classifier):
    answers = classifier.predict_stream(map(flat, itertools.cycle(range(256))))
    assert not stream_threads()  # nothing starts before it is asked for
    next(answers)
    assert stream_threads()
    answers.close()
    assert not stream_threads()
    del answers
    dropped = classifier.predict_stream(map(flat, itertools.cycle(range(256))))
    next(dropped)
    del dropped
    assert not stream_threads()


def test_a_blocked_source_does_not_hold_up_the_closing(classifier, monkeypatch, caplog):
    monkeypatch.setattr(streaming, "_SOURCE_PATIENCE_S", 0.05)
    unblocked = threading.Event()

    def source():
        yield flat(1)
        unblocked.wait(PATIENCE_S)
        yield flat(2)

    answers = classifier.predict_stream(source())
    assert reds([next(answers)]) == [1]
    answers.close()
    assert "source of a closed stream is blocked" in caplog.text
    unblocked.set()
    for thread in stream_threads():
        thread.join(PATIENCE_S)
    assert not stream_threads()


def test_a_closed_classifier_ends_the_stream_in_its_turn(session, contract):
    classifier = Classifier(session, contract, SELECTION)

    def source():
        yield flat(1)
        classifier.close()
        yield flat(2)

    answers = classifier.predict_stream(source())
    assert reds([next(answers)]) == [1]
    with pytest.raises(UsageError, match="session is closed"):
        next(answers)
    assert session.closed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"workers": 2000}, "workers must be at most 1024, got 2000"),
        ({"max_batch": 1.5}, "max_batch must be a whole number, got 1.5"),
        ({"color_order": "rgba"}, "Unknown color_order 'rgba'; known: rgb, bgr"),
        ({"on_error": "ignore"}, "Unknown on_error 'ignore'; known: yield, raise"),
    ],
)
def test_wrong_arguments_are_told_at_once(classifier, arguments, message):
    with pytest.raises(UsageError, match=message):
        classifier.predict_stream([], **arguments)


@pytest.mark.parametrize("one", ["photo.jpg", b"bytes"])
def test_a_single_picture_is_no_stream(classifier, one):
    with pytest.raises(UsageError, match=r"takes several pictures, got one\. Use predict"):
        classifier.predict_stream(one)


FORK = """
import os, sys
from serving_support import GatedSession, flat
from edgekiln.runtime.serving.classifier import Classifier, Selection
from edgekiln.runtime.contract import Contract
contract = Contract(height=4, width=8, classes=("a", "b", "c"))
classifier = Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", ""))
answers = classifier.predict_stream(flat(i % 256) for i in range(10**9))
next(answers)
if os.fork() == 0:
    try:
        next(answers)
    except Exception as error:
        print(type(error).__name__, flush=True)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
answers.close()
"""


def test_a_fork_is_told_and_ends():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert done.stdout.split() == ["ForkedError", "7"]


def test_encoded_pictures_are_decoded_by_the_workers(classifier, monkeypatch):
    names = set()
    plain = streaming.LoadedModel.prepare

    def prepare(self, *arguments):
        names.add(threading.current_thread().name.rpartition("_")[0])
        return plain(self, *arguments)

    monkeypatch.setattr(streaming.LoadedModel, "prepare", prepare)
    buffer = io.BytesIO()
    Image.fromarray(flat(9)).save(buffer, "PNG")
    assert reds(classifier.predict_stream([buffer.getvalue()] * 5)) == [9] * 5
    assert names == {"edgekiln-decode"}
