import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import HEED_INTERRUPTS, ROOT

from edgekiln.benchmarks.timing.contender import (
    Contender,
    choose_images,
    engine_contender,
    open_worker,
    peer_contender,
    save_inputs,
    thread_choices,
)
from edgekiln.benchmarks.timing.latency import BenchmarkPlan, _best, _judge, run_benchmark
from edgekiln.benchmarks.timing.measurement import Block, Measurement, assess
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


def test_answer_that_changes_while_timed_is_noticed(engine, monkeypatch):
    """A contender that is right when checked and wrong afterwards, as one that caches would be."""
    path, inputs, logits = engine
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    arguments = {"path": str(path)}
    turncoat = Contender("turncoat", "tests_support:open_turncoat", arguments, [{"threads": 1}], logits)
    with pytest.raises(GateError, match="turncoat answers otherwise when timed"):
        run_benchmark([turncoat], inputs, plan=PLAN)


def test_contender_that_remembers_an_image_is_called_noisy():
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    assert assess([steady], steal=0, foreign_load=0, repeated={"a": 0.95}).state == "valid"
    found = assess([steady], steal=0, foreign_load=0, repeated={"a": 0.5})
    assert found.state == "noisy"
    assert "a is 50% faster on one repeated image" in found.reasons[0]


# -- peers


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


def test_all_images_rotate_however_few_calls_a_block_has(engine):
    path, inputs, logits = engine
    with open_worker(inputs, engine_contender("a", [path], "onnxruntime-cpu", logits)) as worker:
        worker.open({"threads": 1})
        seen = [
            worker.ask("time", seconds=0.0) for _ in range(6)
        ]  # one call each: the clock is read after it
        assert [len(answer["times_ns"]) for answer in seen] == [1] * 6
        assert [answer["sample"]["index"] for answer in seen] == [0, 1, 2, 3, 0, 1]
        repeated = [worker.ask("time", seconds=0.0, repeat=True)["sample"]["index"] for _ in range(3)]
        assert repeated == [0, 0, 0]
        assert worker.ask("time", seconds=0.0)["sample"]["index"] == 2, "a repeated image takes no turn"
        worker.check_all()
        worker.time_ns(0.01)  # what is sampled is compared with the answer of its own image


@pytest.mark.parametrize(("total", "wanted"), [(297, 64), (64, 64), (10, 64), (1, 2)])
def test_images_are_spread_over_the_whole_split(total, wanted):
    chosen = choose_images(total, wanted)
    assert len(set(chosen)) == len(chosen) == min(total, wanted)
    assert (chosen[0], chosen[-1]) == (0, total - 1)
    assert max(np.diff(chosen), default=0) <= np.ceil(total / wanted) + 1


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


# -- interrupted and resumed

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


def session(**changes):
    machine = dict.fromkeys(("cpu", "cores", "thread_settings", "cpu_quota_cores", "gpus", "versions"))
    machine["governor"] = changes.pop("governor", "performance")
    return {"foreign_load": 0.0, "steal": 0.0, "machine": machine, **changes}


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"foreign_load": 1.2}, "other processes kept 1.2 cores busy"),
        ({"steal": 0.3}, "the hypervisor took 30%"),
        ({"governor": "powersave"}, "went on under another governor"),
    ],
)
def test_worst_stretch_of_work_is_judged(second, text):
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    assert _judge([steady], [session(), session()], {}, [ROUND]).state == "valid"
    for order in ([session(), session(**second)], [session(**second), session()]):
        found = _judge([steady], order, {}, [ROUND])
        assert found.state == "noisy"
        assert text in found.reasons[0]


ROUND = {"cpu_mhz": 3000.0, "gpu_state": [{"throttled_by": ["idle"]}]}


@pytest.mark.parametrize(
    ("slow", "text"),
    [
        ({"cpu_mhz": 2400.0}, "the CPU's clock went from 3000 down to 2400 MHz between rounds"),
        ({"gpu_state": [{"throttled_by": ["idle", "hardware thermal slowdown"]}]},
         "the GPU was throttled by hardware thermal slowdown"),
    ],
)  # fmt: skip
def test_a_machine_that_slows_down_while_timing_is_noisy(slow, text):
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    found = _judge([steady], [session()], {}, [ROUND, {**ROUND, **slow}])
    assert (found.state, found.reasons) == ("noisy", (text,))
    unknown = {"cpu_mhz": None, "gpu_state": [{"throttled_by": None}]}
    assert _judge([steady], [session()], {}, [unknown, unknown]).state == "valid"


# -- Ctrl-C

BENCH_A_SLEEPER = """
import sys
from pathlib import Path
import numpy as np
from edgekiln.benchmarks.timing.contender import Contender, open_worker
sleeper = Contender("sleeper", "tests_support:open_sleeper", {"seconds": 60}, [{}], np.zeros((1, 3), np.float32))
with open_worker(Path(sys.argv[1]), sleeper) as worker:
    print("open", flush=True)
    worker.open({})
"""


def workers_of(inputs: Path) -> list[str]:
    """Processes that have the inputs file among their arguments, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:  # it has ended
            continue
        if b"edgekiln.benchmarks.timing.worker" in words and str(inputs).encode() in words:
            found.append(entry.name)
    return found


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_benchmark_that_is_stopped(engine, monkeypatch, number):
    """A real process group, as a terminal signals it; the worker is busy loading and reads no pipe."""
    inputs = engine[1]
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    process = subprocess.Popen(
        [sys.executable, "-c", HEED_INTERRUPTS + BENCH_A_SLEEPER, str(inputs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"open\n"
        wait_until(lambda: workers_of(inputs))
        time.sleep(0.5)  # into the load
        started = time.monotonic()
        os.killpg(process.pid, number)
        assert process.wait(timeout=5) != 0
        wait_until(lambda: not workers_of(inputs), 5 - (time.monotonic() - started))


def test_idle_worker_uses_no_cpu(engine):
    path, inputs, logits = engine
    with open_worker(inputs, engine_contender("a", [path], "onnxruntime-cpu", logits)) as worker:
        worker.open({"threads": max(thread_choices())})
        worker.time_ns(0.1)
        [pid] = workers_of(inputs)

        def ticks() -> int:
            fields = (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        time.sleep(0.2)  # onnxruntime's threads may look for work a little longer
        before = ticks()
        time.sleep(0.5)
        assert ticks() - before <= 0.1 * 0.5 * os.sysconf("SC_CLK_TCK")


def entry(median_ms, **config):
    return {"config": config, "median_ms": median_ms}


def test_more_threads_are_taken_only_where_they_gain_a_fifth():
    assert _best([entry(6.5, threads=1), entry(5.5, threads=2)]) == {"threads": 1}
    assert _best([entry(6.5, threads=1), entry(5.1, threads=2)]) == {"threads": 2}
    layouts = [
        entry(8.0, threads=1, last=False),
        entry(6.5, threads=1, last=True),
        entry(5.5, threads=2, last=True),
    ]
    assert _best(layouts) == {"threads": 1, "last": True}
    assert _best([entry(1.0, threads=None), entry(1.1, threads=1)]) == {"threads": 1}
    assert _best([entry(2.0, search=True), entry(1.9, search=False)]) == {"search": False}
