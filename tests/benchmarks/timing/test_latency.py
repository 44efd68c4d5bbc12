import importlib.util
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.benchmarks.timing.contender import Contender, engine_contender, peer_contender, thread_choices
from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.benchmarks.timing.latency import run_benchmark
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.runtime.errors import EngineError, GateError

PLAN = BenchmarkPlan(processes=2, blocks=2, block_seconds=0.02, side_blocks=1)


def test_contenders_are_timed_in_turns_by_fresh_processes(engine):
    path, inputs, logits = engine
    contenders = [engine_contender(name, [path], "onnxruntime-cpu", logits) for name in ("a", "b")]
    result = run_benchmark(contenders, inputs, plan=PLAN)
    first, second = result.measurements
    for medians in (first.block_medians(0), first.block_medians(1), second.block_medians()):
        assert [row.shape for row in medians] == [(2,), (2,)]
    assert (first.times_ms > 0).all()
    assert [entry["config"]["threads"] for entry in first.search] == thread_choices()
    assert first.config in [entry["config"] for entry in first.search]
    assert {(m.name, m.boundary) for m in result.sides} == {(n, b) for n in "ab" for b in ("engine", "image")}
    for values in result.cold.values():
        # An interpreter with numpy and onnxruntime takes tens of milliseconds at least, a tiny CNN one or two.
        assert values["import_ms"] > 20
        assert values["load_ms"] > 0
        assert values["first_result_ms"] > 0
    assert {m.device for m in result.measurements} == {"cpu"}
    assert [session["rounds"] for session in result.sessions] == [[1, 2]]
    assert set(result.repeated) == {"a", "b"}
    assert set(result.ratios) == (set() if result.validity.state == "invalid" else {"b"})


def test_contender_that_answers_otherwise_is_not_timed(engine):
    path, inputs, logits = engine
    liar = engine_contender("liar", [path], "onnxruntime-cpu", logits + np.float32(1))
    with pytest.raises(GateError, match="liar answers otherwise when timed"):
        run_benchmark([liar], inputs, plan=PLAN)


def test_error_inside_a_worker_arrives_with_its_text(engine, tmp_path):
    _, inputs, logits = engine
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    broken = engine_contender("broken", [tmp_path / "bad.onnx"], "onnxruntime-cpu", logits)
    with pytest.raises(EngineError, match="broken: This is no ONNX model"):
        run_benchmark([broken], inputs, plan=PLAN)


def test_worker_that_dies_is_named(engine):
    _, inputs, logits = engine
    dead = Contender("dead", "os:_exit", {"status": 9}, [{}], logits)
    with pytest.raises(EngineError, match=r"process of dead ended with 9 during 'open'"):
        run_benchmark([dead], inputs, plan=PLAN)


def test_without_encoded_pictures_there_is_no_image_boundary(engine, tmp_path):
    path, _, logits = engine
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    save_inputs(tmp_path / "bare.npz", frames)
    result = run_benchmark(
        [engine_contender("a", [path], "onnxruntime-cpu", logits)], tmp_path / "bare.npz", plan=PLAN
    )
    assert {m.boundary for m in result.sides} == {"engine"}


@pytest.mark.parametrize(
    "right",
    [
        1 + 4,  # the first answer and the check of all frames: wrong from the first timed call on
        1
        + 4
        + 6,  # wrong from a later block on: in a round, four blocks of two calls at least follow the check
    ],
)
def test_answer_that_changes_while_timed_is_noticed(engine, monkeypatch, right):
    """A contender that is right when checked and wrong afterwards, as one that caches would be."""
    path, inputs, logits = engine
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    arguments = {"path": str(path), "right": right}
    turncoat = Contender("turncoat", "tests_support:open_turncoat", arguments, [{"threads": 1}], logits)
    with pytest.raises(GateError, match="turncoat answers otherwise when timed"):
        run_benchmark([turncoat], inputs, plan=PLAN)


def test_peers_on_the_same_file_are_timed_and_those_that_cannot_be_are_left_out(engine, tmp_path):
    path, inputs, logits = engine
    said = []
    peer = peer_contender("onnxruntime", "a", path, logits, tolerance=1e-3)
    liar = replace(peer, name="liar", logits=logits + np.float32(1))
    dead = Contender("dead", "os:_exit", {"status": 9}, [{}], logits, optional=True)
    contenders = [engine_contender("a", [path], "onnxruntime-cpu", logits), peer, liar, dead]
    result = run_benchmark(contenders, inputs, plan=PLAN, message=said.append)
    assert [m.name for m in result.measurements] == ["a", "onnxruntime:a"]
    # None is the library's own choice: nothing but the defaults of SessionOptions.
    searched = [entry["config"]["threads"] for entry in result.measurements[1].search]
    assert searched == [None, *thread_choices()]
    assert {m.name for m in result.sides} == {"a"}
    assert set(result.cold) == {"a", "onnxruntime:a"}
    assert list(result.left_out) == ["liar", "dead"]
    assert "liar answers otherwise when timed" in result.left_out["liar"]
    assert said == [f"  {name} is left out: {reason}" for name, reason in result.left_out.items()]
    assert result.to_dict()["left_out"] == result.left_out


def test_peer_that_dies_in_a_round_is_left_out_and_no_finished_round_is_lost(engine, tmp_path, monkeypatch):
    path, inputs, logits = engine
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    (tmp_path / "marks").mkdir()
    (tmp_path / "work").mkdir()
    arguments = {
        "path": str(path),
        "folder": str(tmp_path / "marks"),
        "lives": 3,
    }  # the search, and two rounds
    mortal = Contender(
        "mortal", "tests_support:open_mortal", arguments, [{"threads": 1}], logits, optional=True
    )
    ours = engine_contender("a", [path], "onnxruntime-cpu", logits)
    said = []
    plan = replace(PLAN, processes=4)
    result = run_benchmark([ours, mortal], inputs, plan=plan, folder=tmp_path / "work", message=said.append)
    assert [m.name for m in result.measurements] == ["a"]
    assert "process of mortal ended with 7" in result.left_out["mortal"]
    assert said == [f"  mortal is left out: {result.left_out['mortal']}"]
    assert [len(rows) for rows in result.measurements[0].block_medians()] == [2] * 4
    assert result.sessions[0]["rounds"] == [1, 2, 3, 4]
    again = run_benchmark([ours, mortal], inputs, plan=plan, folder=tmp_path / "work")
    assert again.left_out == result.left_out
    assert again.measurements[0].median_ms == result.measurements[0].median_ms


def test_openvino_is_timed_on_the_same_file(engine):
    if importlib.util.find_spec("openvino") is None:  # never imported plainly: that would send an event
        pytest.skip("OpenVINO is not installed")
    path, inputs, logits = engine
    ours = engine_contender("a", [path], "onnxruntime-cpu", logits)
    peer = peer_contender("openvino", "a", path, logits, tolerance=1e-3)
    result = run_benchmark([ours, peer], inputs, plan=PLAN)
    assert [m.name for m in result.measurements] == ["a", "openvino:a"]
    assert [entry["config"]["threads"] for entry in result.measurements[1].search] == thread_choices()
    assert result.left_out == {}


FIVE = BenchmarkPlan(processes=5, blocks=2, block_seconds=0.01, side_blocks=1)


def test_benchmark_goes_on_after_its_finished_rounds(engine, tmp_path):
    path, inputs, logits = engine
    contenders = [engine_contender("a", [path], "onnxruntime-cpu", logits)]
    folder = tmp_path / "work"
    folder.mkdir()

    def interrupt(done, total, note):
        if note == "round 3 of 5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(contenders, inputs, plan=FIVE, folder=folder, advance=interrupt)
    names = ["bench-round-1.json", "bench-round-2.json", "bench-search-0.json"]
    before = {name: (folder / name).read_bytes() for name in names}
    assert sorted(entry.name for entry in folder.iterdir()) == names

    told, said = [], []
    result = run_benchmark(
        contenders,
        inputs,
        plan=FIVE,
        folder=folder,
        advance=lambda *step: told.append(step),
        message=said.append,
    )
    assert said == ["  goes on after round 2 of 5"]
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert not any(note.startswith(("round 1", "round 2")) for _, _, note in told)
    total = FIVE.count_units(1)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {every for _, every, _ in told} == {total}
    assert told[-1] == (total, total, "done")
    assert [session["rounds"] for session in result.sessions] == [[1, 2], [3, 4, 5]]
    first = json.loads(before["bench-round-1.json"])["values"]["blocks"][0][0]["times_ns"]
    assert (result.measurements[0].blocks[0].times_ms * 1e6).round().astype(int).tolist() == first

    changed = replace(FIVE, processes=2)  # another plan: nothing of this one fits it
    result = run_benchmark(contenders, inputs, plan=changed, folder=folder, message=said.append)
    assert "6 earlier parts of this benchmark are damaged or of another plan: measured again" in said[1]
    assert [session["rounds"] for session in result.sessions] == [[1, 2]]
