"""The classifier: one answer whatever the door, and logits that mean what the contract says."""

import io
import subprocess
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from PIL import Image

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import (
    EngineError,
    ExitCode,
    ImageError,
    InputError,
    NonFiniteError,
    UsageError,
)
from edgekiln.runtime.processes import child_environment, code_command
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Candidate, Prediction, Selection, read_logits, softmax

SELECTION = Selection("fp32", "onnxruntime-cpu", "fp32", "made by hand")
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def classifier(mean_model, contract):
    with Classifier(open_session("onnxruntime-cpu", mean_model), contract, SELECTION) as classifier:
        yield classifier


def flat(color, size=(20, 10)):
    return Image.new("RGB", size, color)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("label", COLORS)
def test_a_flat_picture_gets_the_class_of_its_color(classifier, label):
    prediction = classifier.predict(flat(COLORS[label]))
    assert prediction.label == label == classifier.contract.classes[prediction.index]
    np.testing.assert_array_equal(prediction.logits, np.array(COLORS[label], np.float32))
    # exp(-255) is under the resolution of 1.0 in float64.
    assert prediction.score == 1.0


def test_path_bytes_pil_and_array_agree(classifier, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 23, 3), np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(png(image))
    wanted = classifier.predict(pixels)
    for picture in (path, str(path), path.read_bytes(), image):
        got = classifier.predict(picture)
        assert (got.label, got.index, got.score) == (wanted.label, wanted.index, wanted.score)
        np.testing.assert_array_equal(got.logits, wanted.logits)


def test_bgr_arrays_are_read_as_bgr(classifier):
    array = np.asarray(flat(COLORS["red"]))
    assert classifier.predict(array, color_order="bgr").label == "blue"
    assert classifier.predict(array[..., ::-1], color_order="bgr").label == "red"
    assert [p.label for p in classifier.predict_batch([array, array], color_order="bgr")] == ["blue", "blue"]


def test_top_is_ordered_and_sums_to_one(classifier):
    top = classifier.predict(flat((100, 103, 101))).top(3)
    assert [candidate.label for candidate in top] == ["green", "blue", "red"]
    assert [candidate.index for candidate in top] == [1, 2, 0]
    weights = np.exp([103.0, 101.0, 100.0])
    # Both sides are float64 with a handful of roundings each.
    np.testing.assert_allclose([c.score for c in top], weights / weights.sum(), rtol=1e-14)
    assert sum(c.score for c in top) == pytest.approx(1.0, abs=1e-15 * 3)


def test_top_one_is_the_prediction_and_ties_go_to_the_first_class(classifier):
    prediction = classifier.predict(flat((9, 9, 9)))
    assert prediction.top(1) == (Candidate("red", 0, prediction.score),)
    assert (prediction.label, prediction.index) == ("red", 0)
    assert prediction.score == pytest.approx(1 / 3, abs=1e-15)
    assert [candidate.index for candidate in prediction.top(3)] == [0, 1, 2]


def test_ties_keep_the_order_of_the_classes_among_many():
    # Over 16 values numpy's default sort is not stable any more.
    classes = tuple(f"class {i}" for i in range(100))
    prediction = Prediction(classes[0], 0, 0.01, (np.arange(100) % 2).astype(np.float32), classes)
    assert [c.index for c in prediction.top(100)] == [*range(1, 100, 2), *range(0, 100, 2)]


@pytest.mark.parametrize("classes", [1, 3, 8, 9, 1000])
def test_scores_are_those_of_softmax_however_many_classes(classes):
    logits = np.random.default_rng(classes).normal(0, 5, (4, classes)).astype(np.float32)
    predictions = read_logits(logits, [str(i) for i in range(classes)])
    wanted = softmax(logits)
    for prediction, row, scores in zip(predictions, logits, wanted, strict=True):
        assert prediction.index == row.argmax()
        # float64: one rounding of an exponential, one of a sum and one of a quotient on either side
        assert prediction.score == pytest.approx(scores.max(), rel=1e-14)
        top = prediction.top(classes)
        np.testing.assert_allclose([c.score for c in top], scores[[c.index for c in top]], rtol=1e-13)
        assert prediction.top(1)[0].score == prediction.score


@pytest.mark.parametrize("classes", [2, 100])
def test_the_largest_logit_wins_where_the_scores_are_equal(classes):
    logits = np.full((1, classes), -1e-30, np.float32)
    logits[0, 1] = 0.0
    (prediction,) = read_logits(logits, [str(i) for i in range(classes)])
    assert (prediction.index, prediction.score) == (1, 1 / classes)


def test_one_prepared_picture_reaches_the_engine_without_a_copy(classifier, monkeypatch):
    got = []
    monkeypatch.setattr(
        classifier.session, "run", lambda frames: got.append(frames) or np.zeros((1, 3), np.float32)
    )
    frame = np.zeros((4, 8, 3), np.uint8)
    with classifier.hold() as model:
        model.predict_frames([frame])
    assert got[0].shape == (1, 4, 8, 3)
    assert np.shares_memory(got[0], frame)


def test_top_gives_all_classes_where_there_are_fewer(classifier):
    prediction = classifier.predict(flat((1, 2, 3)))
    assert prediction.top(99) == prediction.top(3)
    assert len(prediction.top(99)) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_top_of_nothing_is_refused(classifier, k):
    with pytest.raises(UsageError, match=f"k must be at least 1, got {k}"):
        classifier.predict(flat((1, 2, 3))).top(k)


def test_softmax_does_not_overflow():
    scores = softmax(np.array([3e38, 3e38, -3e38], np.float32))
    np.testing.assert_array_equal(scores, [0.5, 0.5, 0.0])


def test_a_batch_keeps_its_order_and_agrees_with_single_pictures(classifier):
    labels = ["blue", "red", "green", "green", "red"] * 60  # over the chunk of the session
    pictures = (flat(COLORS[label]) for label in labels)  # any iterable
    predictions = classifier.predict_batch(pictures)
    assert [prediction.label for prediction in predictions] == labels
    single = classifier.predict(flat(COLORS["blue"]))
    np.testing.assert_array_equal(predictions[0].logits, single.logits)


def test_a_tensor_of_prepared_frames_is_a_batch(classifier):
    pictures = [flat(color, (8, 4)) for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    frames = np.stack([np.asarray(picture, np.uint8) for picture in pictures])
    plain = classifier.predict_batch(list(frames))
    shared = classifier.predict_batch(torch.from_numpy(frames))
    assert [p.label for p in shared] == [p.label for p in plain]
    assert [p.logits.tolist() for p in shared] == [p.logits.tolist() for p in plain]
    assert classifier.predict_batch(torch.from_numpy(frames[:0])) == []
    with pytest.raises(InputError, match="are RGB, got color_order='bgr'"):
        classifier.predict_batch(torch.from_numpy(frames), color_order="bgr")
    with pytest.raises(InputError, match=r"wanted uint8 \(N, 4, 8, 3\)"):
        classifier.predict_batch(torch.from_numpy(frames[:, :2]))


def test_an_empty_batch_has_no_answers(classifier):
    assert classifier.predict_batch([]) == []


def test_one_bad_picture_fails_the_batch_with_its_own_error(classifier):
    with pytest.raises(ImageError, match="0 bytes"):
        classifier.predict_batch([flat((1, 2, 3)), b""])


def test_logits_are_read_only_and_do_not_keep_the_batch_alive(classifier):
    for prediction in classifier.predict_batch([flat((1, 2, 3))] * 4):
        assert prediction.logits.dtype == np.float32
        assert prediction.logits.shape == (3,)
        assert prediction.logits.base.nbytes <= 4096  # of few logits the answers of a batch share one copy
        with pytest.raises(ValueError, match="read-only"):
            prediction.logits[0] = 1
        with pytest.raises(FrozenInstanceError):
            prediction.label = "other"
    many = read_logits(np.zeros((4, 1000), np.float32), [str(i) for i in range(1000)])
    assert all(p.logits.base is None and not p.logits.flags.writeable for p in many)
    assert [p.score for p in many] == [pytest.approx(1e-3)] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 8, "width": 4}, r"takes frames of \(4, 8\), the contract says \(8, 4\)"),
        ({"classes": ("a", "b")}, "gives 3 logits, the contract names 2 classes"),
        ({"classes": ("a", "b", "c", "d")}, "gives 3 logits, the contract names 4 classes"),
    ],
)
def test_a_contract_that_does_not_fit_the_engine_is_refused(mean_model, contract, change, message):
    session = open_session("onnxruntime-cpu", mean_model)
    with pytest.raises(EngineError, match=message) as caught:
        Classifier(session, replace(contract, **change), SELECTION)
    assert caught.value.exit_code == ExitCode.UNTRUSTED == 4


def test_the_context_manager_closes_the_session_also_after_an_error(mean_model, contract):
    session = open_session("onnxruntime-cpu", mean_model)
    classifier = Classifier(session, contract, SELECTION)
    assert (classifier.session, classifier.variant, classifier.contract) == (session, SELECTION, contract)
    with pytest.raises(ImageError), classifier as entered:
        entered.predict(b"")
    with pytest.raises(UsageError, match="session is closed"):
        classifier.predict(flat((1, 2, 3)))
    classifier.close()


def test_warm_up_runs_the_engine_on_grey(build_model, contract):
    # sqrt(mean - 128) is NaN for the grey of 127, so each run shows.
    session = open_session("onnxruntime-cpu", build_model(shift=-128.0, tail="Sqrt"))
    classifier = Classifier(session, contract, SELECTION)
    classifier.warm_up(0)
    with pytest.raises(NonFiniteError):
        classifier.warm_up(1)


def test_warm_up_leaves_the_answers_alone(classifier):
    before = classifier.predict(flat((3, 2, 1))).logits
    assert classifier.warm_up() is None
    np.testing.assert_array_equal(classifier.predict(flat((3, 2, 1))).logits, before)


@pytest.mark.parametrize("one", ["photo.jpg", b"bytes"])
def test_a_single_picture_is_no_batch(classifier, one):
    with pytest.raises(UsageError, match=r"takes several pictures, got one\. Use predict"):
        classifier.predict_batch(one)


def test_predictions_can_be_compared_and_hashed():
    one, same, other = (
        Prediction("a", 0, score, np.float32([score, 1]), ("a", "b")) for score in (0.7, 0.7, 0.6)
    )
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2


SLOW_TO_IMPORT = (
    "importlib.metadata",
    "email.message",
    "edgekiln.runtime.cuda",
    "edgekiln.runtime.pictures.tiff",
)
"""Each takes 5 to 30 ms, and a picture on a CPU needs none of them."""


def test_a_first_prediction_imports_nothing_that_it_does_not_need(bundle_folder, tmp_path):
    flat((1, 2, 3)).save(tmp_path / "picture.png")
    code = (
        "import sys, edgekiln.runtime as ek\n"
        "with ek.load(sys.argv[1]) as classifier: classifier.predict(sys.argv[2])\n"
        f"print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])\n"
    )
    done = subprocess.run(
        code_command(code, str(bundle_folder), str(tmp_path / "picture.png")),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
