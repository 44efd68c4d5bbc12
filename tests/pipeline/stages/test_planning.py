"""The table of stages is true: of what a stage reads, makes and calls, and of what a recipe gets."""

import importlib
import inspect
import json
from fnmatch import fnmatchcase

import pytest

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.stages.kinds import KINDS, TRAINING
from edgekiln.pipeline.stages.planning import plan_stages, plan_training, stage_names
from edgekiln.pipeline.stages.stage import EVERYTHING, Wish


def kind_of(name):
    return max((kind for kind in KINDS if f"{name}.".startswith(f"{kind.name}.")), key=lambda k: len(k.name))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_a_kind_calls_takes_the_context_and_its_subject(kind):
    module, _, name = kind.calls.partition(":")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    assert parameters[0] == "context"
    assert len(parameters) == 1 + (
        kind.name in {"data", "data.source", "qat", "variant", "engine", "evaluate", "evidence"}
    )


def test_a_kind_reads_only_what_comes_before_it():
    before = []
    for kind in KINDS:
        assert kind.reads == EVERYTHING or set(kind.reads) <= set(before)
        before.append(kind.name)


def test_the_names_are_those_of_the_plan(tiny_run):
    recipe = load_recipe(tiny_run[0])
    stages = plan_stages(recipe)
    assert [stage.name for stage in stages] == stage_names(recipe)
    assert [stage.name for stage in plan_training(recipe)] == ["data", "finetune", "evaluate.baseline"]
    assert {kind_of(stage.name).name for stage in plan_training(recipe)} <= TRAINING


def test_a_variants_stages_read_those_of_the_same_variant(tiny_run):
    inputs = {stage.name: stage.inputs for stage in plan_stages(load_recipe(tiny_run[0]))}
    assert inputs["variant.int8"] == ("data", "export")
    assert inputs["evaluate.int8"] == ("data", "export", "variant.int8")
    assert inputs["bundle"] == tuple(name for name in inputs if name != "bundle")


def test_an_engine_is_read_where_one_is_built(tensorrt_run):
    inputs = {stage.name: stage.inputs for stage in plan_stages(load_recipe(tensorrt_run[0]))}
    assert inputs["engine.rtx-fp16"] == ("variant.rtx-fp16",)
    assert inputs["evaluate.rtx-fp16"] == ("data", "export", "variant.rtx-fp16", "engine.rtx-fp16")


def test_engines_and_times_of_one_power_mode_are_not_those_of_another(tensorrt_run, monkeypatch):
    from edgekiln.benchmarks import environment

    def settings(mode):
        jetson = None if mode is None else {"power_mode": mode}
        monkeypatch.setattr(environment, "read_jetson", lambda: jetson)
        return {stage.name: stage.settings for stage in plan_stages(load_recipe(tensorrt_run[0]))}

    desktop, low, full = settings(None), settings("15W"), settings("MAXN")
    differing = {name for name in low if low[name] != full[name]}
    assert {name.partition(".")[0] for name in differing} <= {"engine", "benchmark"}
    assert "engine.rtx-fp16" in differing
    assert {name for name in low if low[name] != desktop[name]} == differing


def test_times_of_one_arm_board_are_not_those_of_another(tiny_run, monkeypatch):
    """Two boards may have the same cores, and as many. A key of x86 is what it always was: kept times stay in use."""
    from edgekiln.benchmarks import environment
    from edgekiln.pipeline.stages import settings

    def benchmark(processor, board):
        monkeypatch.setattr(settings.platform, "machine", lambda: processor)
        monkeypatch.setattr(environment, "read_board", lambda: board)
        return settings.settings_of_benchmark(Wish(load_recipe(tiny_run[0])), None)["machine"]

    pi, other = (
        benchmark("aarch64", "Raspberry Pi 4 Model B"),
        benchmark("aarch64", "NXP i.MX8MPlus EVK board"),
    )
    assert {name for name in pi if pi[name] != other[name]} == {"board"}
    assert list(benchmark("x86_64", "OptiPlex 7010")) == ["cpu", "cores", "avx2", "vnni", "gpus"]


def test_finished_stages_hold_what_the_table_says(tiny_run, tensorrt_run):
    checked = set()
    for _, _, result in (tiny_run, tensorrt_run):
        for name, record in result.stages.items():
            files = [path.name for path in record.folder.iterdir()]
            made = json.loads((record.folder / "build.json").read_text()) if "build.json" in files else {}
            if "not-run.json" in files or made.get("reason"):  # no GPU, or no engine could be built here
                continue
            kind = kind_of(name)
            assert all(any(fnmatchcase(file, wanted) for file in files) for wanted in kind.makes), name
            checked.add(kind.name)
    assert checked >= {"data", "finetune", "export", "variant", "engine", "evaluate", "bundle"}
