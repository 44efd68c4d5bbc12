"""LoadGen as a stage of a run: its results reach the report, and what was asked for and not done is told."""

import itertools
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekiln.benchmarks.report import render_page, render_summary
from edgekiln.benchmarks.timing.loadgen import pictures, run
from edgekiln.pipeline.cli import main
from edgekiln.pipeline.proof import mlperf
from edgekiln.pipeline.proof.mlperf import drive_engines
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.planning import plan_stages
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import StageContext
from edgekiln.runtime.errors import EngineError, RecipeError

QUICK = [
    "benchmark.enabled=true",
    "benchmark.processes=2",
    "benchmark.blocks=2",
    "benchmark.block_seconds=0.02",
]


@pytest.fixture
def context(tiny_run, tmp_path):
    """What the stage is given after the tiny run, as if a benchmark had found one thread best for int8."""
    path, _, result = tiny_run
    inputs = {name: record.folder for name, record in result.stages.items()} | {
        "benchmark": tmp_path / "benchmark"
    }
    (tmp_path / "benchmark").mkdir()
    measurements = [{"name": "int8", "config": {"threads": 1}}]
    (tmp_path / "benchmark" / "benchmark.json").write_text(json.dumps({"measurements": measurements}))
    recipe = load_recipe(path, ["benchmark.enabled=true", "benchmark.mlperf=true", "gate.max_drop=0.3"])
    return StageContext(recipe, tmp_path, inputs, SilentProgress())


def drive(context):
    drive_engines(context)
    return json.loads((context.folder / "mlperf.json").read_text())


def test_recipe_with_loadgen_and_without_a_benchmark_is_refused(tiny_run):
    with pytest.raises(RecipeError, match="mlperf = true needs enabled = true"):
        load_recipe(tiny_run[0], ["benchmark.mlperf=true"])


def test_loadgen_that_is_not_installed_is_told_with_the_remedy(context, monkeypatch, tiny_run):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    found = drive(context)
    assert found["results"] == []
    assert found["reason"] == "The package 'mlperf_loadgen' is needed here and is not installed."
    assert found["remedy"] == "Run: pip install 'edgekiln[mlperf]'"
    report = {**tiny_run[2].report, "mlperf": found}
    told = "Asked for, not tried: The package"
    assert told in render_page(report)
    assert told in render_summary(report)


def test_report_of_a_run_without_loadgen_says_that_nobody_asked(tiny_run):
    assert tiny_run[2].report["mlperf"] is None
    assert "Not asked for: mlperf is false" in render_page(tiny_run[2].report)


def test_few_test_images_are_told(context):
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is not installed")
    found = drive(context)
    assert found["reason"] == "The test split holds 30 images, LoadGen is given 64 or more."


def test_engines_that_passed_are_driven_and_a_failure_is_not_the_runs(context, monkeypatch):
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is not installed")
    monkeypatch.setattr(pictures, "MIN_LIBRARY", 16)
    asked = []

    def answer(engine, frames, scenario, *, min_seconds):
        asked.append((engine.name, engine.threads, scenario, len(frames), min_seconds))
        if scenario == "Offline":
            raise EngineError("it broke")
        return {"variant": engine.name, "scenario": scenario, "result": "VALID"}

    monkeypatch.setattr(run, "drive_engine", answer)
    found = drive(context)
    assert asked == [
        (name, threads, scenario, 30, 10.0)
        for name, threads in (("fp32", None), ("int8", 1))
        for scenario in ("SingleStream", "Offline")
    ]
    assert [result["variant"] for result in found["results"]] == ["fp32", "int8"]
    assert found["left_out"][0] == {"name": "fp32", "scenario": "Offline", "reason": "it broke"}


class Told(SilentProgress):
    """Remembers what it was told."""

    def __init__(self):
        self.told, self.steps = [], []

    def message(self, text):
        self.told.append(text)

    def advance(self, done, total, note=""):
        self.steps.append((done, total, note))


@pytest.fixture
def driven(context, monkeypatch):
    """(context that remembers, what LoadGen was asked for); the third question is interrupted."""
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is not installed")
    monkeypatch.setattr(pictures, "MIN_LIBRARY", 16)
    asked = []

    def answer(engine, frames, scenario, *, min_seconds):
        asked.append((engine.name, scenario))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"variant": engine.name, "scenario": scenario, "result": "VALID", "call": len(asked)}

    monkeypatch.setattr(run, "drive_engine", answer)
    folder = context.folder / "stage"
    folder.mkdir()
    return StageContext(context.recipe, folder, context.inputs, Told()), asked


def test_interrupted_stage_goes_on_with_the_next_result(driven):
    context, asked = driven
    with pytest.raises(KeyboardInterrupt):
        drive_engines(context)
    found = drive(context)
    assert asked[3:] == [("int8", "SingleStream"), ("int8", "Offline")]
    assert [result["call"] for result in found["results"]] == [1, 2, 4, 5]
    assert "  LoadGen, fp32, Offline: VALID, from an interrupted attempt" in context.progress.told
    assert [path.name for path in context.folder.iterdir()] == ["mlperf.json"]  # the parts are gone


@pytest.mark.parametrize("change", ["seconds", "damage"])
def test_results_of_another_duration_or_damaged_ones_are_driven_again(driven, change):
    context, _ = driven
    with pytest.raises(KeyboardInterrupt):
        drive_engines(context)
    if change == "damage":
        for path in context.folder.glob("*.json"):
            path.write_text(path.read_text()[:-9])
    else:
        longer = context.recipe.benchmark.model_copy(update={"mlperf_seconds": 11.0})
        recipe = context.recipe.model_copy(update={"benchmark": longer})
        context = StageContext(recipe, context.folder, context.inputs, context.progress)
    assert [result["call"] for result in drive(context)["results"]] == [4, 5, 6, 7]
    assert any("2 earlier parts" in line for line in context.progress.told)


def test_stage_is_resumed_by_a_run(context):
    [stage] = [stage for stage in plan_stages(context.recipe) if stage.name == "mlperf"]
    assert stage.resumable


def test_progress_counts_seconds_while_loadgen_works(driven, monkeypatch):
    context, asked = driven
    asked.extend([None] * 3)  # nothing is interrupted
    monkeypatch.setattr(mlperf, "_TICK_SECONDS", 0.001)
    clock = itertools.count(0, 4)
    monkeypatch.setattr(mlperf, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    ticked = threading.Event()

    class Waiting(Told):
        def advance(self, done, total, note=""):
            super().advance(done, total, note)
            if done % 10:
                ticked.set()

    def wait(*arguments, **more):
        assert ticked.wait(30)
        return {"result": "VALID"}

    monkeypatch.setattr(run, "drive_engine", wait)
    told = Waiting()
    drive_engines(StageContext(context.recipe, context.folder, context.inputs, told))
    steps = [step for step in told.steps if step[0] % 10 == 0]
    assert {total for _, total, _ in told.steps} == {40}  # two engines, two scenarios, ten seconds each
    assert {(0, "LoadGen, fp32, SingleStream"), (30, "LoadGen, int8, Offline")} <= {
        (d, n) for d, _, n in steps
    }
    assert [done for done, _, _ in told.steps] == sorted(done for done, _, _ in told.steps)


def test_engine_that_did_not_pass_is_left_out(context, monkeypatch):
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is not installed")
    monkeypatch.setattr(pictures, "MIN_LIBRARY", 16)
    monkeypatch.setattr(run, "drive_engine", lambda *a, **k: {"result": "VALID"})
    strict = context.recipe.gate.model_copy(update={"max_drop": 0.0})
    recipe = context.recipe.model_copy(update={"gate": strict})
    found = drive(StageContext(recipe, context.folder, context.inputs, context.progress))
    assert [(entry["name"], entry["reason"]) for entry in found["left_out"]] == [
        ("fp32", "its verdict is inconclusive"), ("int8", "its verdict is inconclusive"),
    ]  # fmt: skip


@pytest.mark.slow
def test_bench_of_a_recipe_puts_loadgens_word_into_the_report(tiny_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p))
    monkeypatch.setattr(pictures, "MIN_LIBRARY", 16)
    runs = shutil.copytree(tiny_run[1], tmp_path / "runs", symlinks=True)
    overrides = [*QUICK, "variants.fp32.required=false", "variants.fp32.max_drop=0.0001", "gate.max_drop=0.3"]
    options = [part for override in overrides for part in ("--set", override)]
    arguments = ["bench", str(tiny_run[0]), "--mlperf", "--seconds", "1", "--runs", str(runs), "-q"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *options])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    report = json.loads((runs / "tiny" / "bundle" / "report.json").read_text())
    results = report["mlperf"]["results"]
    assert [(r["variant"], r["scenario"]) for r in results] == [("int8", "SingleStream"), ("int8", "Offline")]
    assert results[0]["ours"]["calls"] > 100
    assert results[0]["threads"] == next(
        m["config"]["threads"] for m in report["benchmark"]["measurements"] if m["name"] == "int8"
    )
    assert report["recipe"]["benchmark"]["mlperf"] is True
    for text in (out, render_page(report), render_summary(report)):
        assert results[0]["result"] in text
        assert f"{results[0]['loadgen']['p50_ms']:.3f} / " in text
        assert "fp32 was not driven: its verdict is inconclusive" in text
    # Nothing is measured again, and the benchmark's own key does not depend on LoadGen.
    again = run_recipe(load_recipe(tiny_run[0], overrides), runs, SilentProgress())
    assert {name for name, record in again.stages.items() if not record.cached} == {"bundle"}
    assert again.report["mlperf"] is None
