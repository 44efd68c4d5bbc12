"""The checks on both sides of an engine."""

import re

import numpy as np
import pytest

from edgekiln.runtime.errors import ExitCode, InputError, NonFiniteError
from edgekiln.runtime.spec import check_finite, check_frames

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("count", [0, 1, 5])
def test_uint8_frames_of_the_right_size_pass(count):
    check_frames(np.zeros((count, 4, 8, 3), np.uint8), 4, 8)


@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (np.zeros((1, 4, 8, 3), np.float32), "float32 (1, 4, 8, 3)"),
        (np.zeros((1, 4, 8, 3), np.int8), "int8 (1, 4, 8, 3)"),
        (np.zeros((4, 8, 3), np.uint8), "uint8 (4, 8, 3)"),
        (np.zeros((1, 8, 4, 3), np.uint8), "uint8 (1, 8, 4, 3)"),
        (np.zeros((1, 3, 4, 8), np.uint8), "uint8 (1, 3, 4, 8)"),
        (np.zeros((1, 4, 8, 1), np.uint8), "uint8 (1, 4, 8, 1)"),
        ([[1, 2]], "list"),
        (None, "NoneType"),
    ],
)
def test_other_frames_are_refused_with_what_was_got_and_wanted(frames, got):
    message = re.escape(f"Got {got}, wanted uint8 (N, 4, 8, 3).")
    with pytest.raises(InputError, match=message) as caught:
        check_frames(frames, 4, 8)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "Classifier.predict" in caught.value.hint


FEW, MANY = 6, 600  # rows of three logits: below and above what is summed without numpy


@pytest.mark.parametrize("rows", [0, 1, 4, MANY])
def test_finite_logits_pass_even_the_largest(rows):
    # Each is finite although their float32 sum is not.
    check_finite(np.full((rows, 3), np.finfo(np.float32).max, np.float32), "engine")


@pytest.mark.parametrize("row", [0, 3, 5])
@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("bad", [(NAN, 0), (INF, 0), (-INF, 0), (INF, -INF), (NAN, INF)], ids=str)
def test_a_non_finite_logit_is_refused_and_its_image_named(bad, rows, row):
    logits = np.ones((rows, 3), np.float32)
    logits[row, :2] = bad
    message = f"onnxruntime-cpu gave NaN or infinity for image {row} of the batch .1 in all"
    with pytest.raises(NonFiniteError, match=message) as caught:
        check_finite(logits, "onnxruntime-cpu")
    assert caught.value.exit_code == ExitCode.GATE_FAILED == 3


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_infinities_that_cancel_between_images_are_refused_and_counted(rows):
    logits = np.zeros((rows, 3), np.float32)
    logits[2, 0], logits[4, 1] = INF, -INF
    with pytest.raises(NonFiniteError, match=r"for image 2 of the batch \(2 in all\)"):
        check_finite(logits, "engine")
