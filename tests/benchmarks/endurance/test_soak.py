"""The soak: that it finds faults that are really there, and what its command says of them."""

import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from serving_support import GatedSession

from edgekiln.benchmarks.endurance import soak
from edgekiln.benchmarks.endurance.soak import run_soak
from edgekiln.benchmarks.endurance.soak_inputs import make_inputs
from edgekiln.benchmarks.endurance.soak_result import Minute, SoakResult
from edgekiln.benchmarks.endurance.soak_traffic import SoakInput, run_alone
from edgekiln.pipeline.cli import cli
from edgekiln.pipeline.cli.soak import _HEADINGS
from edgekiln.pipeline.cli.soak import soak as soak_command
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError, ImageError, UsageError
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Prediction, Selection

CONTRACT = Contract(height=16, width=16, classes=("a", "b", "c"))
SHORT = {"minutes": 3, "callers": 2, "seconds_per_minute": 0.15}


def classifier_of(session):
    return Classifier(session, CONTRACT, Selection("fp32", "fake", "fp32", "made by hand"))


@pytest.fixture
def session():
    return GatedSession(frame_shape=(16, 16))


def minute(number, *, p99=2.0, rss=100.0, descriptors=9):
    return Minute(number, 100, 50, 1.0, p99, rss, descriptors)


def result(*minutes, **changes):
    return SoakResult("fp32", minutes, **changes)


# -- the parts


def test_inputs_are_the_same_every_time_and_some_of_both_kinds(session):
    with classifier_of(session) as classifier:
        outcomes = []
        for picture in make_inputs():
            outcomes.append(run_alone(classifier, picture))
        again = [run_alone(classifier, picture) for picture in make_inputs()]
    good = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
    reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, ImageError)}
    assert len(good) == 10
    assert reasons == {"format", "truncated", "too_large", "missing", "unreadable", "type", "mode"}
    for first, second in zip(outcomes, again, strict=True):
        if isinstance(first, Prediction):
            np.testing.assert_array_equal(first.logits, second.logits)


def test_no_two_good_pictures_pass_for_each_other(session):
    with classifier_of(session) as classifier:
        good = [SoakInput(p, run_alone(classifier, p)) for p in make_inputs()]
    good = [given for given in good if isinstance(given.wanted, Prediction)]
    for given in good:
        assert [other for other in good if given.find_fault(other.wanted) is None] == [given]


# -- the whole


def test_a_sound_classifier_has_no_faults(session):
    seen = []
    with classifier_of(session) as classifier:
        found = run_soak(classifier, on_minute=seen.append, **SHORT)
    assert (found.faults, found.fault_count, found.descriptor_growth) == ((), 0, 0)
    assert [m.number for m in found.minutes] == [1, 2, 3]
    assert found.minutes == tuple(seen)
    assert sum(m.answered for m in found.minutes) > 0
    assert sum(m.refused for m in found.minutes) > 0
    assert all(m.p50_ms <= m.p99_ms for m in found.minutes)
    assert json.loads(json.dumps(found.to_dict()))["fault_count"] == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("edgekiln")]
    assert session.closed == 1


def test_a_leak_of_descriptors_is_found(session):
    leaked = []
    try:
        with classifier_of(session) as classifier:
            found = run_soak(classifier, on_minute=lambda _: leaked.append(os.dup(1)), **SHORT)
    finally:
        for descriptor in leaked:
            os.close(descriptor)
    assert found.descriptor_growth == 2  # the third was opened after the last count
    assert any("2 more file descriptors" in problem for problem in found.problems)


class Muddled(GatedSession):
    """Mixes up the logits, once all inputs have been run."""

    def run(self, frames):
        logits = super().run(frames)
        return logits[:, ::-1].copy() if len(self.batches) > 12 else logits


class Crashing(GatedSession):
    def run(self, frames):
        if len(self.batches) > 12:
            raise ZeroDivisionError("from within a library")
        return super().run(frames)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Muddled, "got another one's answer"), (Crashing, "a good picture gave ZeroDivisionError")],
)
def test_wrong_answers_and_foreign_errors_are_found(kind, message):
    with classifier_of(kind(frame_shape=(16, 16))) as classifier:
        found = run_soak(classifier, **SHORT)
    assert found.fault_count >= len(found.faults) > 0
    assert any(message in fault for fault in found.faults)
    assert "calls went wrong" in found.problems[0]


def test_a_reload_that_fails_is_found(session, tmp_path):
    with classifier_of(session) as classifier:
        found = run_soak(classifier, reload_from=tmp_path / "none", **SHORT)
    assert found.fault_count == 9 + 1 + 1
    assert len(found.faults) == 10
    assert "a reload ended with UsageError: There is no folder" in found.faults[0]


def test_the_event_loop_asks_and_cancels(session, monkeypatch):
    outcomes = []
    unpatched = Batcher.predict_async

    async def watched(self, picture):
        try:
            answer = await unpatched(self, picture)
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise
        outcomes.append(type(answer).__name__)
        return answer

    monkeypatch.setattr(Batcher, "predict_async", watched)
    with classifier_of(session) as classifier:
        assert run_soak(classifier, **SHORT).fault_count == 0
    assert {*outcomes} == {"Prediction", "ImageError", "CancelledError"}


@pytest.mark.parametrize("change", [{"minutes": 2}, {"callers": 0}])
def test_too_little_to_judge_is_refused(session, change):
    with (
        classifier_of(session) as classifier,
        pytest.raises(UsageError, match="3 or more minutes and 1 or more"),
    ):
        run_soak(classifier, **{**SHORT, **change})


# -- the command


@pytest.fixture
def run_command(monkeypatch, session):
    """The command with this soak's result instead of minutes of work."""

    def run(found, *arguments):
        def fake(classifier, *, minutes, callers, pictures, reload_from, on_minute):
            assert (minutes, callers, reload_from) == (3, 2, Path("bundle"))
            for one in found.minutes:
                on_minute(one)
            fake.pictures = pictures
            return found

        monkeypatch.setattr(
            "edgekiln.runtime.load", lambda path, **options: classifier_of(session), raising=False
        )
        monkeypatch.setattr(soak, "run_soak", fake)
        arguments = ["soak", "bundle", "--minutes", "3", "--callers", "2", *arguments]
        outcome = CliRunner().invoke(cli, arguments)
        return outcome, getattr(fake, "pictures", None)

    return run


def test_the_command_prints_a_line_for_each_minute(run_command):
    outcome, _ = run_command(result(minute(1), minute(2), minute(3, rss=104.5)))
    lines = outcome.stdout.splitlines()
    assert outcome.exit_code == 0
    assert re.split(r"  +", lines[0].strip()) == [*_HEADINGS]
    assert lines[3].split() == ["3", "100", "50", "1.00", "2.00", "104.5", "9"]
    assert lines[4] == "fp32: RSS +4.5 MB, descriptors +0, p99 +0%, 0 faults"


def test_the_command_fails_with_the_gates_code(run_command):
    outcome, _ = run_command(result(minute(1), minute(2), minute(3, rss=150.0)))
    assert isinstance(outcome.exception, GateError)
    assert outcome.exception.exit_code == 3
    assert "memory grew by 50.0 MB" in str(outcome.exception)


@pytest.mark.parametrize(("rss", "code"), [(100.0, 0), (150.0, 3)])
def test_the_command_gives_one_document_either_way(run_command, rss, code):
    outcome, _ = run_command(result(minute(1), minute(2), minute(3, rss=rss)), "--json")
    document = json.loads(outcome.stdout)
    assert (outcome.exit_code, document["ok"]) == (code, code == 0)
    assert len(document["minutes"]) == 3
    assert (document.get("error") or {}).get("code") == ("gate" if code else None)


def test_the_command_takes_pictures_of_a_folder(run_command, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.JPG", "2.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    _, pictures = run_command(result(*(minute(i) for i in (1, 2, 3))), "--images", str(tmp_path))
    assert pictures == [tmp_path / "2.png", tmp_path / "a/1.JPG"]
    outcome, _ = run_command(result(minute(1)), "--images", str(tmp_path / "none"))
    assert "There is no folder" in str(outcome.exception)
    (tmp_path / "empty").mkdir()
    outcome, _ = run_command(result(minute(1)), "--images", str(tmp_path / "empty"))
    assert "holds no pictures" in str(outcome.exception)


def test_fewer_than_three_minutes_are_refused():
    outcome = CliRunner().invoke(soak_command, ["bundle", "--minutes", "2"])
    assert outcome.exit_code == 2


@pytest.mark.slow
def test_a_real_bundle_soaks(tiny_run, pictures):
    from edgekiln.runtime import load

    bundle = tiny_run[2].bundle
    with load(bundle, threads=1) as classifier:
        first = classifier.session
        found = run_soak(
            classifier,
            pictures=sorted(pictures.rglob("*.png"))[:9],
            reload_from=bundle,
            **SHORT | {"seconds_per_minute": 1},
        )
        assert classifier.session is not first
    assert (found.faults, found.descriptor_growth) == ((), 0)
    assert sum(m.answered for m in found.minutes) > 0
