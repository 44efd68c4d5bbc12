"""Models for single batch sizes are asked every picture, and only rounding lies between them and the judged one."""

import numpy as np
import pytest
from canary_support import LinearSession

from edgekiln.benchmarks.report.table import describe_static_batches
from edgekiln.pipeline.device.static_batches import ask_static_batches, list_static_batches
from edgekiln.runtime.errors import EngineError

FRAMES = np.random.default_rng(3).integers(0, 256, (10, 32, 40, 3), np.uint8)


def test_every_picture_is_asked_in_every_size_and_flips_are_counted_and_told():
    session = LinearSession()
    answers = session.run(FRAMES)
    session.batches.clear()
    session.fault = lambda logits: logits + np.float32(1e-6 if len(logits) == 4 else 0)
    rows = ask_static_batches(session.run, (4, 16), FRAMES, answers, 1e-3)
    assert session.batches == [4, 4, 4, 16]
    assert [(row["batch"], row["images"], row["flips"]) for row in rows] == [(4, 10, 0), (16, 10, 0)]
    assert (0 < rows[0]["max_difference"] < 1e-5, rows[1]["max_difference"]) == (True, 0)
    other = answers[:, ::-1].copy()
    rows = ask_static_batches(session.run, (16,), FRAMES, other, 1e3)
    assert 0 < rows[0]["flips"] == (answers.argmax(1) != other.argmax(1)).sum()
    [sentence] = describe_static_batches("int8", rows)
    assert f"at most {rows[0]['flips']} of 10 test pictures get another class" in sentence


def test_a_model_that_is_wrong_in_the_last_batch_alone_is_found():
    session = LinearSession()
    answers = session.run(FRAMES)

    def wrong_at_the_end(frames):
        wrong = session.run(frames).copy()
        wrong[1] += np.float32(np.array_equal(frames[0], FRAMES[8]))
        return wrong

    with pytest.raises(
        EngineError, match=r"its model for batches of 4 answers otherwise.*by up to 1 in a logit"
    ):
        ask_static_batches(wrong_at_the_end, (4,), FRAMES, answers, 1e-3)


def test_a_session_without_such_sizes_has_none():
    assert list_static_batches(LinearSession()) == ()
    assert describe_static_batches("fp32", []) == []
