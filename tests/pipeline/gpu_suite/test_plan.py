"""What a run of the suite plans, leaves out and keeps, without a GPU: the parts are pretended."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from tests_support import ROOT

from edgekiln.pipeline.gpu_suite import suite
from edgekiln.pipeline.gpu_suite.__main__ import main
from edgekiln.pipeline.gpu_suite.context import DEFAULT_MODELS, FAMILIES, Run, SuiteOptions
from edgekiln.pipeline.gpu_suite.document import write_document
from edgekiln.pipeline.gpu_suite.isolation import Outcome
from edgekiln.pipeline.gpu_suite.layers import list_layers
from edgekiln.pipeline.gpu_suite.parts import list_parts
from edgekiln.pipeline.gpu_suite.plan import Part, explain_no_time, make_plan, render_plan
from edgekiln.pipeline.gpu_suite.suite import run_suite
from edgekiln.runtime.cuda import DeviceProperties, DriverState

GPU = DeviceProperties("Pretend GPU", (9, 0), 132, 80 * 2**30, False, True, "not to be told")
DRIVER = DriverState(None, (13, 0), (GPU,))
TOP_KEYS = {
    "schema": str,
    "edgekiln": (str, type(None)),
    "started_utc": str,
    "seconds": float,
    "complete": bool,
    "running": (str, type(None)),
    "exit_code": int,
    "problem": (str, type(None)),
    "options": dict,
    "plan": list,
    "goals": list,
    "parts": dict,
}


def part(name, expected=10.0, unwanted=None, limit=100.0, run=None):
    return Part(
        name, expected, limit, unwanted, run or (lambda limit_s: Outcome("done", None, {"limit": limit_s}))
    )


def check_schema(document):
    assert document["schema"] == "edgekiln.gpu-suite/2"
    assert list(document) == list(TOP_KEYS)
    for key, kind in TOP_KEYS.items():
        assert isinstance(document[key], kind), key
    for row in document["plan"]:
        assert list(row) == ["part", "runs", "expected_s", "begins_s", "reason"]
        assert (row["reason"] is None) == row["runs"] == (row["begins_s"] is not None)
    for name, entry in document["parts"].items():
        assert list(entry) == ["state", "reason", "seconds", "result"], name
        assert entry["state"] in {"done", "skipped", "failed"}
        assert (entry["reason"] is None) == (entry["state"] == "done"), name
    json.dumps(document, allow_nan=False)


def run_pretended(monkeypatch, parts, budget=100.0, **options):
    monkeypatch.setattr(suite, "list_parts", lambda run: parts)
    saved, said = [], []
    options = SuiteOptions(budget_s=budget, **options)
    document, code = run_suite(
        options, say=said.append, driver=DRIVER, save=lambda d: saved.append(json.loads(json.dumps(d)))
    )
    return document, code, saved, said


def test_the_order_is_that_of_value():
    run = Run(SuiteOptions(), suite.Path("/no/such/folder"), lambda text: None)
    names = [p.name for p in list_parts(run)]
    assert names[: len(list_layers())] == [f"layers.{name}" for name in list_layers()]
    after = names[len(list_layers()) :]
    assert after[:6] == [
        "graphs.lite0",
        "engines.tensorrt-rtx.lite0",
        "rtx-engines",
        "engines.tensorrt.lite0",
        "bench.lite0.b1",
        "dynamic.tensorrt-rtx",
    ]
    assert after.index("soak") < after.index("graphs.resnet18")  # one network whole, before the next one
    assert after[-1] == "tests"
    assert {f"bench.{model}.b{batch}" for model in DEFAULT_MODELS for batch in (1, 64)} <= {*names}
    assert len(names) == len({*names})


def test_what_is_not_wanted_is_told_beforehand():
    run = Run(SuiteOptions(families=("layers",)), suite.Path("/no/such/folder"), lambda text: None)
    unwanted = {p.name: p.unwanted for p in list_parts(run)}
    assert {name for name, reason in unwanted.items() if reason is None} == {
        f"layers.{n}" for n in list_layers()
    }
    assert set(unwanted.values()) == {None, "left out by --only"}
    everything = Run(SuiteOptions(families=FAMILIES), suite.Path("/no/such/folder"), lambda text: None)
    reasons = {p.name: p.unwanted for p in list_parts(everything)}
    assert reasons["engines.tensorrt.lite0"] == reasons["dynamic.tensorrt"] == "tensorrt is not installed"
    assert reasons["soak"] is None


def test_a_plan_leaves_out_what_does_not_fit_and_takes_shorter_ones_behind_it():
    rows = make_plan([part("a", 40), part("b", 50, "left out"), part("c", 70), part("d", 20)], 100.0)
    assert [(row["part"], row["runs"], row["begins_s"]) for row in rows] == [
        ("a", True, 0.0),
        ("b", False, None),
        ("c", False, None),
        ("d", True, 40.0),
    ]
    assert rows[1]["reason"] == "left out"
    assert rows[2]["reason"] == "it is expected to take 70 s, and 60 s of the budget are left"
    text = "\n".join(render_plan(rows, 100.0))
    assert "about 60 s of a budget of 100 s" in text
    assert "skipped: it is expected to take 70 s" in text
    assert explain_no_time(part("x", 5), -3) == "it is expected to take 5 s, and 0 s of the budget are left"


def test_the_default_plan_fits_into_its_budget():
    run = Run(SuiteOptions(), suite.Path("/no/such/folder"), lambda text: None)
    rows = make_plan(list_parts(run), run.options.budget_s)
    assert sum(row["expected_s"] for row in rows if row["runs"]) <= run.options.budget_s == 800
    runs = [row["part"] for row in rows if row["runs"]]
    assert {"graphs.lite0", "bench.lite0.b1", "soak"} <= {*runs}
    assert run.options.is_quick
    assert not SuiteOptions(budget_s=7200).is_quick


def test_the_plan_is_told_first_and_each_part_is_kept_when_it_is_over(monkeypatch):
    parts = [part("a"), part("b", 500), part("c", unwanted="not here"), part("d")]
    document, code, saved, said = run_pretended(monkeypatch, parts)
    check_schema(document)
    assert code == 0
    plan_at = next(i for i, line in enumerate(said) if line.startswith("plan: about 20 s of a budget of"))
    assert plan_at < next(i for i, line in enumerate(said) if line.startswith("a: done"))
    states = {name: entry["state"] for name, entry in document["parts"].items()}
    assert states == {"machine": "done", "a": "done", "b": "skipped", "c": "skipped", "d": "done"}
    assert "expected to take 500 s" in document["parts"]["b"]["reason"]
    assert document["complete"]
    assert not any(earlier["complete"] for earlier in saved[:-1])
    seen = [set(earlier["parts"]) for earlier in saved]
    assert all(before <= after for before, after in pairwise(seen))
    assert any(earlier["running"] == "d" and "a" in earlier["parts"] for earlier in saved)
    for earlier in saved:
        check_schema(earlier)


def test_time_that_is_left_over_is_used_and_time_that_is_lost_is_missed(monkeypatch):
    fast = [part("a", 90), part("b", 50)]
    document, _, _, _ = run_pretended(monkeypatch, fast)
    assert [row["runs"] for row in document["plan"]] == [True, False]
    assert document["parts"]["b"]["state"] == "done"  # a took no time at all

    def slow(limit_s):
        time.sleep(1.2)
        return Outcome("done")

    document, _, _, _ = run_pretended(monkeypatch, [part("a", 0.5, run=slow), part("b", 1.0)], budget=2.0)
    assert [row["runs"] for row in document["plan"]] == [True, True]
    assert document["parts"]["b"]["state"] == "skipped"
    assert "of the budget are left" in document["parts"]["b"]["reason"]


def test_no_part_may_take_more_than_what_is_left(monkeypatch):
    document, _, _, _ = run_pretended(monkeypatch, [part("a", limit=5), part("b", limit=10_000)], budget=50)
    assert document["parts"]["a"]["result"]["limit"] == 5
    assert 40 < document["parts"]["b"]["result"]["limit"] <= 50


def test_what_breaks_in_a_part_is_a_row(monkeypatch):
    def breaks(limit_s):
        raise OSError("no more processes")

    parts = [part("a", run=breaks), part("b", run=lambda s: Outcome("done", None, {"x": float("nan")}))]
    document, code, _, _ = run_pretended(monkeypatch, parts)
    assert document["parts"]["a"]["reason"] == "OSError: no more processes"
    assert document["parts"]["b"]["result"] == {"x": None}  # and no figure that JSON lacks ends it
    assert code == 3
    check_schema(document)


def test_a_run_that_is_ended_keeps_what_it_has(monkeypatch, tmp_path):
    def ended(limit_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "list_parts", lambda run: [part("a"), part("b", run=ended), part("c")])
    out = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        run_suite(SuiteOptions(), say=print, driver=DRIVER, save=lambda d: write_document(d, out))
    document = json.loads(out.read_text())
    check_schema(document)
    assert not document["complete"]
    assert document["parts"]["a"]["state"] == "done"
    assert document["parts"]["b"]["reason"] == "the run was ended while this part was running"
    assert "c" not in document["parts"]


@pytest.mark.parametrize("text", ["0", "-5", "soon", "inf", "nan"])
def test_a_budget_is_seconds(text, capsys):
    with pytest.raises(SystemExit):
        main(["--out", "x.json", "--budget", text])
    assert "wanted seconds, 1 or more" in capsys.readouterr().err


ENDED = """
import os, signal, sys, threading
from edgekiln.pipeline.gpu_suite import suite
from edgekiln.pipeline.gpu_suite.__main__ import main
from edgekiln.pipeline.gpu_suite.isolation import Outcome, run_isolated
from edgekiln.pipeline.gpu_suite.plan import Part

def hangs(limit_s):
    # Ended from outside once the child has said that it is there.
    return run_isolated("ended_part:hangs", {}, limit_s=60, tell=lambda e: os.kill(os.getpid(), signal.SIGTERM))

suite.list_parts = lambda run: [
    Part("a", 1, 60, None, lambda limit_s: Outcome("done")), Part("b", 1, 60, None, hangs)
]
suite._look_at_machine = lambda run, driver: None
sys.exit(main(["--out", sys.argv[1]]))
"""
HANGS = """
import os, time
def hangs(arguments, tell):
    open(os.environ["CHILD_PID"], "w").write(str(os.getpid()))
    tell({"step": "hanging"})
    time.sleep(60)
"""


def test_a_machine_that_is_taken_away_leaves_a_result_and_no_process(tmp_path):
    (tmp_path / "ended_part.py").write_text(HANGS)
    out, pid = tmp_path / "gpu.json", tmp_path / "pid"
    path = os.pathsep.join(
        [str(tmp_path), *(str(ROOT / n) for n in ("pipeline", "export", "runtime", "benchmarks"))]
    )
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(out)],
        env={**os.environ, "PYTHONPATH": path, "CHILD_PID": str(pid)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 130, done.stderr
    assert f"what was measured is in {out}" in done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == {"a": "done", "b": "failed"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
