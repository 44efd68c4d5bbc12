"""Arguments of a wrong kind, at every door of the runtime: a UsageError that names them, never an error from within."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_support import GatedSession, flat

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.openvino import import_openvino
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import ExitCode, ResourceError, UsageError
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.serving.prediction import Selection


@pytest.fixture
def classifier(contract):
    with Classifier(GatedSession(), contract, Selection("x", "fake", "fp32", "")) as classifier:
        yield classifier


def refused(message, call, *arguments, **options):
    with pytest.raises(UsageError, match=message) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "a"}, "threads must be a whole number, got 'a'"),
        ({"threads": 1.5}, "threads must be a whole number, got 1.5"),
        ({"threads": True}, "threads must be a whole number, got True"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": 2**40}, "threads must be at most 1024"),
        ({"device": ["cpu"]}, r"Unknown device \['cpu'\]"),
        ({"variant": 5}, "has no variant 5"),
        ({"allow_operators": "com.microsoft::Gelu"}, "allow_operators must be a list of strings"),
        ({"allow_operators": None}, "allow_operators must be a list of strings"),
        ({"allow_operators": [5]}, "allow_operators must be a list of strings"),
        ({"fast_decode": "yes"}, "Unknown fast_decode 'yes'"),
        ({"fast_decode": 1}, "Unknown fast_decode 1"),
        ({"trusted_keys": 5}, "trusted_keys takes a list of keys, got int"),
        ({"trusted_keys": "key.pub"}, "trusted_keys takes a list of keys"),
        ({"trusted_keys": [5]}, "A key must be a path or PEM bytes, got int"),
        ({"trusted_keys": ["a\0"]}, "cannot be read: embedded null"),
    ],
)
def test_load(bundle_folder, options, message):
    refused(message, load, bundle_folder, **options)


@pytest.mark.parametrize("path", [None, 5, [1]])
def test_what_is_no_path_at_all(path):
    refused("is no path", open_bundle, path)


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("threads", ["a", 2**40])
def test_a_session(mean_model, backend, threads):
    refused("threads must be", open_session, backend, mean_model, threads=threads)


ONE = [
    "photo.jpg",
    Path("photo.jpg"),
    b"bytes",
    bytearray(b"bytes"),
    memoryview(b"bytes"),
    flat(1),
    Image.new("RGB", (3, 3)),
    None,
    5,
]


@pytest.mark.parametrize("one", ONE, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("method", ["predict_batch", "predict_stream"])
def test_one_picture_where_several_are_wanted(classifier, method, one):
    refused(f"{method} takes several pictures, .*Use predict for one", getattr(classifier, method), one)


def test_an_array_of_pictures_is_several(classifier):
    pictures = np.stack([flat(1), flat(2)])
    assert len(classifier.predict_batch(pictures)) == 2
    assert len(list(classifier.predict_stream(pictures))) == 2


@pytest.mark.parametrize("option", ["workers", "max_batch"])
@pytest.mark.parametrize("value", ["a", None, 1.0, True])
def test_a_stream(classifier, option, value):
    refused(f"{option} must be a whole number", classifier.predict_stream, [], **{option: value})


@pytest.mark.parametrize("value", ["a", None, 1.0])
def test_other_counts(classifier, value):
    refused("k must be a whole number", classifier.predict(flat(1)).top, value)
    refused("runs must be a whole number", classifier.warm_up, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": "8"}, "max_batch must be a whole number, got '8'"),
        ({"max_queue": 1.5}, "max_queue must be a whole number, got 1.5"),
        ({"prepare_threads": 5000}, "prepare_threads must be at most 1024, got 5000"),
        ({"max_wait_us": "1"}, "max_wait_us must be 0 or more microseconds, got '1'"),
        ({"max_wait_us": None}, "max_wait_us must be 0 or more microseconds, got None"),
    ],
)
def test_a_batcher(classifier, options, message):
    refused(message, Batcher, classifier, **options)


@pytest.mark.parametrize("deadline", ["1", 0, -1, float("nan"), float("inf"), 10**400, True])
def test_a_deadline(classifier, deadline):
    with Batcher(classifier) as batcher:
        refused("deadline_ms must be over 0 milliseconds", batcher.submit, flat(1), deadline_ms=deadline)
        assert batcher.read_counters().waiting == 0


def test_whole_numbers_of_numpy_are_whole_numbers(classifier):
    assert len(classifier.predict(flat(1)).top(np.int64(2))) == 2
    with Batcher(classifier, max_batch=np.int32(2), max_wait_us=np.float32(10)) as batcher:
        batcher.submit(flat(1), deadline_ms=np.float64(10_000)).result()


def test_where_no_thread_can_be_started_that_is_said(classifier, mean_model, monkeypatch):
    import_openvino()

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    answers = classifier.predict_stream([flat(1)])
    for door in (
        lambda: open_session("openvino", mean_model),
        lambda: Batcher(classifier),
        lambda: next(answers),
    ):
        with pytest.raises(ResourceError, match="cannot be started: can't start new thread"):
            door()
