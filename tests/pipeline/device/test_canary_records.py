"""What is recorded where an engine is judged, and what is refused there already."""

import numpy as np
import pytest
from canary_support import LinearSession, answers, only_in_batches, recorded

from edgekiln.pipeline.device.canary_records import CanaryReference, find_tolerances, record_canaries
from edgekiln.runtime.bundles.canaries import check_canaries
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.spec import Precision

NO_SPREAD = np.zeros(16)


def test_a_tolerance_is_floor_distance_and_spread():
    fp32 = answers(LinearSession())
    span = float(np.ptp(fp32))
    own = fp32.copy()
    own[3, 1] += 0.5  # one picture far from FP32, all others equal
    spread = NO_SPREAD.copy()
    spread[7] = 0.25
    found = find_tolerances(own, spread, CanaryReference(fp32, Precision.INT8))
    expected = np.full(16, 0.01 * span)
    expected[3] += 2 * 0.5
    expected[7] += 4 * 0.25
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_of_the_pictures_vouch_for_one_that_is_near_by_chance():
    fp32 = answers(LinearSession())
    own = fp32 + np.float32(0.1)
    own[5] = fp32[5]
    found = find_tolerances(own, NO_SPREAD, CanaryReference(fp32, Precision.FP32))
    np.testing.assert_allclose(found, np.full(16, found[0]), rtol=1e-5)


def test_precisions_differ_in_what_is_rounding():
    fp32 = answers(LinearSession())
    order = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.BF16)
    assert set(order) == set(Precision)
    floors = [find_tolerances(fp32, NO_SPREAD, CanaryReference(fp32, p))[0] for p in order]
    assert floors == sorted(floors)
    assert floors[0] < floors[-1]


def test_without_fp32s_answers_the_distance_is_left_out():
    fp32 = answers(LinearSession())
    found = find_tolerances(fp32, NO_SPREAD, CanaryReference(None, Precision.INT8))
    np.testing.assert_allclose(found, 0.01 * float(np.ptp(fp32)), rtol=1e-5)
    assert check_canaries(LinearSession(), recorded(reference=None)).ok


def test_an_engine_whose_answers_never_change_has_a_tolerance():
    flat = np.zeros((16, 5), np.float32)
    assert (find_tolerances(flat, NO_SPREAD, CanaryReference(flat, Precision.FP32)) > 0).all()


def test_answers_that_depend_on_the_batch_fail_where_they_are_judged():
    with pytest.raises(EngineError, match="depend on the batch size or the number of threads"):
        recorded(LinearSession(only_in_batches))


def test_answers_that_depend_on_the_threads_fail_and_what_was_opened_is_closed(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    opened = []

    def reopen(threads):
        opened.append(LinearSession(lambda logits: logits * np.float32(1.3) if threads == 2 else logits))
        return opened[-1]

    with pytest.raises(EngineError, match="depend on the batch size or the number of threads"):
        record_canaries(LinearSession(), reopen, CanaryReference(None, Precision.INT8))
    assert [session.closed for session in opened] == [1, 1]


def test_an_engine_of_a_gpu_is_not_opened_with_threads():
    session = LinearSession()
    session.backend = "tensorrt"
    record_canaries(session, None, CanaryReference(None, Precision.FP16))
