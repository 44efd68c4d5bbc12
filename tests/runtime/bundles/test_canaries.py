"""Canaries: what is right passes, what is wrong is found, and a record keeps every bit."""

import json

import numpy as np
import pytest
from canary_support import FAULTS, LinearSession, answers, only_in_batches, only_in_odd_batches, recorded

from edgekiln.runtime.bundles.canaries import BATCH_SIZES, CanaryRecord, check_canaries, decode_logits
from edgekiln.runtime.bundles.manifest import parse_manifest
from edgekiln.runtime.errors import BundleError, EngineError, UsageError


def test_the_engine_that_was_judged_passes_in_every_batch_size():
    session = LinearSession()
    result = check_canaries(session, recorded())
    assert (result.ok, result.problem, result.unasked, result.wrong_sizes) == (True, "", "", ())
    assert (result.pictures, result.calls) == (16, len(session.batches))
    assert set(BATCH_SIZES) <= set(session.batches)
    assert sum(session.batches) == 16 * len(BATCH_SIZES)
    assert result.worst == result.max_difference == 0
    assert result.seconds > 0


def test_load_asks_two_alone_and_four_as_one_batch():
    session = LinearSession()
    assert check_canaries(session, recorded(), thorough=False).pictures == 4
    assert session.batches == [1, 1, 4]


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_found(fault, thorough):
    result = check_canaries(LinearSession(fault), recorded(), thorough=thorough)
    assert not result.ok
    assert result.worst > 1
    assert result.problem


def test_it_tells_where_the_answers_are_wrong():
    result = check_canaries(LinearSession(only_in_batches), recorded())
    assert result.wrong_sizes == BATCH_SIZES[1:]
    assert "in batches of 2, 3, 5, 16" in result.problem
    assert "logit " in result.problem
    odd = check_canaries(LinearSession(only_in_odd_batches), recorded())
    assert odd.wrong_sizes == (3, 5)
    assert check_canaries(LinearSession(only_in_odd_batches), recorded(), thorough=False).ok


def test_batch_sizes_with_a_model_of_their_own_are_asked_too():
    """All pictures in each when thorough, the four of ``load`` again and again otherwise."""
    session = LinearSession()
    session.static_batches = (6, 40)
    assert check_canaries(session, recorded(), thorough=False).ok
    assert session.batches == [1, 1, 4, 6, 40]
    session.batches.clear()
    assert check_canaries(session, recorded(), thorough=True).ok
    assert session.batches[-4:] == [6, 6, 6, 40]
    session.fault = lambda logits: logits * np.float32(2 if len(logits) == 40 else 1)
    for thorough in (True, False):
        assert check_canaries(session, recorded(), thorough=thorough).wrong_sizes == (40,)
    with pytest.raises(EngineError, match="depend on the batch size"):
        recorded(session)


def test_a_difference_of_rounding_is_none():
    span = float(np.ptp(answers(LinearSession())))
    rng = np.random.default_rng(1)

    def rounded(logits):
        return (logits + rng.uniform(-0.005, 0.005, logits.shape) * span).astype(np.float32)

    result = check_canaries(LinearSession(rounded), recorded())
    assert result.ok
    assert 0 < result.worst < 1


def test_other_pictures_than_those_that_were_judged_are_no_evidence():
    result = check_canaries(LinearSession(frame_shape=(16, 40)), recorded())
    assert "not those that it was judged with" in result.problem


def test_a_later_recipe_is_told_and_not_asked():
    later = CanaryRecord.from_dict({**recorded().to_dict(), "recipe": 2}, 5)
    session = LinearSession()
    result = check_canaries(session, later)
    assert "recipe 2" in result.unasked
    assert (result.ok, result.pictures, session.batches) == (True, 0, [])


def test_an_engine_that_cannot_be_asked_is_no_wrong_answer():
    def closed(logits):
        raise UsageError("This session is closed.")

    with pytest.raises(UsageError, match="closed"):
        check_canaries(LinearSession(closed), recorded())


def test_a_record_keeps_every_bit_and_stays_small():
    record = recorded()
    again = CanaryRecord.from_dict(json.loads(json.dumps(record.to_dict())), 5)
    assert again == record
    assert again.answers.tobytes() == record.answers.tobytes() == answers(LinearSession()).tobytes()
    thousand = np.random.default_rng(0).normal(size=(16, 1000)).astype(np.float32)
    big = CanaryRecord(1, record.inputs, thousand, record.tolerances).to_dict()
    assert len(json.dumps(big)) < 90_000
    assert decode_logits(big["answers"], (16, 1000)).tobytes() == thousand.astype("<f4").tobytes()


DAMAGE = {
    "no recipe": {"recipe": "1"},
    "too few pictures": {"inputs": ["0" * 64]},
    "no digest": {"inputs": [5] * 16},
    "a tolerance of 0": {"tolerances": [0.0] * 16},
    "an endless tolerance": {"tolerances": [10**400] * 16},
    "a tolerance too few": {"tolerances": [1.0] * 15},
    "a word for a tolerance": {"tolerances": ["1"] * 16},
    "no base64": {"answers": "no base64!"},
    "too few answers": {"answers": "AAAAAA=="},
    "part of a number": {"answers": "AAA="},
    "not a number": {"answers": "AADAfw==" * 80},
    "no text": {"answers": 5},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_with_damaged_canaries_is_refused(make_bundle, variant, damage):
    canaries = {**recorded(LinearSession(frame_shape=(4, 8))).to_dict(), **DAMAGE[damage]}
    folder = make_bundle(variant("fp32", "fp32", canaries=canaries))
    with pytest.raises(BundleError, match="not a valid manifest"):
        parse_manifest((folder / "manifest.json").read_bytes(), folder / "manifest.json")
