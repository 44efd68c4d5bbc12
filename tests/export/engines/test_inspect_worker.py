"""What the engine inspector is asked, and with which context. The library is a fake; only a GPU has the real one."""

import json

import fake_tensorrt_builder as trt
import pytest

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.export.engines import inspect_worker
from edgekiln.export.engines.inspect_worker import inspect_plan
from edgekiln.runtime.backends.tensorrt_library import LibraryLog
from edgekiln.runtime.errors import EngineError, EnvironmentProblem

DYNAMIC, STATIC, ONE = ([[n, 32, 32, 3] for n in batch] for batch in ((1, 8, 32), (4, 4, 4), (1, 1, 1)))


def inspect(shapes, monkeypatch, faults="", more=()):
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", faults)
    return inspect_plan(trt, LibraryLog(trt), json.dumps([shapes, *more]).encode())


def input_types(found):
    return {kind for layer in parse_inspector(found["layers"]) for kind in layer.inputs}


@pytest.mark.parametrize("shapes", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_formats_are_told_of_every_engine(shapes, monkeypatch):
    found = inspect(shapes, monkeypatch)
    assert found["note"] is None
    assert "fp16" in input_types(found)
    assert "unknown" not in input_types(found)


def test_every_profile_tells_its_layers_with_their_formats(monkeypatch):
    found = inspect(ONE, monkeypatch, more=[DYNAMIC])
    layers = parse_inspector(found["layers"])
    alone = parse_inspector(inspect(ONE, monkeypatch)["layers"])
    assert found["note"] is None
    assert "unknown" not in input_types(found)
    assert [layer.profile for layer in layers] == [0] * len(alone) + [1] * len(alone)
    assert [layer.origins for layer in layers] == [layer.origins for layer in alone] * 2


def test_a_profile_that_is_refused_is_said(monkeypatch):
    found = inspect(ONE, monkeypatch, "profile", more=[DYNAMIC])
    assert found["note"].startswith("the context refused profile 1 (")
    types = {kind for layer in parse_inspector(found["layers"]) if layer.profile for kind in layer.inputs}
    assert "unknown" in types


@pytest.mark.parametrize("marks", [("", "", ""), (" [profile 1]", " [profile 2]", " [profile 2]")])
def test_lists_of_layers_without_a_profile_that_was_asked_for(monkeypatch, marks):
    """Without any mark a list is of the profile that was asked for; with marks, none may lack one."""
    text = json.dumps({"Layers": [f"a{mark}" for mark in marks]})
    monkeypatch.setattr(trt.Inspector, "get_engine_information", lambda *_: text)
    if not any(marks):
        found = parse_inspector(inspect(ONE, monkeypatch, more=[DYNAMIC])["layers"])
        assert [layer.profile for layer in found] == [0, 0, 0, 1, 1, 1]
        return
    with pytest.raises(EngineError, match="lists no layers of profile 0"):
        inspect(ONE, monkeypatch, more=[DYNAMIC])


@pytest.mark.parametrize(
    ("faults", "note"),
    [
        ("context", "no execution context could be made (Requested amount of GPU memory"),
        ("shape", "the context refused the shape (8, 32, 32, 3) ("),
    ],
)
def test_without_a_context_it_is_inspected_all_the_same_and_said(monkeypatch, faults, note):
    found = inspect(DYNAMIC, monkeypatch, faults)
    assert found["note"].startswith(note)
    assert "unknown" in input_types(found)


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        ("Runtime", EnvironmentProblem, "does not start: .*error: 35"),
        ("engine", EngineError, "does not load its own engine: the plan is of another device"),
        ("inspector", EngineError, "the engine gives no inspector"),
        ("text", EngineError, "the inspector lists no layers"),
    ],
)
def test_what_fails_is_told(monkeypatch, faults, error, words):
    with pytest.raises(error, match=words):
        inspect(STATIC, monkeypatch, faults)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (trt.Engine, "does not load its own engine"),
        (trt.Inspector, "the engine gives no inspector"),
        (trt.Context, None),
    ],
)
def test_an_object_around_no_object_is_never_used(monkeypatch, kind, words):
    monkeypatch.setattr(
        inspect_worker, "refuse_hollow", lambda made: None if isinstance(made, kind) else made
    )
    if words is None:
        assert inspect(DYNAMIC, monkeypatch)["note"].startswith("no execution context could be made")
        return
    with pytest.raises(EngineError, match=words):
        inspect(DYNAMIC, monkeypatch)
