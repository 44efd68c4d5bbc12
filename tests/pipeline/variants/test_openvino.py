"""OpenVINO variants of a recipe: the files of the CPU quantizer, judged and audited on OpenVINO, or not tried here."""

import html
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from canary_study import ask, conditions_here, describe_rows
from tests_support import TINY_RECIPE

from edgekiln.benchmarks.judging.required import check_gate
from edgekiln.benchmarks.report.table import describe_audit
from edgekiln.benchmarks.timing.contender import engine_contender, thread_choices
from edgekiln.export.precision import int8_cpu
from edgekiln.pipeline.cli.inspecting import describe
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.planning import plan_stages
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.bundles.canary_inputs import make_canaries
from edgekiln.runtime.errors import GateError, RecipeError, SelfTestError
from edgekiln.runtime.onnx_files.metadata import PRECISION_KEY, read_metadata, read_static_batches
from edgekiln.runtime.serving.loading import load

VARIANTS = """
[[variants]]
name = "fp32-openvino"
precision = "fp32"
backend = "openvino"
required = false
build = {static_batches = [7, 3]}
[[variants]]
name = "int8-openvino"
precision = "int8"
backend = "openvino"
required = false
calibration_images = 48
[[variants]]
name = "bf16-openvino"
precision = "bf16"
backend = "openvino"
required = false
calibration_images = 48
"""
TEXT = TINY_RECIPE.replace("[gate]", VARIANTS + "[gate]")
CUT = "required = false\ncalibration"  # a place inside of the INT8 variant

BF16 = ("bf16-openvino",)


def has_bf16():
    """Native, or emulated by AVX-512; as Linux tells it, which is not what is tested."""
    return "avx512bw" in Path("/proc/cpuinfo").read_text()


def has_no_bf16(row):
    return "BF16" in row.problem and "on this CPU" in row.problem


needs_openvino = pytest.mark.skipif(  # found, not imported: a plain import would report to Intel
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


def write(folder, text=TEXT):
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def run_beside(tiny_run, folder, *overrides):
    """The tiny run goes on with OpenVINO variants: data, fine-tuning and export are taken from it."""
    shutil.copytree(tiny_run[1], folder / "runs", symlinks=True)
    text = TEXT.replace('path = "pictures"', f'path = "{tiny_run[0].parent / "pictures"}"')
    return run_recipe(load_recipe(write(folder, text), overrides), folder / "runs", SilentProgress())


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    return run_beside(tiny_run, tmp_path_factory.mktemp("openvino"))


@needs_openvino
def test_canaries_raise_no_false_alarm_however_the_library_computes(finished):
    """Masked features of the processor take other kernels; each is asked in a process of its own."""
    masks = [condition for condition in conditions_here("openvino") if condition.environment]
    assert len(masks) == 3
    for condition in masks:
        found = ask(finished.bundle, condition)
        assert {row.variant for row in found} == {"fp32-openvino", "int8-openvino", *BF16}
        assert {row.threads for row in found} == {1, 2}
        wrong = [row for row in found if row.problem and not (row.variant in BF16 and has_no_bf16(row))]
        assert wrong == [], describe_rows(found)


@needs_openvino
def test_load_asks_the_batch_before_the_first_one_that_comes(finished, monkeypatch):
    frames = list(make_canaries(32, 32, [0, 1]))
    with load(finished.bundle, variant="int8-openvino") as classifier:
        engine = classifier.session._engine
        with classifier.hold() as model:
            assert (model.self_test.calls, engine._dynamic) == (2, None)
        classifier.predict(frames[0])
        assert engine._dynamic is None
        true_run = classifier.session.run
        monkeypatch.setattr(
            classifier.session, "run", lambda x: true_run(x) * np.float32(1 if len(x) == 1 else 2)
        )
        for _ in range(2):
            with pytest.raises(SelfTestError, match="in batches of 4"):
                classifier.predict_batch(frames)
        assert classifier.predict(frames[0]).logits.shape == (3,)
        monkeypatch.undo()
        batches = []
        monkeypatch.setattr(classifier.session, "run", lambda x: (batches.append(len(x)), true_run(x))[1])
        for _ in range(2):
            assert len(classifier.predict_batch(frames)) == 2
        assert batches == [4, 2, 2]


def rows(result):
    return {row["name"]: row for row in result.report["variants"]}


@needs_openvino
def test_variants_are_judged_and_deployable(finished):
    found = rows(finished)
    assert {row["verdict"] for name, row in found.items() if name not in BF16} == {"pass"}
    for name in ("fp32", "int8"):
        ours, theirs = found[f"{name}-openvino"], found[name]
        assert abs(ours["accuracy"]["top1"] - theirs["accuracy"]["top1"]) <= 1 / 30
        with load(finished.bundle, variant=f"{name}-openvino") as classifier:
            assert classifier.session.backend == "openvino"


@needs_openvino
def test_bf16_is_the_fp32_graph_computed_otherwise_and_judged_where_the_cpu_has_it(finished):
    row = rows(finished)["bf16-openvino"]
    if not has_bf16():
        assert row["verdict"] == "not-run"
        assert re.match("not tried here, because: .*BF16.* on this CPU", row["reason"])
        return
    assert (row["verdict"], row["audit"]["share"], row["audit"]["macs"].keys()) == ("pass", 1.0, {"bf16"})
    assert 0 < row["parity"]["relative"] < 0.16
    assert row["kl_nats"] > 0  # no other answers, and not the same logits
    asking, plain = (finished.bundle / f"{name}.onnx" for name in ("bf16-openvino", "fp32-openvino"))
    assert read_metadata(asking.read_bytes(), PRECISION_KEY) == "bf16"
    assert read_metadata(plain.read_bytes(), PRECISION_KEY) is None
    with load(finished.bundle, variant="bf16-openvino") as classifier:
        assert (classifier.variant.precision, classifier.session.backend) == ("bf16", "openvino")


@needs_openvino
def test_static_batches_are_in_the_file_and_every_one_is_judged_told_and_served(finished):
    file = (finished.bundle / "fp32-openvino.onnx").read_bytes()
    assert read_static_batches(file) == (3, 7)
    row = rows(finished)["fp32-openvino"]
    assert [(r["batch"], r["images"], r["flips"]) for r in row["static_batches"]] == [(3, 30, 0), (7, 30, 0)]
    assert "static_batches" not in rows(finished)["int8-openvino"]
    assert any("calls of exactly 3 or 7 pictures" in notice for notice in finished.report["notices"])
    told = {
        variant["name"]: variant.get("static_batches") for variant in describe(finished.bundle)["variants"]
    }
    assert {name for name, sizes in told.items() if sizes == "3; 7"} == {"fp32-openvino"}
    frames = list(make_canaries(32, 32, range(7)))
    with load(finished.bundle, variant="fp32-openvino") as classifier:
        with classifier.hold() as model:
            assert model.self_test.calls == 5  # two alone, the same four by 3 and by 7
        assert len(classifier.predict_batch(frames)) == 7
        assert classifier.session._engine._dynamic is None
        assert len(classifier.predict_batch(frames[:2])) == 2
        assert classifier.session._engine._dynamic is not None


@needs_openvino
@pytest.mark.parametrize("sizes", ["[1, 8]", "[65]", "[2, 3, 4, 5, 6, 7, 8, 9, 10]"])
def test_the_recipe_refuses_sizes_that_openvino_is_not_asked_for(tmp_path, sizes):
    text = TEXT.replace("static_batches = [7, 3]", f"static_batches = {sizes}")
    with pytest.raises(RecipeError, match="openvino takes at most 8 static_batches from 2 to 64"):
        load_recipe(write(tmp_path, text))


def test_nothing_else_of_build_is_openvinos(tmp_path):
    with pytest.raises(RecipeError, match="its static_batches for openvino too"):
        load_recipe(
            write(tmp_path, TEXT.replace("static_batches = [7, 3]", "static_batches = [8], tf32 = true"))
        )


@needs_openvino
def test_the_files_are_those_of_the_cpu_quantizer_but_for_the_pixel(finished):
    def read(name):
        return onnx.load(finished.bundle / f"{name}.onnx").graph

    assert read("fp32-openvino") == read("fp32")

    def weights(graph):
        return {t.name: t for t in graph.initializer if t.name.endswith(("weight_quantized", "weight_scale"))}

    ours, theirs = read("int8-openvino"), read("int8")
    assert weights(ours) == weights(theirs)
    assert len(weights(ours)) == 2 * 4
    assert [n.op_type for n in ours.node if "image" in n.input] == ["Cast"]
    assert [n.op_type for n in theirs.node if "image" in n.input] == ["Transpose"]


@needs_openvino
def test_int8_is_audited_on_what_openvino_runs(finished):
    row = rows(finished)["int8-openvino"]
    assert row["audit"]["evidence"] == "openvino"
    assert (row["audit"]["share"], row["pixels_feed_directly"]) == (1, True)  # also its first convolution
    sentence = describe_audit(row)
    assert "of its MACs run in INT8 or less (OpenVINO's runtime model)" in sentence
    assert sentence in html.unescape((finished.bundle / "report.html").read_text())


@needs_openvino
def test_the_bill_of_materials_names_it_as_needed_to_run(finished, tiny_run):
    def scopes(bundle):
        components = json.loads((bundle / "sbom.cdx.json").read_text())["components"]
        return {c["name"]: c.get("scope") for c in components}

    assert scopes(finished.bundle)["openvino"] == scopes(finished.bundle)["onnxruntime"] == "required"
    assert "openvino" not in scopes(tiny_run[2].bundle)


@needs_openvino
def test_too_small_a_share_fails_the_variant(tiny_run, tmp_path, monkeypatch):
    quantize = int8_cpu.quantize_for_cpu

    def make_unsigned(*arguments, signed_pixels, **options):  # OpenVINO has no INT8 kernel for such pixels
        return quantize(*arguments, **options)

    monkeypatch.setattr(int8_cpu, "quantize_for_cpu", make_unsigned)
    result = run_beside(tiny_run, tmp_path, "variants.int8-openvino.min_precision_share=0.999")
    row = rows(result)["int8-openvino"]
    assert row["verdict"] == "fail"
    assert row["reason"].startswith("Only ")
    assert "of the MACs run in int8" in row["reason"]


def test_where_it_is_not_installed_it_is_not_tried_and_says_how(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    # Engines are run in child processes, which find a package of that name first that cannot be imported.
    (tmp_path / "openvino.py").write_text("raise ModuleNotFoundError(name='openvino')\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run_beside(tiny_run, tmp_path, "variants.fp32-openvino.required=true")
    found = rows(result)
    for name in ("fp32-openvino", "int8-openvino", "bf16-openvino"):
        assert found[name]["verdict"] == "not-run"
        assert found[name]["reason"].startswith("not tried here, because: The package 'openvino' is needed")
        assert "pip install 'edgekiln[openvino]'" in found[name]["reason"]
        assert "accuracy" not in found[name]
    assert {found[name]["verdict"] for name in ("fp32", "int8")} == {"pass"}
    with pytest.raises(GateError, match=r"fp32-openvino"):
        check_gate(result.report)


def test_library_that_crashes_when_it_loads_a_graph_ends_no_run(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "openvino.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())  # here it is only imported, not used
    monkeypatch.syspath_prepend(tmp_path)
    found = rows(run_beside(tiny_run, tmp_path))
    for name in ("fp32-openvino", "int8-openvino", "bf16-openvino"):
        assert found[name]["verdict"] == "not-run"
        assert found[name]["reason"].startswith("could not be built here: the library crashed (signal 11)")
    assert {found[name]["verdict"] for name in ("fp32", "int8")} == {"pass"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"int8"\nbackend = "openvino"', '"fp16"\nbackend = "openvino"'), "has no fp16 variant"),
        ((CUT, f'calibration_method = "max"\n{CUT}'), "calibrates by auto or entropy or minmax or percentile, not max"),
        ((CUT, f"build = {{tf32 = true}}\n{CUT}"), "openvino runs the graph itself"),
        ((CUT, f'fallback = "fp16"\n{CUT}'), "fallback = 'fp16' is for INT8 variants of tensorrt"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_meant_are_refused(tmp_path, change, message):
    assert change[0] in TEXT
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, TEXT.replace(*change)))


def test_defaults_are_those_of_the_cpu_quantizer_and_an_audit_by_macs(tmp_path):
    variant = load_recipe(write(tmp_path, TEXT)).variants[3]
    assert (variant.calibration, variant.precision_share, variant.builds_engine) == ("auto", 0.8, False)
    assert variant.files == ("int8-openvino.onnx",)


def test_stages_depend_on_its_version_only_where_it_is_used(tiny_recipe):
    stages = {stage.name: stage for stage in plan_stages(load_recipe(tiny_recipe))}
    assert not any("openvino" in stage.tools for stage in stages.values())
    tiny_recipe.write_text(TEXT.replace("enabled = false", "enabled = true"))
    stages = {stage.name: stage for stage in plan_stages(load_recipe(tiny_recipe))}
    using = {name for name, stage in stages.items() if "openvino" in stage.tools}
    kinds = ("variant", "evaluate")
    assert using == {f"{kind}.{p}-openvino" for kind in kinds for p in ("fp32", "int8", "bf16")} | {
        "benchmark"
    }
    # The graphs are the same; who audits and searches them is not, so neither stage stands in for the other.
    ours, theirs = (stages[f"variant.{name}"].settings for name in ("int8-openvino", "int8"))
    assert (ours["family"], theirs["family"]) == ("openvino", "cpu")
    assert stages["evaluate.int8-openvino"].settings["devices"] is None


def test_it_is_timed_at_its_best_thread_count(tmp_path):
    contender = engine_contender("int8-openvino", [tmp_path / "m.onnx"], "openvino", None)
    assert [config["threads"] for config in contender.configs] == thread_choices()
