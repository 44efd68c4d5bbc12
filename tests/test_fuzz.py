"""Some hundred damaged files of each kind; thousands are for ``PYTHONPATH=tests python -m fuzz``."""

import json
import os
import random
import signal

import pytest
from fuzz import __main__ as fuzzing
from fuzz import targets
from fuzz.mutations import mutate_bytes, mutate_json, mutate_onnx, mutate_toml
from fuzz.targets import TARGETS
from tests_support import ROOT

from edgekiln.runtime.errors import EdgekilnError


@pytest.fixture(scope="module")
def bundle(tiny_run):
    return tiny_run[2].bundle


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_every_end_is_ok_or_typed(bundle, kind, tmp_path):
    count = 40 if kind in {"openvino", "report"} else 120
    result = fuzzing.fuzz(bundle, kind, count=count, seed=7, keep=tmp_path / "found")
    assert result["findings"] == []
    assert sum(result["ends"].values()) == count
    assert any(end.startswith("typed") for end in result["ends"])


CORPUS = sorted((ROOT / "tests/data/fuzz").glob("*.*"))
"""Files, KIND-SEED-NUMBER, that once made a library crash or run on: found by this fuzzer, kept for ever."""


@pytest.fixture(scope="module")
def children(bundle):
    """A child for each kind, which its files share."""
    made = {}
    yield lambda kind: made.setdefault(kind, fuzzing._Child(kind, bundle))
    for child in made.values():
        child.close()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_was_a_finding_ends_ok_or_typed(children, path):
    end, detail = children(path.name.partition("-")[0]).use(path)
    assert end == "ok" or end.startswith("typed"), detail


def test_there_is_a_corpus():
    assert len(CORPUS) >= 5


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_damage_is_made_again_by_its_number(bundle, kind):
    target = TARGETS[kind]
    whole = target.read(bundle)
    first, second = (
        [target.mutate(whole, random.Random(f"0/{number}")) for number in range(12)] for _ in range(2)
    )
    assert first == second
    assert len({*first}) > 6
    assert sum(data != whole for data in first) > 6


@pytest.mark.parametrize(
    ("mutate", "whole"),
    [
        (mutate_bytes, b""),
        (mutate_bytes, b"a"),
        (mutate_json, b"{}"),
        (mutate_json, b"[1]"),
        (mutate_toml, b"x = 1"),
    ],
)
def test_small_files_can_be_damaged_too(mutate, whole):
    for seed in range(200):
        assert isinstance(mutate(whole, random.Random(seed)), bytes)


def test_onnx_damage_is_still_protobuf(mean_model_bytes):
    import onnx

    changed = 0
    for seed in range(100):
        data = mutate_onnx(mean_model_bytes, random.Random(seed))
        onnx.load_from_string(data)
        changed += data != mean_model_bytes
    assert changed > 50


@pytest.fixture
def mean_model_bytes():
    from edgekiln.pipeline.doctor.tiny_model import make_tiny_model

    return make_tiny_model()


# -- the child: what it must survive, and tell apart


@pytest.fixture
def child(bundle, monkeypatch, tmp_path):
    """``child(code)`` uses one file in a worker whose target runs that code, and another one after it."""

    def use(code):
        start = (
            "import sys, os, time, signal\n"
            "from fuzz import targets, worker\n"
            "from fuzz.targets import Target\n"
            "from edgekiln.runtime.errors import EngineError\n"
            "def consume(path, bundle):\n"
            f"    if path.read_bytes() == b'bad':\n        {code}\n"
            "targets.TARGETS['engine'] = Target(None, None, consume)\n"
            "worker.use_files('engine', None)\n"
        )
        child = fuzzing._Child("engine", bundle)
        child._command = [fuzzing.sys.executable, "-c", start]
        path = tmp_path / "case"
        ends = []
        for content in (b"good", b"bad", b"good"):
            path.write_bytes(content)
            ends.append(child.use(path))
        child.close()
        assert ends[0] == ends[2] == ("ok", "")
        return ends[1]

    return use


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("raise EngineError('no')", "typed engine"),
        ("raise KeyError('x')", "untyped KeyError"),
        ("sys.exit(3)", "untyped SystemExit"),
        ("print('noise on stdout')", "ok"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", f"crash {int(signal.SIGSEGV)}"),
        ("os._exit(0)", "crash 0"),
        ("bytearray(2**40)", "untyped MemoryError"),
    ],
)
def test_ends_are_told_apart_and_the_next_file_is_used(child, code, end):
    assert child(code)[0] == end


def test_a_file_that_takes_too_long_is_a_hang(child, monkeypatch):
    monkeypatch.setattr(fuzzing, "PATIENCE_S", 3.0)
    assert child("time.sleep(60)")[0] == "hang"


def test_a_finding_is_kept_and_told(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzzing._Child, "use", lambda self, path: ("untyped KeyError", "x"))
    code = fuzzing.main(
        [str(bundle), "--kind", "manifest", "--count", "3", "--keep", str(tmp_path / "found")]
    )
    document = json.loads(capsys.readouterr().out)
    assert code == 3
    assert document["ends"] == {"untyped KeyError": 3}
    assert [f["number"] for f in document["findings"]] == [0, 1, 2]
    assert len(os.listdir(tmp_path / "found")) == 3  # noqa: PTH208


def test_a_command_that_ends_as_a_bug_is_a_finding(monkeypatch):
    from edgekiln.pipeline import cli

    def end_with(code):
        def main(arguments):
            raise SystemExit(code)

        monkeypatch.setattr(cli, "main", main)

    end_with(1)
    with pytest.raises(targets.CommandError):
        targets._command("compare", "a", "b")
    for code in (None, 0, 2, 3, 4, 130):
        end_with(code)
        assert targets._command("compare", "a", "b") == (code or 0)


@pytest.mark.parametrize(
    ("codes", "code"), [((4, 2), "untrusted"), ((0, 2), "usage"), ((3, 5), "environment")]
)
def test_a_command_that_refuses_is_a_typed_end(codes, code):
    targets._tell(0, 3)
    with pytest.raises(EdgekilnError) as caught:
        targets._tell(*codes)
    assert caught.value.code == code
