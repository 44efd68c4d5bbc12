import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from tests_support import ROOT

from edgekiln.benchmarks.latency import (
    BenchmarkPlan,
    Contender,
    engine_contender,
    run_benchmark,
    save_inputs,
    thread_choices,
)
from edgekiln.benchmarks.measurement import Block, Measurement, assess
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EngineError, GateError

PLAN = BenchmarkPlan(processes=2, blocks=2, block_seconds=0.02, side_blocks=1)


@pytest.fixture
def engine(tiny_run, tmp_path):
    """(engine file, frames file, logits) of the tiny run's FP32 engine."""
    path = tiny_run[2].bundle / "fp32.onnx"
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    pictures = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    contract = json.loads((tiny_run[2].bundle / "manifest.json").read_text())["contract"]
    save_inputs(tmp_path / "inputs.npz", frames, pictures, json.dumps(contract))
    return path, tmp_path / "inputs.npz", open_session("onnxruntime-cpu", path.read_bytes()).run(frames)


def test_contenders_are_timed_in_turns_by_fresh_processes(engine):
    path, inputs, logits = engine
    contenders = [engine_contender(name, [path], "onnxruntime-cpu", logits) for name in ("a", "b")]
    result = run_benchmark(contenders, inputs, PLAN)
    first, second = result.measurements
    assert first.block_medians(0).shape == first.block_medians(1).shape == (2, 2)
    assert second.block_medians().shape == (2, 2)
    assert (first.times_ms > 0).all()
    assert [entry["config"]["threads"] for entry in first.search] == thread_choices()
    assert first.config in [entry["config"] for entry in first.search]
    assert {(m.name, m.boundary) for m in result.sides} == {(n, b) for n in "ab" for b in ("engine", "image")}
    assert all(values["load_ms"] > 0 < values["first_result_ms"] for values in result.cold.values())
    assert set(result.repeated) == {"a", "b"}
    assert set(result.ratios) == (set() if result.validity.state == "invalid" else {"b"})


def test_contender_that_answers_otherwise_is_not_timed(engine):
    path, inputs, logits = engine
    liar = engine_contender("liar", [path], "onnxruntime-cpu", logits + np.float32(1))
    with pytest.raises(GateError, match="liar answers otherwise when timed"):
        run_benchmark([liar], inputs, PLAN)


def test_error_inside_a_worker_arrives_with_its_text(engine, tmp_path):
    _, inputs, logits = engine
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    broken = engine_contender("broken", [tmp_path / "bad.onnx"], "onnxruntime-cpu", logits)
    with pytest.raises(EngineError, match="broken: This is no ONNX model"):
        run_benchmark([broken], inputs, PLAN)


def test_worker_that_dies_is_named(engine):
    _, inputs, logits = engine
    dead = Contender("dead", "os:_exit", {"status": 9}, [{}], logits)
    with pytest.raises(EngineError, match=r"process of dead ended with 9 during 'open'"):
        run_benchmark([dead], inputs, PLAN)


def test_without_encoded_pictures_there_is_no_image_boundary(engine, tmp_path):
    path, _, logits = engine
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    save_inputs(tmp_path / "bare.npz", frames)
    result = run_benchmark(
        [engine_contender("a", [path], "onnxruntime-cpu", logits)], tmp_path / "bare.npz", PLAN
    )
    assert {m.boundary for m in result.sides} == {"engine"}


def test_answer_that_changes_while_timed_is_noticed(engine, monkeypatch):
    """A contender that is right when checked and wrong afterwards, as one that caches would be."""
    path, inputs, logits = engine
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    arguments = {"path": str(path)}
    turncoat = Contender("turncoat", "tests_support:open_turncoat", arguments, [{"threads": 1}], logits)
    with pytest.raises(GateError, match="turncoat answers otherwise when timed"):
        run_benchmark([turncoat], inputs, PLAN)


def test_contender_that_remembers_an_image_is_called_noisy():
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    assert assess([steady], steal=0, foreign_load=0, repeated={"a": 0.95}).state == "valid"
    found = assess([steady], steal=0, foreign_load=0, repeated={"a": 0.5})
    assert found.state == "noisy"
    assert "a is 50% faster on one repeated image" in found.reasons[0]
