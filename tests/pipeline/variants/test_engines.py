"""TensorRT variants from recipe to bundle: built, audited, and never shown as passed where they did not run."""

import json

import pytest
from pydantic import ValidationError
from tests_support import TENSORRT_VARIANTS, TINY_RECIPE

from edgekiln.benchmarks.judging.required import check_gate
from edgekiln.export.engines.options import TENSORRT_ALONE
from edgekiln.pipeline.cli.inspecting import describe
from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.recipe import VariantSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.settings import settings_of_engine
from edgekiln.pipeline.stages.stage import Wish
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.backends.engine_header import read_engine_header
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.cuda import probe_driver
from edgekiln.runtime.errors import BuildError, RecipeError, UsageError

without_gpu = pytest.mark.skipif(
    probe_driver().problem is None, reason="this machine has a GPU: engines run here"
)


def rows(run):
    return {variant["name"]: variant for variant in run[2].report["variants"]}


# -- the recipe


VALUES = {
    "version_compatible": True,
    "hardware_compatibility": "ampere-plus",
    "typing": "weak",
    "avg_timing_iterations": 4,
    "sparsity": True,
    "tiling": "full",
}


@pytest.mark.parametrize("option", TENSORRT_ALONE)
def test_a_recipe_refuses_what_the_builder_refuses(option):
    """The two lists are in wings that do not know each other."""
    wish = {"name": "x", "precision": "fp16", "backend": "tensorrt-rtx", "build": {option: VALUES[option]}}
    with pytest.raises(ValidationError, match=f"tensorrt-rtx has no build.{option}"):
        VariantSettings.model_validate(wish)


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ('backend = "onnxruntime-cpu"\nprecision = "fp16"', "onnxruntime-cpu has no fp16 variant"),
        ('backend = "onnxruntime-cuda"\nprecision = "int8"', "onnxruntime-cuda has no int8 variant"),
        (
            'backend = "tensorrt"\nprecision = "int8"\ncalibration_method = "minmax"',
            "calibrates by auto or entropy or max, not minmax",
        ),
        ('backend = "tensorrt"\nprecision = "fp16"\nfallback = "fp16"', "fallback = 'fp16' is for INT8"),
        ('precision = "int8"\nbuild = {tf32 = true}', "onnxruntime-cpu runs the graph itself"),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {capabilities = [86]}',
            "has no build.capabilities",
        ),
        ('backend = "tensorrt-rtx"\nprecision = "fp16"\nbuild = {typing = "weak"}', "has no build.typing"),
        ('backend = "tensorrt-rtx"\nprecision = "fp16"\nbuild = {sparsity = true}', "has no build.sparsity"),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {tiling = "all"}',
            "'fast', 'moderate' or 'full'",
        ),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {batch = {min = 4, opt = 2}}',
            "min <= opt <= max",
        ),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {batch = [{max = 2, opt = 2}, {mx = 1}]}',
            "unknown key 'variants.x.build.batch.1.mx'; did you mean 'max'?",
        ),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {batch = [{max = 8}, {max = 8}]}',
            "wanted one range or several different ones",
        ),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {static_batches = [1], batch = [{max = 8}, {max = 9}]}',
            "give one of them",
        ),
        (
            'backend = "tensorrt"\nprecision = "fp16"\nbuild = {worksapce_mib = 1}',
            "did you mean 'workspace_mib'?",
        ),
        ('precision = "bf16"', "onnxruntime-cpu has no bf16 variant; its precisions are fp32, int8"),
        ('backend = "onnxruntime-cuda"\nprecision = "bf16"', "onnxruntime-cuda has no bf16 variant"),
        (
            'backend = "tensorrt-rtx"\nprecision = "bf16"\nbuild = {capabilities = [75, 86]}',
            "Turing (75) has no BF16",
        ),
        ('backend = "tensorrt-rxt"\nprecision = "fp16"', "'tensorrt-rtx'"),
        (
            'backend = "tensorrt-rtx"\nprecision = "fp16"\nbuild = {static_batches = [8]}\n'
            '[[variants]]\nname = "x.b8"\nbackend = "tensorrt-rtx"\nprecision = "fp32"',
            "two variants would write x.b8.engine",
        ),
    ],
)
def test_recipe_refuses_what_cannot_be_meant(tmp_path, variant, complaint):
    path = tmp_path / "recipe.toml"
    path.write_text(TINY_RECIPE.replace("[gate]", f'[[variants]]\nname = "x"\n{variant}\n[gate]'))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert complaint in str(caught.value)


def test_keys_that_are_not_used_change_no_digest(tmp_path):
    """Finished stages, engines in caches and bundles stay what they are when edgekiln learns another key."""

    def digested(more):
        variants = '[[variants]]\nname = "t"\nprecision = "fp16"\nbackend = "tensorrt"\n'
        variants += f"build = {{tf32 = false{more}}}\n"
        (tmp_path / "recipe.toml").write_text(TINY_RECIPE.replace("[gate]", f"{variants}[gate]"))
        recipe = load_recipe(tmp_path / "recipe.toml")
        stage = settings_of_engine(Wish(recipe), recipe.variants[-1])["build"]
        shipped = [public_recipe(recipe, as_given=given)["variants"][-1]["build"] for given in (False, True)]
        assert stage == shipped[0]
        return stage, shipped[1]

    today = {
        "batch": {"min": 1, "opt": 8, "max": 32}, "static_batches": [], "workspace_mib": None,
        "optimization_level": None, "tf32": False, "hardware_compatibility": "none", "version_compatible": False,
        "capabilities": [], "typing": "strong",
    }  # fmt: skip
    assert digested("") == (today, {"tf32": False})
    assert digested(', batch = [{}], sparsity = false, tiling = "none"')[0] == today
    used = {"max_aux_streams": 0, "avg_timing_iterations": 2, "sparsity": True, "tiling": "full"}
    text = ', max_aux_streams = 0, avg_timing_iterations = 2, sparsity = true, tiling = "full"'
    assert digested(text) == ({**today, **used}, {"tf32": False, **used})


def test_recipe_has_defaults_that_follow_the_backend(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TINY_RECIPE.replace("[gate]", TENSORRT_VARIANTS + "[gate]"))
    variants = {variant.name: variant for variant in load_recipe(path).variants}
    assert (variants["int8"].calibration_methods[0], variants["int8"].precision_share) == ("minmax", 0.95)
    assert (variants["trt-int8"].calibration_methods[0], variants["trt-int8"].precision_share) == ("max", 0.8)
    assert {variants[name].calibration for name in ("int8", "trt-int8", "rtx-int8")} == {"auto"}


# -- what a run leaves


def test_engines_are_built_for_what_was_asked(tensorrt_run):
    bundle = open_bundle(tensorrt_run[2].bundle)
    assert bundle.variant("rtx-fp16").files == ("rtx-fp16.engine",)
    assert bundle.variant("rtx-static").files == ("rtx-static.b1.engine", "rtx-static.b4.engine")
    header = read_engine_header(bundle.read("rtx-static.b4.engine"))
    assert (header.flavour, header.capabilities) == ("tensorrt-rtx", (86,))
    assert read_engine_header(bundle.read("rtx-fp16.engine")).capabilities == (80, 86, 89, 120, 121)


def test_profiles_of_an_engine_are_told(tensorrt_run):
    told = {
        variant["name"]: variant.get("profiles") for variant in describe(tensorrt_run[2].bundle)["variants"]
    }
    assert told["rtx-fp16"] == "1; 2 to 8, best at 4"  # and their memory, where it ran
    assert told["rtx-static"] == "1; 4"
    assert told["rtx-int8"] == "1 to 32, best at 8"
    assert told["fp32"] is None


def test_graphs_travel_with_the_engines_so_that_they_can_be_built_elsewhere(tensorrt_run):
    bundle = open_bundle(tensorrt_run[2].bundle)
    sources = {v.name: v.source for v in bundle.variants}
    assert sources == {
        "fp32": None, "int8": None, "rtx-fp16": "rtx-fp16.onnx", "rtx-static": "rtx-static.onnx",
        "rtx-int8": "rtx-int8.onnx", "rtx-turing": "rtx-turing.onnx", "trt-int8": "trt-int8.onnx", "cuda-fp16": None,
    }  # fmt: skip


@without_gpu
def test_nothing_that_did_not_run_is_shown_as_passed(tensorrt_run):
    for name, row in rows(tensorrt_run).items():
        if name in {"fp32", "int8"}:
            continue
        assert row["verdict"] == "not-run"
        assert "accuracy" not in row
        assert "speedup" not in row


@without_gpu
def test_reasons_tell_the_three_ends_apart(tensorrt_run):
    reasons = {name: row["reason"] for name, row in rows(tensorrt_run).items()}
    assert reasons["rtx-fp16"].startswith("built, not run, because: There is no NVIDIA driver")
    assert reasons["trt-int8"].startswith("not tried here, because: tensorrt is not installed")
    assert reasons["rtx-turing"].startswith(
        "could not be built here: tensorrt-rtx could not build the fp32 engine"
    )
    assert "Turing (SM75): FP32 GEMM is not supported" in reasons["rtx-turing"]
    assert reasons["cuda-fp16"].startswith("not tried here, because: onnxruntime")


@without_gpu
def test_graphs_that_cannot_run_here_are_simulated(tensorrt_run):
    found = rows(tensorrt_run)
    simulated = {name: row["simulated"] for name, row in found.items() if row["verdict"] == "not-run"}
    assert simulated.pop("rtx-turing") is None  # the FP32 graph is judged as such already
    for values in simulated.values():
        assert values["images"] == 30
        assert values["flips"] <= 2  # colours of noise are far apart; FP16 and INT8 move hardly an answer


def test_audits_say_what_the_engines_compute_with(tensorrt_run):
    found = rows(tensorrt_run)
    assert (found["rtx-fp16"]["audit"]["share"], found["rtx-fp16"]["audit"]["evidence"]) == (1.0, "rtx-plan")
    assert set(found["rtx-fp16"]["audit"]["macs"]) == {"fp16"}
    assert found["rtx-int8"]["audit"]["macs"]["int8"] > 0
    assert any("INT8 convolutions emit float32" in notice for notice in tensorrt_run[2].report["notices"])


def test_calibration_is_recorded_with_its_digest(tensorrt_run):
    calibration = rows(tensorrt_run)["trt-int8"]["calibration"]
    assert (calibration["images"], calibration["method"], len(calibration["digest"])) == (48, "max", 64)


@without_gpu
def test_load_prefers_what_passed_and_refuses_what_did_not_run(tensorrt_run):
    with load(tensorrt_run[2].bundle) as classifier:
        assert classifier.variant.name == "int8"
    with pytest.raises(UsageError, match="'rtx-fp16' is not deployable \\(verdict not-run\\)"):
        load(tensorrt_run[2].bundle, variant="rtx-fp16")


@without_gpu
def test_required_engine_that_did_not_run_fails_the_gate(tensorrt_run):
    report = json.loads(json.dumps(tensorrt_run[2].report))
    check_gate(report)
    report["variants"][2]["required"] = True
    with pytest.raises(Exception, match="rtx-fp16: not-run"):
        check_gate(report)


def test_cpu_quantizer_is_the_same_after_modelopt_was_used(tensorrt_run, tmp_path):
    """ModelOpt replaces methods of onnxruntime's quantizer in the whole process."""
    path, _, before = tensorrt_run
    recipe = load_recipe(path, ["variants.rtx-fp16.required=false"])
    after = run_recipe(recipe, tmp_path / "runs", SilentProgress(), until="variant.int8")
    assert after.stages["variant.int8"].digest == before.stages["variant.int8"].digest


def test_report_and_card_tell_of_engines(tensorrt_run):
    page = (tensorrt_run[2].bundle / "report.html").read_text()
    card = (tensorrt_run[2].bundle / "MODEL_CARD.md").read_text()
    for text in (page, card):
        assert (
            "100% of its MACs run in FP16 or less (the engine&#39;s own plan)".replace(
                "&#39;", "&#39;" if text is page else "'"
            )
            in text
        )
        assert "INT8 convolutions emit float32" in text


def test_second_run_does_nothing(tensorrt_run):
    path, runs, _ = tensorrt_run
    result = run_recipe(load_recipe(path), runs, SilentProgress())
    assert all(stage.cached for stage in result.stages.values())


# -- what goes wrong


def test_int8_that_does_not_build_falls_back_only_where_the_recipe_says(tensorrt_run, tmp_path, monkeypatch):
    from edgekiln.export.engines import tensorrt
    from edgekiln.pipeline.device import building

    def refuse_int8(model, options, cache, **callbacks):
        if options.precision.value == "int8":
            raise BuildError("tensorrt-rtx could not build the int8 engine: no kernel")
        return tensorrt.build_engine(model, options, cache, **callbacks)

    monkeypatch.setattr(building, "build_engine", refuse_int8)
    path, runs, _ = tensorrt_run
    import shutil

    shutil.copytree(runs, tmp_path / "runs")
    result = run_recipe(load_recipe(path), tmp_path / "runs", SilentProgress(), force=["engine.rtx-int8"])
    row = next(v for v in result.report["variants"] if v["name"] == "rtx-int8")
    assert (row["precision"], row["asked_precision"]) == ("fp16", "int8")
    assert "runs in FP16, not in the INT8 that was asked for" in result.report["notices"][0]
    assert "no kernel" in result.report["notices"][0]
    recipe = load_recipe(path, ["variants.rtx-int8.fallback=none"])
    result = run_recipe(recipe, tmp_path / "runs", SilentProgress(), force=["engine.rtx-int8"])
    row = next(v for v in result.report["variants"] if v["name"] == "rtx-int8")
    assert row["files"] == []
    assert row["reason"].startswith("could not be built here: tensorrt-rtx could not build the int8 engine")


def test_engine_of_the_wrong_precision_fails_its_variant(tensorrt_run, tmp_path, monkeypatch):
    """An FP32 graph under the name of FP16, as a silent fallback would make it."""
    import shutil

    from edgekiln.pipeline.variants import variants

    def keep_fp32(context, variant, source, target, about, child):
        shutil.copyfile(source, target)

    monkeypatch.setattr(variants, "_convert_to_fp16", keep_fp32)
    path, runs, _ = tensorrt_run
    shutil.copytree(runs, tmp_path / "runs")
    result = run_recipe(load_recipe(path), tmp_path / "runs", SilentProgress(), force=["variant.rtx-fp16"])
    row = next(v for v in result.report["variants"] if v["name"] == "rtx-fp16")
    assert row["verdict"] == "fail"
    assert "wanted" in row["reason"]
    assert row["files"] == ["rtx-fp16.engine"]  # kept for a look


@pytest.mark.parametrize("why", [None, "no memory for a context"])
def test_engine_that_was_not_inspected_fully_is_asked_again_by_the_next_run(tmp_path, monkeypatch, why):
    from types import SimpleNamespace

    from edgekiln.pipeline.variants import engines
    from edgekiln.pipeline.workspace.stage_files import ABOUT_NAME, BUILD_NAME, MODEL_NAME, RETRY_NAME

    built = {"files": ["x.engine"], "notices": [], "failure": None, "uninspected": why}
    monkeypatch.setattr(engines, "build_engines", lambda *_: built)
    made = tmp_path / "made"
    made.mkdir()
    (made / ABOUT_NAME).write_text('{"products": {}, "not_built": null}')
    (made / MODEL_NAME).write_bytes(b"")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(TINY_RECIPE.replace("[gate]", TENSORRT_VARIANTS + "[gate]"))
    variant = next(v for v in load_recipe(recipe).variants if v.name == "trt-int8")
    context = SimpleNamespace(folder=tmp_path, inputs={"variant.trt-int8": made}, progress=SilentProgress())
    engines.build_variant(context, variant)
    assert json.loads((tmp_path / BUILD_NAME).read_text())["files"] == ["x.engine"]
    assert (tmp_path / RETRY_NAME).exists() == (why is not None)


def test_missing_modelopt_leaves_the_others_alone(tensorrt_run, tmp_path, monkeypatch):
    import shutil

    from edgekiln.export.precision import fp16
    from edgekiln.runtime.errors import MissingExtraError

    def missing(module):
        raise MissingExtraError(
            "The package 'modelopt' is needed here and is not installed.", hint="Run: pip ..."
        )

    monkeypatch.setattr(fp16, "import_modelopt", missing)
    path, runs, _ = tensorrt_run
    shutil.copytree(runs, tmp_path / "runs")
    result = run_recipe(load_recipe(path), tmp_path / "runs", SilentProgress(), force=["variant.rtx-fp16"])
    row = next(v for v in result.report["variants"] if v["name"] == "rtx-fp16")
    assert row["verdict"] == "not-run"
    assert row["reason"].startswith("not tried here, because: The package 'modelopt' is needed")
    assert next(v for v in result.report["variants"] if v["name"] == "int8")["verdict"] == "pass"


def test_trouble_that_may_pass_is_tried_again_by_the_next_run(tensorrt_run, tmp_path, monkeypatch):
    import shutil

    path, runs, _ = tensorrt_run
    shutil.copytree(runs, tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setenv("EDGEKILN_CACHE", "/dev/null/cache")
        recipe = load_recipe(path)
        broken = run_recipe(recipe, tmp_path / "runs", SilentProgress(), force=["engine.rtx-fp16"])
    row = next(v for v in broken.report["variants"] if v["name"] == "rtx-fp16")
    assert "could not be built here: The engine cache /dev/null/cache cannot be written" in row["reason"]
    mended = run_recipe(recipe, tmp_path / "runs", SilentProgress())
    assert not mended.stages["engine.rtx-fp16"].cached
    row = next(v for v in mended.report["variants"] if v["name"] == "rtx-fp16")
    assert row["files"] == ["rtx-fp16.engine"]
