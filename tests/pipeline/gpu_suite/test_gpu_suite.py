"""``make gpu-test`` without a GPU: its way out, its isolation, its statistics, and all of it that a CPU can run."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.pipeline.gpu_suite import bench as bench_module
from edgekiln.pipeline.gpu_suite import contenders, machine, reference
from edgekiln.pipeline.gpu_suite.__main__ import main
from edgekiln.pipeline.gpu_suite.bench import bench
from edgekiln.pipeline.gpu_suite.contenders import BASELINE, COMPILED, GRAPHED
from edgekiln.pipeline.gpu_suite.context import SuiteOptions
from edgekiln.pipeline.gpu_suite.document import names_of
from edgekiln.pipeline.gpu_suite.engines import EngineFile, ask_engine
from edgekiln.pipeline.gpu_suite.goals import judge_goals
from edgekiln.pipeline.gpu_suite.gpu_tests import parse_junit
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, run_isolated
from edgekiln.pipeline.gpu_suite.layers import list_layers
from edgekiln.pipeline.gpu_suite.machine import query_smi
from edgekiln.pipeline.gpu_suite.networks import make_frames, make_network
from edgekiln.pipeline.gpu_suite.reference import (
    MAX_DIFFERENCE,
    RightAnswers,
    compare_answers,
    find_answers,
    reference_logits,
    write_answers,
)
from edgekiln.pipeline.gpu_suite.reruns import bench_with_reruns
from edgekiln.pipeline.gpu_suite.suite import run_suite
from edgekiln.pipeline.gpu_suite.table import render
from edgekiln.pipeline.gpu_suite.timing import Contender, TimingPlan, summarize, time_in_turns
from edgekiln.pipeline.shipping.privacy import remove_private
from edgekiln.runtime.cuda import DeviceProperties, DriverState, probe_driver

LAYERS = [str(ROOT / layer) for layer in ("pipeline", "export", "runtime", "benchmarks")]
HERE = "test_gpu_suite_parts"
GPU = DeviceProperties("Pretend GPU", (9, 0), 132, 80 * 2**30, False, True, "not to be told")
no_gpu = pytest.mark.skipif(probe_driver().problem is None, reason="There is a GPU here.")

# A module of its own, found by the children through PYTHONPATH.
PARTS = """
import os, signal, time
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.runtime.errors import DeviceError

def fine(arguments, tell):
    tell({"step": "one"})
    return {"doubled": 2 * arguments["number"]}

def raises(arguments, tell):
    raise ValueError("made to raise")

def skips(arguments, tell):
    raise SkippedPart("not on a Sunday")

def lacks(arguments, tell):
    raise DeviceError("no such device")

def crashes(arguments, tell):
    tell({"step": "about to crash"})
    os.kill(os.getpid(), signal.SIGSEGV)

def leaves(arguments, tell):
    print("bye", flush=True)
    os._exit(7)

def hangs(arguments, tell):
    tell({"step": "hanging"})
    time.sleep(60)

def contenders(arguments, tell):
    for name in ("pytorch-eager-fp32-strict", "pytorch-compile-fp16", "bad", "good"):
        if name in arguments["exclude"]:
            continue
        tell({"contender": name, "doing": "open"})
        if name == "bad":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "pytorch-compile-fp16" and arguments["compile_mode"] != "default":
            time.sleep(60)
    return {"excluded": arguments["exclude"], "mode": arguments["compile_mode"]}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / f"{HERE}.py").write_text(PARTS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *LAYERS, *sys.path])
    return lambda name, **limits: run_isolated(f"{HERE}:{name}", {"number": 21}, **{"limit_s": 30, **limits})


def run_python(*arguments, path=(), **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *LAYERS]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --------------------------------------------------------------------------------------------------------------
# The whole


@no_gpu
def test_without_a_gpu_every_part_says_why(tmp_path):
    out = tmp_path / "results" / "gpu.json"
    done = run_python("-m", "edgekiln.pipeline.gpu_suite", "--out", str(out))
    assert done.returncode == 5, done.stderr
    assert "GPU: none" in done.stdout
    document = json.loads(out.read_text())
    assert document["exit_code"] == 5
    assert len(document["parts"]) == 26 + len(list_layers())
    for part in document["parts"].values():
        assert part["state"] == "skipped"
        assert part["reason"] == f"no GPU: {document['problem']}"
    assert document["parts"]["machine"]["result"]["versions"]["numpy"] == np.__version__
    assert [goal["met"] for goal in document["goals"]] == [None] * 3
    assert not {str(Path.home()), str(tmp_path), socket.gethostname()} & set(out.read_text().split('"'))
    assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]


@no_gpu
def test_make_gpu_test_is_that_command(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        ["make", "gpu-test", f"PYTHON={sys.executable}", f"OUT={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error 5" in done.stderr
    assert json.loads(out.read_text())["schema"] == "edgekiln.gpu-suite/2"


@pytest.mark.slow
@no_gpu
def test_with_a_gpu_whose_libraries_are_missing_all_is_skipped(monkeypatch):
    """The driver is pretended, so every part runs, in its child, up to where it asks for the real one."""
    monkeypatch.setattr(sys, "path", [*LAYERS, *sys.path])
    said = []
    options = SuiteOptions(models=("tiny",), batches=(1,), families=("torch", "tensorrt", "layers", "soak"))
    driver = DriverState(None, (13, 0), (GPU,))
    document, code = run_suite(options, say=said.append, driver=driver)
    told = {name: (part["state"], part["reason"]) for name, part in document["parts"].items()}
    assert told["machine"] == ("done", None)
    assert document["parts"]["machine"]["result"]["gpu"]["sm"] == 90
    assert told["tests"] == told["rtx-engines"] == ("skipped", "left out by --only")
    assert told["graphs.tiny"][0] == "done"
    assert told["engines.tensorrt.tiny"][0] == "skipped"
    assert "finds no GPU" in told["bench.tiny.b1"][1]
    layers = [told[f"layers.{name}"] for name in list_layers()]
    assert layers
    assert {state for state, _ in layers} == {"skipped"}
    assert all("libcuda" in reason for _, reason in layers)
    assert told["soak"][0] == "skipped"
    assert [row["part"] for row in document["plan"]] == [name for name in told if name != "machine"]
    assert code == document["exit_code"] == 0
    assert "not to be told" not in json.dumps(document)
    assert "bench.tiny.b1" in render(document)
    assert any("bench.tiny.b1: skipped" in line for line in said)


def test_unknown_names_are_refused(capsys):
    assert names_of("a, b", ["a", "b"]) == ("a", "b")
    with pytest.raises(SystemExit):
        main(["--out", "x.json", "--only", "torch,tensorflow"])
    assert "got tensorflow, known: tests, torch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", "x.json", "--models", "/no/such/folder"])


# --------------------------------------------------------------------------------------------------------------
# Isolation


def test_a_part_answers_and_tells(parts):
    outcome = parts("fine")
    assert (outcome.state, outcome.reason, outcome.result) == ("done", None, {"doubled": 42})
    assert outcome.last == {"step": "one"}


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("raises", "failed", "ValueError: made to raise (test_gpu_suite_parts.py:"),
        ("skips", "skipped", "not on a Sunday"),
        ("lacks", "skipped", "no such device"),
        ("crashes", "failed", "the process crashed (SIGSEGV)"),
        ("leaves", "failed", "exit code 7 and without an answer: bye"),
        ("absent", "failed", "AttributeError"),
    ],
)
def test_what_goes_wrong_in_a_part_is_its_outcome(parts, name, state, words):
    outcome = parts(name)
    assert outcome.state == state
    assert words in outcome.reason
    if name == "crashes":
        assert outcome.last == {"step": "about to crash"}


@pytest.mark.parametrize("limits", [{"limit_s": 1.5}, {"step_limit_s": 1}])
def test_a_part_that_hangs_is_ended(parts, limits):
    began = time.monotonic()
    outcome = parts("hangs", **limits)
    assert time.monotonic() - began < 20
    assert outcome.state == "failed"
    assert "it took longer than 1" in outcome.reason
    assert outcome.last == {"step": "hanging"}


def test_a_contender_that_crashes_or_hangs_costs_only_itself(parts):
    arguments = {"exclude": {}, "compile_mode": "max-autotune-no-cudagraphs"}
    said = []
    outcome = bench_with_reruns(
        f"{HERE}:contenders", arguments, limit_s=60, step_limit_s=1.5, say=said.append
    )
    assert outcome.state == "done"
    assert outcome.result["mode"] == "default"  # its long search hung, its short one did not
    assert list(outcome.result["excluded"]) == ["bad"]
    assert "during open: the process crashed (SIGSEGV)" in outcome.result["excluded"]["bad"]["reason"]
    assert arguments["exclude"] == {}
    assert any(f"{COMPILED} (open): it took longer" in line for line in said)


# --------------------------------------------------------------------------------------------------------------
# Missing modules

BLOCK = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
LEAN = ("PIL", "pydantic", "torchvision", "onnxscript", "pytest", "modelopt", "tensorrt_rtx", "tensorrt")


@pytest.fixture
def lean(tmp_path):
    folder = tmp_path / "lean"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=set(LEAN)))
    return folder


@no_gpu
def test_it_runs_without_what_may_be_missing(lean, tmp_path):
    out = tmp_path / "gpu.json"
    done = run_python("-m", "edgekiln.pipeline.gpu_suite", "--out", str(out), path=[lean])
    assert done.returncode == 5, done.stderr
    assert json.loads(out.read_text())["exit_code"] == 5


@pytest.mark.slow
def test_its_parts_run_without_what_may_be_missing(lean, tmp_path):
    code = f"""
import importlib.util, json, sys
from pathlib import Path
from fake_cuda import FakeCuda
from edgekiln.pipeline.proof import torch_callers
from edgekiln.pipeline.gpu_suite import dynamic, engines, graphs, gpu_tests, inputs, layers, networks
from edgekiln.pipeline.gpu_suite import packing, preparation, soak, suite, table
from edgekiln.pipeline.gpu_suite.bench import bench
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
told = {{}}
for name, call in {{
    "tests": lambda: gpu_tests.run_gpu_tests({{}}, print),
    "rtx": lambda: engines.build_all(
        {{"models": ["tiny"], "batches": [1], "flavour": "tensorrt-rtx", "work": {str(tmp_path)!r}}}, print),
}}.items():
    try:
        told[name] = call()
    except Exception as error:
        told[name] = f"{{type(error).__name__}}: {{error}}"
told["files"] = graphs.export_models({{"models": ["tiny"], "work": {str(tmp_path)!r}}}, lambda e: None)
lite0 = networks.make_network("lite0")
told["modules"] = len(list(lite0.modules()))
told["torchvision"] = "torchvision" in sys.modules
result = bench({{"model": "tiny", "batch": 1, "device": "cpu", "folders": [{str(tmp_path)!r}], "exclude": {{}},
    "families": ["onnxruntime"], "rounds": 5, "block_seconds": 0.01}}, lambda e: None)
try:
    dynamic.try_dynamic({{"flavour": "tensorrt"}}, print)
except Exception as error:
    told["dynamic"] = f"{{type(error).__name__}}: {{error}}"
told["layer"] = layers.check_all(FakeCuda(), lambda e: None)["failures"]
graph = Path({str(tmp_path)!r}) / "tiny.onnx"
packing.pack_parts([packing.Packed(graph)], Path({str(tmp_path)!r}), {{}})
told["inputs"] = inputs.gather_inputs({{"given": {str(tmp_path)!r}, "target": {str(tmp_path / "target")!r},
    "site": {str(tmp_path / "site")!r}}}, lambda e: None)["counts"]
soaked = soak.soak({{"model": "tiny", "batch": 1, "device": "cpu", "folders": [{str(tmp_path)!r}],
    "families": ["onnxruntime"], "seconds": 0.2}}, lambda e: None)
told["soaked"] = soaked["soaked"], soaked["failures"]
told["loaded"] = sorted({set(LEAN)!r} & set(sys.modules))
told["states"] = {{name: entry["state"] for name, entry in result["contenders"].items()}}
print(json.dumps(told))
"""
    done = run_python("-c", code, path=[lean, ROOT / "tests"])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tests"] == "SkippedPart: pytest is not installed"
    assert {entry["state"] for entry in told["rtx"].values()} == {"skipped"}
    assert "TorchScript" in told["files"]["tiny.onnx"]["made_by"]
    assert told["files"]["tiny.fp16.onnx"]["made_by"] == "onnxconverter-common"
    assert told["files"]["tiny.int8.onnx"] == {
        "state": "skipped",
        "reason": "nvidia-modelopt is not installed",
    }
    assert told["modules"] > 100
    assert told["soaked"] == ["onnxruntime-cpu-fp32", []]
    assert told["loaded"] == []
    assert told["dynamic"].startswith("MissingExtraError: ")
    assert told["layer"] == []
    assert told["inputs"] == {"done": 1, "skipped": 0, "failed": 0}
    assert not told["torchvision"]
    assert told["states"] == {
        BASELINE: "done",
        "onnxruntime-cpu-fp32": "done",
        "onnxruntime-cpu-fp16": "done",
    }


# --------------------------------------------------------------------------------------------------------------
# Tests' report, goals, texts

JUNIT = """<?xml version="1.0"?><testsuites><testsuite tests="5" hostname="secret">
<testcase classname="tests.a" name="passes"/>
<testcase classname="tests.a" name="skips"><skipped message="no pycuda" type="pytest.skip"/></testcase>
<testcase classname="tests.a" name="fails"><failure message="assert 1 == 2">long text</failure></testcase>
<testcase classname="" name="tests.b"><error message="collection failure">E   ModuleNotFoundError: No module named
 'pydantic'</error></testcase>
<testcase classname="" name="tests.c"><error message="collection failure">ModuleNotFoundError: No module named 'onnx.x'
</error></testcase></testsuite></testsuites>"""


def test_junit_is_counted_and_reasons_are_kept():
    found = parse_junit(JUNIT)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["skips"] == [{"test": "tests.a::skips", "reason": "no pycuda"}]
    assert found["failures"][0] == {"test": "tests.a::fails", "reason": "assert 1 == 2 long text"}
    assert found["failures"][1]["test"] == "tests.b"  # its text is not what pytest writes: not explained away
    assert found["not_collected"] == [{"test": "tests.c", "reason": "onnx.x is not installed"}]


def figures(eager=(5.0, 4.5, 5.5), graph=(1.1, 1.05, 1.15), wall=1.08, state="valid"):
    def ratio(values):
        return dict(zip(("value", "low95", "high95"), values, strict=True))

    ratios = {BASELINE: ratio(eager), GRAPHED: ratio(graph)} if state != "invalid" else {}
    entry = {"times_faster_than": ratios, "wall_over_device": wall}
    validity = {"state": state, "reasons": ["too loud"]}
    result = {"fastest_edgekiln": "ours", "contenders": {"ours": entry}, "validity": validity}
    return {"bench.resnet50.b1": {"state": "done", "reason": None, "result": result}}


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True]),
        ({"eager": (4.1, 3.9, 4.3)}, [None, True, True]),
        ({"eager": (3.0, 2.9, 3.1), "graph": (0.9, 0.8, 0.95)}, [False, False, True]),
        ({"wall": 1.2}, [True, True, False]),
        ({"wall": None}, [True, True, None]),
        ({"state": "invalid"}, [None, None, True]),
    ],
)
def test_goals_follow_from_figures(changes, met):
    goals = judge_goals(figures(**changes))
    assert [goal["met"] for goal in goals] == met
    assert all(goal["backend"] == "ours" and "resnet50, batch 1" in goal["goal"] for goal in goals)


def test_goals_without_figures_say_why():
    skipped = {"bench.resnet50.b1": {"state": "skipped", "reason": "no torch", "result": None}}
    assert {goal["reason"] for goal in judge_goals(skipped)} == {"no torch"}
    assert "too loud" in judge_goals(figures(state="invalid"))[0]["reason"]


def test_texts_lose_what_is_private():
    private = {"/home/me/x": "...", "/home/me": "...", "box-7": "HOST", "me": "USER"}
    told = {"a": ["/home/me/x/f.py:3 on box-7", "some method of me"], "b": 3, "/network/conv": None}
    assert remove_private(told, private) == {
        "a": [".../f.py:3 on HOST", "some method of USER"],
        "b": 3,
        "/network/conv": None,
    }


def test_clocks_are_numbers_and_what_is_not_told_is_none(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '580.1.2, P0, 1980, 1980, 2619, 71.42, 700, 31, 0, 0x0, Enabled, [N/A]'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = query_smi()
    assert (found["problem"], found["driver"], found["sm_clock_mhz"]) == (None, "580.1.2", 1980)
    assert (found["power_draw_w"], found["throttle_reasons_mask"], found["mig"]) == (71.42, "0x0", None)
    program.write_text("#!/bin/sh\necho 'not supported'; exit 2\n")
    assert query_smi() == {"problem": "nvidia-smi ended with 2: not supported"}


@pytest.mark.parametrize(("uuids", "asked"), [(["a-b", "c"], "GPU-a-b"), ([None], "0"), ([], "0")])
def test_the_gpu_in_use_is_asked_about_by_its_uuid(tmp_path, monkeypatch, uuids, asked):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$1 $2" >{tmp_path}/asked; echo "$2 not found"; exit 2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "gpu_uuids", lambda: uuids)
    told = asked if asked == "0" else "the GPU in use"
    assert query_smi() == {"problem": f"nvidia-smi ended with 2: {told} not found"}
    assert (tmp_path / "asked").read_text() == f"-i {asked}\n"


# --------------------------------------------------------------------------------------------------------------
# Timing


class Sleeper:
    """A contender that takes a known time, and counts who ran when."""

    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log, self.device = name, seconds, log, None

    def begin(self):
        self.log.append(self.name)

    def run(self, frames):
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return np.zeros((len(frames), 2), np.float32)

    def device_ms(self, frames, calls):
        return [self.seconds * 900] * calls if self.name == "twice" else None

    def close(self):
        pass


def test_contenders_take_turns_and_ratios_are_right():
    log, halfway = [], []
    callers = {name: Sleeper(name, s, log) for name, s in (("base", 2e-3), ("twice", 1e-3))}
    batches = [np.full((1, 2, 2, 3), i, np.uint8) for i in range(3)]
    measured = time_in_turns(callers, batches, TimingPlan(6, 0.02), midway=lambda: halfway.append(len(log)))
    # A warm-up each, then rounds of base, twice, base, in turn from the front and from the back.
    assert log == ["base", "twice", *["base", "twice", "base"] * 6]
    assert len(halfway) == 1
    summary = summarize(measured, ("base", "absent"), foreign_load=0.0, steal=0.0)
    twice = summary["contenders"]["twice"]
    assert twice["p50_ms"] == pytest.approx(1.0, rel=0.2)  # busy waiting, on a machine that others use
    assert twice["device_p50_ms"] == pytest.approx(0.9)
    assert twice["wall_over_device"] == pytest.approx(twice["p50_ms"] / 0.9)
    assert summary["contenders"]["base"]["device_p50_ms"] is None
    assert len(twice["block_medians_ms"]) == 6
    if summary["validity"]["state"] != "invalid":
        assert list(twice["times_faster_than"]) == ["base"]
        assert twice["times_faster_than"]["base"]["value"] == pytest.approx(2.0, rel=0.2)


def test_an_invalid_measurement_has_no_ratio():
    log = []
    callers = {name: Sleeper(name, 1e-4, log) for name in ("base", "other")}
    measured = time_in_turns(callers, [np.zeros((1, 2, 2, 3), np.uint8)], TimingPlan(5, 0.002))
    for block in measured["base"][0].blocks:
        block.times_ms[:] = 1.0 + block.turn  # its second turn takes twice as long: it differs from itself
    summary = summarize(measured, ("base",), foreign_load=0.0, steal=0.0)
    assert summary["validity"]["state"] == "invalid"
    assert summary["contenders"]["other"]["times_faster_than"] == {}


# --------------------------------------------------------------------------------------------------------------
# Models and contenders, on the CPU


def test_networks_and_pictures_are_the_same_each_time_and_worth_comparing():
    frames = make_frames(6, 32)
    assert frames.dtype == np.uint8
    assert len({frame.tobytes() for frame in frames}) == 6
    np.testing.assert_array_equal(frames, make_frames(6, 32))
    logits = reference_logits("tiny", frames)
    assert compare_answers(logits, reference_logits("tiny", frames)).max_difference == 0
    assert np.ptp(logits, axis=0).max() > 0.1  # the picture decides, and not the biases
    assert not compare_answers(np.full_like(logits, np.nan), logits).right
    assert not compare_answers(logits[::-1], logits).right
    assert not make_network("tiny").training


def bench_arguments(**changes):
    arguments = {"model": "tiny", "batch": 3, "device": "cpu", "folders": [], "exclude": {}}
    arguments |= {"families": ["torch", "onnxruntime"], "rounds": 5, "block_seconds": 0.01}
    return {**arguments, **changes}


def bench_tiny(monkeypatch, extra=(), **changes):
    listed = bench_module.list_contenders
    monkeypatch.setattr(bench_module, "list_contenders", lambda a: [*listed(a), *extra])
    crashed = {"pytorch-eager-tf32": {"state": "failed", "reason": "it crashed"}}
    told = []
    return bench(bench_arguments(exclude=crashed, **changes), told.append), told


def test_only_contenders_that_answer_rightly_are_timed(monkeypatch):
    class Wrong(Sleeper):
        def run(self, frames):
            return np.zeros((len(frames), 1000), np.float32)

    def explode():
        raise RuntimeError("no engine for you")

    extra = [
        Contender("wrong", "tensorrt", {}, lambda: Wrong("wrong", 0, [])),
        Contender("explodes", "tensorrt", {}, explode),
    ]
    result, told = bench_tiny(monkeypatch, extra)
    states = {name: (entry["state"], entry.get("reason")) for name, entry in result["contenders"].items()}
    assert states[BASELINE] == states["pytorch-channels-last-fp16"] == ("done", None)
    assert states["pytorch-eager-tf32"] == ("failed", "it crashed")
    assert states["onnxruntime-cpu-fp32"] == ("skipped", "there is no tiny.onnx; part 'graphs.tiny' says why")
    assert "it answers wrongly, so it is not timed" in states["wrong"][1]
    assert states["explodes"] == ("failed", "RuntimeError: no engine for you")
    assert "p50_ms" not in result["contenders"]["wrong"]
    assert result["fastest_edgekiln"] is None
    assert {"contender": "explodes", "doing": "open"} in told
    json.dumps(result, allow_nan=False)
    document = {"parts": {"bench.tiny.b3": {"state": "done", "reason": None, "result": result}}}
    assert "wrong" in render(document)


def test_without_a_gpu_there_is_no_baseline():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("There is a GPU here.")
    with pytest.raises(SkippedPart, match="finds no GPU"):
        bench(bench_arguments(device="cuda"), lambda event: None)


def test_without_a_baseline_the_figures_are_absolute_and_the_result_says_so(monkeypatch):
    """As on a Jetson without PyTorch: an engine is timed, and what is right was prepared elsewhere."""
    right = find_answers("tiny", [])
    monkeypatch.setattr(contenders, "explain_no_torch", lambda device: "torch is not installed")
    monkeypatch.setattr(bench_module, "explain_no_torch", lambda device: "torch is not installed")
    monkeypatch.setattr(bench_module, "find_answers", lambda model, folders: right)

    class Right(Sleeper):
        def run(self, frames):
            return reference_logits("tiny", frames)

        def device_ms(self, frames, calls):
            return [1.5] * calls

    extra = [Contender("tensorrt-fp16", "tensorrt", {}, lambda: Right("right", 0, []))]
    result, _ = bench_tiny(monkeypatch, extra)
    assert result["baseline"] is None
    assert (
        "the figures are absolute and there is no ratio to PyTorch: torch is not installed"
        in (result["baseline_problem"])
    )
    assert result["contenders"][BASELINE] == {
        "family": "torch",
        "config": {"dtype": "float32", "tf32": False},
        "state": "skipped",
        "reason": "torch is not installed",
    }
    entry = result["contenders"]["tensorrt-fp16"]
    assert entry["state"] == "done"
    assert entry["device_p50_ms"] == 1.5
    assert entry["p50_ms"] > 0
    assert entry["images_per_second"] > 0
    assert entry["times_faster_than"] == {}
    assert result["fastest_edgekiln"] == "tensorrt-fp16"
    text = render({"parts": {"bench.tiny.b3": {"state": "done", "reason": None, "result": result}}})
    assert "there is no ratio to PyTorch: torch is not installed" in text


def test_an_answer_is_compared_where_what_is_right_is_known(tmp_path, monkeypatch):
    write_answers("tiny", [], tmp_path / "tiny.answers.npz")
    prepared = find_answers("tiny", [str(tmp_path)])
    assert prepared.source == "prepared file"
    np.testing.assert_array_equal(prepared.logits, find_answers("tiny", []).logits)
    assert prepared.allowed("fp16") == MAX_DIFFERENCE
    assert RightAnswers(None, "", int8_difference=0.02).allowed("int8") == pytest.approx(
        0.02 + MAX_DIFFERENCE
    )
    # Other pictures, for example of another Pillow, would make right answers look wrong.
    with (tmp_path / "tiny.answers.npz").open("wb") as file:
        np.savez(file, logits=prepared.logits, frames_sha256="of others")
    assert find_answers("tiny", [str(tmp_path)]).source == "PyTorch on this machine's CPU"
    monkeypatch.setattr(reference, "make_network", lambda *a: (_ for _ in ()).throw(SkippedPart("no torch")))
    unknown = find_answers("tiny", [str(tmp_path)])
    assert unknown.logits is None
    assert unknown.source == "no torch, and the prepared file is of other pictures"


def test_engine_names_tell_all():
    assert EngineFile("lite0", "fp16", 1, "tensorrt-rtx", (80,)).name == "lite0.fp16.b1.rtx-sm80.engine"
    assert EngineFile("lite0", "fp16", 64, "tensorrt-rtx").name == "lite0.fp16.b64.rtx-default.engine"
    assert EngineFile("lite0", "fp32", 1, "tensorrt").name == "lite0.fp32.b1.trt.engine"


@no_gpu
def test_an_rtx_engine_is_not_asked_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*LAYERS, *sys.path])
    engine = tmp_path / "tiny.fp16.b1.rtx-default.engine"
    engine.write_bytes(b"vtrt" + bytes(60))
    arguments = {"path": str(engine), "model": "tiny", "batch": 1, "flavour": "tensorrt-rtx"}
    arguments |= {"precision": "fp16", "folders": []}
    outcome = run_isolated(f"{ask_engine.__module__}:ask_engine", arguments, limit_s=60)
    assert outcome.state == "skipped"
    assert "libcuda" in outcome.reason
