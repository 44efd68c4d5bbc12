"""``load`` asks the canaries: a wrong engine is an error by name, and passed over without one."""

import json
import logging

import numpy as np
import pytest
from serving_support import flat

from edgekiln.pipeline.device.canary_records import CanaryReference, answer_canaries, record_canaries
from edgekiln.pipeline.doctor.bundles import check_bundle
from edgekiln.runtime import load
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EnvironmentProblem, ExitCode, SelfTestError, UsageError
from edgekiln.runtime.spec import Precision


@pytest.fixture(scope="session")
def canaries(build_model):
    """The manifest's entry of an engine that gives the mean colour times ``scale``."""

    def make(scale):
        model = build_model(scale=scale)
        session = open_session("onnxruntime-cpu", model)
        reference = CanaryReference(answer_canaries(session), Precision.INT8)
        values = record_canaries(
            session, lambda threads: open_session("onnxruntime-cpu", model, threads=threads), reference
        )
        session.close()
        return values

    return {scale: make(scale) for scale in (1.0, 2.0)}


def self_test_of(classifier):
    with classifier.hold() as model:
        return model.self_test


@pytest.fixture
def right(make_bundle, variant, canaries):
    """Both engines answer as recorded."""
    return make_bundle(
        variant("fp32", "fp32", canaries=canaries[1.0]), variant("int8", "int8", canaries=canaries[2.0])
    )


@pytest.fixture
def wrong_int8(make_bundle, variant, canaries):
    """INT8, which is preferred, answers twice what was recorded: as after an upgrade that broke a kernel."""
    return make_bundle(
        variant("fp32", "fp32", canaries=canaries[1.0]),
        variant("int8", "int8", canaries=canaries[1.0]),
        name="wrong",
    )


def test_a_right_engine_loads_and_the_log_tells_the_time(right, caplog):
    with caplog.at_level(logging.INFO, "edgekiln.runtime"), load(right) as classifier:
        assert classifier.variant.name == "int8"
        result = self_test_of(classifier)
    assert (result.pictures, result.calls, result.ok) == (4, 3, True)
    told = [record.message for record in caplog.records if "canaries" in record.message]
    assert len(told) == 1
    assert "variant int8 answered 4 canaries in 3 calls" in told[0]
    assert " ms" in told[0]


def test_a_wrong_engine_by_name_is_a_typed_error(wrong_int8):
    with pytest.raises(SelfTestError, match="'int8' answers otherwise here") as caught:
        load(wrong_int8, variant="int8")
    assert (caught.value.code, caught.value.exit_code) == ("self_test", ExitCode.ENVIRONMENT)
    assert "another variant" in caught.value.hint


def test_without_a_name_another_variant_is_taken_and_the_reason_says_why(wrong_int8):
    with load(wrong_int8) as classifier:
        assert classifier.variant.name == "fp32"
        assert "int8 cannot run here" in classifier.variant.reason
        assert "answers otherwise" in classifier.variant.reason


def test_where_all_are_wrong_nothing_is_loaded(make_bundle, variant, canaries):
    folder = make_bundle(variant("only", "int8", canaries=canaries[2.0]))
    with pytest.raises(EnvironmentProblem, match=r"Nothing in .* can run here: only .*answers otherwise"):
        load(folder)


def test_self_test_false_looks_away_and_a_reload_does_too(wrong_int8, caplog):
    with caplog.at_level(logging.INFO, "edgekiln.runtime"), load(wrong_int8, self_test=False) as classifier:
        assert classifier.variant.name == "int8"
        classifier.reload(wrong_int8)
        assert self_test_of(classifier) is None
    assert not [record for record in caplog.records if "canaries" in record.message]


@pytest.mark.parametrize("value", [None, "no", 1])
def test_self_test_is_true_or_false(right, value):
    with pytest.raises(UsageError, match="Unknown self_test"):
        load(right, self_test=value)


def test_an_engine_without_canaries_loads_and_the_log_says_so(bundle_folder, caplog):
    with caplog.at_level(logging.INFO, "edgekiln.runtime"), load(bundle_folder) as classifier:
        assert self_test_of(classifier) is None
    assert "variant int8 has no canaries: its answers were not checked" in caplog.messages


def test_a_reload_asks_all_and_the_old_engine_goes_on_where_the_new_one_is_wrong(right, wrong_int8):
    with load(right, variant="int8") as classifier:
        with pytest.raises(SelfTestError):
            classifier.reload(wrong_int8)
        assert classifier.predict(flat(10)).logits[0] == 20
        classifier.reload(right)
        result = self_test_of(classifier)
        assert (result.pictures, result.calls) == (16, 35)


def test_a_kernel_that_is_wrong_in_batches_alone_is_found_by_load(right, monkeypatch):
    from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession

    true_run = OnnxRuntimeSession.run

    def run(self, frames):
        logits = true_run(self, frames)
        return logits if len(frames) == 1 else logits * np.float32([1, 1, 1.2])

    monkeypatch.setattr(OnnxRuntimeSession, "run", run)
    with pytest.raises(SelfTestError, match=r"logit 2 is .*in batches of 4") as caught:
        load(right, variant="int8")
    assert "in 1 of 3 calls" in caught.value.message


def test_an_engine_that_is_refused_is_closed(wrong_int8, monkeypatch):
    from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession

    closed = []
    true_close = OnnxRuntimeSession.close
    monkeypatch.setattr(OnnxRuntimeSession, "close", lambda self: (closed.append(self), true_close(self))[1])
    with pytest.raises(SelfTestError):
        load(wrong_int8, variant="int8")
    assert len(closed) == 1


def test_doctor_asks_all_and_fails_what_is_wrong(wrong_int8, bundle_folder):
    head, fp32, int8 = check_bundle(wrong_int8)
    assert (head.state, fp32.state, int8.state) == ("OK", "OK", "FAIL")
    assert "passed and load here: fp32" in head.found
    assert "answers 16 made pictures as where it was judged" in fp32.found
    assert "answers wrongly here" in int8.found
    assert "another variant" in int8.fix
    unchecked = check_bundle(bundle_folder)[1]
    assert unchecked.state == "OK"
    assert "the bundle records none" in unchecked.found


def test_unverified_engines_are_asked_too(make_bundle, variant, canaries):
    folder = make_bundle(variant("late", "int8", verdict="fail", canaries=canaries[2.0]))
    with pytest.raises(SelfTestError):
        load(folder, variant="late", allow_unverified=True)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == "1.2"
