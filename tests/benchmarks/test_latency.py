import numpy as np
import pytest

from edgekiln.benchmarks.latency import (
    BenchmarkPlan,
    Contender,
    engine_contender,
    run_benchmark,
    thread_choices,
)
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EngineError, GateError

PLAN = BenchmarkPlan(processes=2, blocks=2, block_seconds=0.02)


@pytest.fixture
def engine(tiny_run, tmp_path):
    """(engine file, frames file, logits) of the tiny run's FP32 engine."""
    path = tiny_run[2].bundle / "fp32.onnx"
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    return path, tmp_path / "frames.npy", open_session("onnxruntime-cpu", path.read_bytes()).run(frames)


def test_contenders_are_timed_in_turns_by_fresh_processes(engine):
    path, frames_file, logits = engine
    contenders = [engine_contender(name, [path], "onnxruntime-cpu", logits) for name in ("a", "b")]
    result = run_benchmark(contenders, frames_file, PLAN)
    first, second = result.measurements
    assert first.block_medians(0).shape == first.block_medians(1).shape == (2, 2)
    assert second.block_medians().shape == (2, 2)
    assert (first.times_ms > 0).all()
    assert [entry["config"]["threads"] for entry in first.search] == thread_choices()
    assert first.config in [entry["config"] for entry in first.search]
    assert set(result.ratios) == (set() if result.validity.state == "invalid" else {"b"})


def test_contender_that_answers_otherwise_is_not_timed(engine):
    path, frames_file, logits = engine
    liar = engine_contender("liar", [path], "onnxruntime-cpu", logits + np.float32(1))
    with pytest.raises(GateError, match="liar answers otherwise when timed"):
        run_benchmark([liar], frames_file, PLAN)


def test_error_inside_a_worker_arrives_with_its_text(engine, tmp_path):
    _, frames_file, logits = engine
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    broken = engine_contender("broken", [tmp_path / "bad.onnx"], "onnxruntime-cpu", logits)
    with pytest.raises(EngineError, match=r"broken: onnxruntime .* cannot load this model"):
        run_benchmark([broken], frames_file, PLAN)


def test_worker_that_dies_is_named(engine):
    _, frames_file, logits = engine
    dead = Contender("dead", "os:_exit", {"status": 9}, [{}], logits)
    with pytest.raises(EngineError, match=r"process of dead ended with 9 during 'open'"):
        run_benchmark([dead], frames_file, PLAN)
