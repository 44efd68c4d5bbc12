"""`edgekiln build`: engines built and judged on the machine that will run them, from the bundle alone."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.pipeline.cli.inspecting import describe
from edgekiln.pipeline.device import judging
from edgekiln.pipeline.device.canary_records import read_reference
from edgekiln.pipeline.device.request import TargetRequest
from edgekiln.pipeline.device.target import build_on_target
from edgekiln.pipeline.doctor.bundles import _describe_variant
from edgekiln.pipeline.doctor.child import Answer
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession
from edgekiln.runtime.backends.tensorrt_buckets import ProfileUse
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.cuda import probe_driver
from edgekiln.runtime.errors import (
    BuildError,
    BundleError,
    DataError,
    EngineError,
    EnvironmentProblem,
    NonFiniteError,
    PrecisionError,
    ResourceError,
    UsageError,
)

without_gpu = pytest.mark.skipif(
    probe_driver().problem is None, reason="this machine has a GPU: engines run here"
)


@pytest.fixture
def parent(tensorrt_run):
    return tensorrt_run[2].bundle


@pytest.fixture
def pictures(tensorrt_run):
    return tensorrt_run[0].parent / "pictures"


@pytest.fixture
def runs_here(parent, monkeypatch):
    """As if the GPU were here: sessions answer what onnxruntime does for the engine's graph, plus ``shift``."""
    shift = np.zeros(3, np.float32)

    class Shifted:
        backend = "tensorrt-rtx"
        profiles = (ProfileUse(1, 1, 1, (1,), 3 << 19), ProfileUse(2, 4, 8, (2, 4, 8), 9 << 20))

        def __init__(self):
            self._session = OnnxRuntimeSession((parent / "fp32.onnx").read_bytes())
            self.frame_shape = self._session.frame_shape

        def run(self, frames):
            return self._session.run(frames) + shift

        def close(self):
            self._session.close()

    monkeypatch.setattr(judging, "open_session", lambda backend, engines: Shifted())
    return shift


def build(parent, out, **wishes):
    return build_on_target(TargetRequest(parent, out, **wishes), SilentProgress())


def row(content, name):
    return next(v for v in content["variants"] if v["name"] == name)


def test_without_pictures_engines_are_unverified_and_load_refuses_them(parent, tmp_path):
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",))
    bundle = open_bundle(tmp_path / "out")
    assert bundle.variant("rtx-fp16").verdict == "unverified"
    assert "--data FOLDER judges it" in row(content, "rtx-fp16")["reason"]
    with pytest.raises(UsageError, match=r"not deployable \(verdict unverified\)"):
        load(tmp_path / "out", variant="rtx-fp16")
    with pytest.raises(EnvironmentProblem) if probe_driver().problem else pytest.raises(ZeroDivisionError):
        load(tmp_path / "out", variant="rtx-fp16", allow_unverified=True)
        raise ZeroDivisionError  # on a machine with a GPU it loads


def test_profiles_and_their_memory_are_told_where_the_engine_ran(parent, pictures, tmp_path, runs_here):
    content = build(parent, tmp_path / "out", variants=("rtx-fp16", "rtx-static"), data=pictures)
    memories = [profile["workspace_bytes"] for profile in row(content, "rtx-fp16")["figures"]["profiles"]]
    assert memories == [3 << 19, 9 << 20]
    assert "profiles" not in row(content, "rtx-static")["figures"]  # two engines with a profile each
    told = {variant["name"]: variant.get("profiles") for variant in describe(tmp_path / "out")["variants"]}
    assert told["rtx-fp16"] == "1 (1.5 MiB); 2 to 8, best at 4 (9.0 MiB)"
    variant = open_bundle(tmp_path / "out").variant("rtx-fp16")
    values = {"canaries": None, "notice": None, "profiles": variant.figures["profiles"]}
    found = _describe_variant(variant, Answer(values)).found
    assert found.endswith(
        "batch sizes and working memory of a slot: 1 (1.5 MiB); 2 to 8, best at 4 (9.0 MiB)"
    )
    again = build(tmp_path / "out", tmp_path / "again", variants=("rtx-fp16",))
    assert "profiles" not in row(again, "rtx-fp16")["figures"]  # another engine, which did not run


def test_what_is_carried_says_on_which_machine_it_was_judged(parent, tmp_path):
    judged_on = open_bundle(parent).manifest["machine"]
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",))
    assert row(content, "int8")["figures"]["judged_on"] == judged_on
    assert "judged_on" not in row(content, "rtx-fp16")["figures"]
    again = build(tmp_path / "out", tmp_path / "again", variants=("rtx-fp16",))
    assert row(again, "int8")["figures"]["judged_on"] == judged_on
    kind = open_bundle(parent).variant("int8").kind
    assert kind == read_kind("onnxruntime-cpu").verdict
    assert {open_bundle(tmp_path / name).variant("int8").kind for name in ("out", "again")} == {kind}
    assert open_bundle(tmp_path / "out").variant("rtx-fp16").kind is None  # not judged


def test_derived_bundle_names_its_parent_and_keeps_what_runs_on_cpus(parent, tmp_path):
    build(parent, tmp_path / "out", variants=("rtx-fp16",))
    bundle, original = open_bundle(tmp_path / "out"), open_bundle(parent)
    assert bundle.manifest["parent"]["digest"] == original.digest
    assert bundle.contract == original.contract
    assert {v.name: v.verdict for v in bundle.variants} == {
        "rtx-fp16": "unverified",
        "fp32": "pass",
        "int8": "pass",
    }
    with load(tmp_path / "out") as classifier:
        assert classifier.variant.name == "int8"


def test_a_derived_bundle_can_be_built_from_again(parent, tmp_path):
    build(parent, tmp_path / "a", variants=("rtx-fp16",))
    build(tmp_path / "a", tmp_path / "b")
    assert open_bundle(tmp_path / "b").manifest["parent"]["digest"] == open_bundle(tmp_path / "a").digest


@without_gpu
def test_built_and_not_run_is_no_verdict(parent, pictures, tmp_path):
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=pictures)
    assert row(content, "rtx-fp16")["verdict"] == "not-run"
    assert row(content, "rtx-fp16")["reason"].startswith("built, not run, because: There is no NVIDIA driver")


def test_judged_against_the_parents_answers_by_image_hash(parent, pictures, tmp_path, runs_here):
    scattered = tmp_path / "scattered"
    scattered.mkdir()
    for number, path in enumerate(sorted(pictures.rglob("*.png"))):
        shutil.copyfile(path, scattered / f"renamed-{number}.bin")  # neither name, ending nor folder matters
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=scattered)
    judged = row(content, "rtx-fp16")
    assert judged["verdict"] == "pass"
    assert judged["figures"]["judged_images"] == {"here": 30, "parent": 30}
    assert judged["figures"]["counts"]["agreeing"] == 30
    assert judged["figures"]["drop"]["value"] == 0
    assert open_bundle(tmp_path / "out").variant("rtx-fp16").kind == read_kind("tensorrt-rtx").verdict
    # What it answered to the made pictures is kept beside what the parent knows of them.
    canaries = open_bundle(tmp_path / "out").variant("rtx-fp16").canaries
    fp32 = read_reference(open_bundle(parent))
    np.testing.assert_allclose(canaries.answers, fp32, atol=1e-3)
    np.testing.assert_array_equal(read_reference(open_bundle(tmp_path / "out")), fp32)


def test_an_engine_whose_batches_are_wrong_fails_whatever_its_accuracy(
    parent, pictures, tmp_path, runs_here, monkeypatch
):
    true_run = OnnxRuntimeSession.run

    def run(self, frames):
        logits = true_run(self, frames)
        return logits if len(frames) != 3 else logits[::-1]

    monkeypatch.setattr(OnnxRuntimeSession, "run", run)
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=pictures)
    assert row(content, "rtx-fp16")["verdict"] == "fail"
    assert "depend on the batch size" in row(content, "rtx-fp16")["reason"]
    assert open_bundle(tmp_path / "out").variant("rtx-fp16").canaries is None


def test_a_parent_without_canaries_or_with_later_ones_is_built_from(parent, tmp_path):
    for name, reference in (("former", None), ("later", {"recipe": 2, "logits": "of another kind"})):
        copy = shutil.copytree(parent, tmp_path / name)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "canary_reference": reference}))
        assert read_reference(open_bundle(copy)) is None
    (copy / "manifest.json").write_text(
        json.dumps({**manifest, "canary_reference": {"recipe": 1, "logits": "x"}})
    )
    with pytest.raises(BundleError, match="canary_reference"):
        read_reference(open_bundle(copy))


def test_an_engine_that_answers_otherwise_fails(parent, pictures, tmp_path, runs_here):
    runs_here[1] = 1e6
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=pictures)
    judged = row(content, "rtx-fp16")
    assert judged["verdict"] == "fail"
    assert judged["figures"]["drop"]["value"] > 0.5
    with pytest.raises(UsageError, match="not deployable"):
        load(tmp_path / "out", variant="rtx-fp16")


def test_some_of_the_pictures_are_enough_to_judge_and_too_few_are_inconclusive(
    parent, pictures, tmp_path, runs_here
):
    known = set(np.load(parent / "test_logits.npz")["image_sha256"])
    part = tmp_path / "part"
    part.mkdir()
    import hashlib

    tests = [
        p for p in sorted(pictures.rglob("*.png")) if hashlib.sha256(p.read_bytes()).hexdigest() in known
    ]
    for path in tests[:5]:
        shutil.copyfile(path, part / f"{path.parent.name}-{path.name}")
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=part)
    judged = row(content, "rtx-fp16")
    assert judged["figures"]["judged_images"] == {"here": 5, "parent": 30}
    assert judged["verdict"] == "inconclusive"  # Tango's interval over five images is wider than the gate
    assert judged["figures"]["metric"] == "top1"  # the parent's


def test_other_pictures_cannot_judge(parent, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.png").write_bytes(b"not one of them")
    with pytest.raises(DataError, match="None of the 1 files below"):
        build(parent, tmp_path / "out", variants=("rtx-fp16",), data=tmp_path / "others")
    assert not (tmp_path / "out").exists()


def test_options_override_the_recipes(parent, tmp_path):
    settings = {"capabilities": [86, 89], "batch": {"min": 1, "opt": 2, "max": 2}}
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), settings=settings)
    options = row(content, "rtx-fp16")["figures"]["build"]["builds"]["rtx-fp16.engine"]["options"]
    assert list(options["capabilities"]) == [86, 89]
    assert options["batch"] == {"min": 1, "opt": 2, "max": 2}


def test_a_graph_made_for_tensorrt_builds_with_rtx_when_asked(parent, tmp_path):
    content = build(parent, tmp_path / "out", variants=("trt-int8",), backend="tensorrt-rtx")
    assert row(content, "trt-int8")["backend"] == "tensorrt-rtx"


def test_engine_that_fails_its_audit_fails_whatever_it_answers(
    parent, pictures, tmp_path, monkeypatch, runs_here
):
    from edgekiln.pipeline.device import building

    def refuse(*arguments):
        raise PrecisionError("Only 3% of the MACs run in FP16.")

    monkeypatch.setattr(building, "audit_rtx_plan", refuse)
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=pictures)
    assert row(content, "rtx-fp16")["verdict"] == "fail"
    assert row(content, "rtx-fp16")["reason"] == "Only 3% of the MACs run in FP16."
    assert row(content, "rtx-fp16")["figures"]["counts"]["agreeing"] == 30


def test_int8_that_does_not_build_here_falls_back_where_the_recipe_allows(parent, tmp_path, monkeypatch):
    from edgekiln.export.engines import tensorrt
    from edgekiln.pipeline.device import building

    def refuse_int8(model, options, cache, **callbacks):
        if options.precision.value == "int8":
            raise BuildError("tensorrt-rtx could not build the int8 engine: no kernel")
        return tensorrt.build_engine(model, options, cache, **callbacks)

    monkeypatch.setattr(building, "build_engine", refuse_int8)
    content = build(parent, tmp_path / "out", variants=("rtx-int8",))
    assert row(content, "rtx-int8")["precision"] == "fp16"
    assert "not in the INT8 that was asked for" in row(content, "rtx-int8")["figures"]["build"]["notices"][0]
    with pytest.raises(BuildError, match="no kernel"):
        build(parent, tmp_path / "none", variants=("trt-int8",), backend="tensorrt-rtx")
    assert not (tmp_path / "none").exists()


def test_one_that_cannot_be_built_leaves_the_others_alone(parent, tmp_path):
    content = build(parent, tmp_path / "out", variants=("rtx-turing", "rtx-fp16"))
    assert row(content, "rtx-turing")["verdict"] == "not-run"
    assert "FP32 GEMM is not supported" in row(content, "rtx-turing")["reason"]
    assert open_bundle(tmp_path / "out").variant("rtx-fp16").files == ("rtx-fp16.engine",)


def test_a_batch_range_replaces_the_recipes_static_sizes(parent, tmp_path):
    settings = {"batch": {"min": 1, "opt": 2, "max": 4}}
    content = build(parent, tmp_path / "out", variants=("rtx-static",), settings=settings)
    assert row(content, "rtx-static")["files"] == ["rtx-static.engine"]


def test_tensorrt_without_a_library_or_gpu_is_an_environment_problem(parent, tmp_path):
    if probe_driver().problem is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentProblem):
        build(parent, tmp_path / "out", variants=("trt-int8",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        ({"variants": ("int8",)}, "is run by onnxruntime-cpu: there is no engine to build"),
        ({"variants": ("nine",)}, "has no variant 'nine'; it has: fp32"),
        ({"data": ROOT / "nowhere"}, "There is no folder"),
    ],
)
def test_wishes_that_cannot_be_meant(parent, tmp_path, wishes, complaint):
    with pytest.raises(UsageError) as caught:
        build(parent, tmp_path / "out", **wishes)
    assert complaint in str(caught.value)


def test_out_in_use_is_left_alone(parent, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is in use"):
        build(parent, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_bundle_without_graphs_says_what_its_recipe_needs(tiny_run, tmp_path):
    with pytest.raises(UsageError, match="holds no graph to build an engine from"):
        build(tiny_run[2].bundle, tmp_path / "out")


def test_changed_parent_is_refused(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    model = tmp_path / "parent" / "rtx-fp16.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="was changed"):
        build(tmp_path / "parent", tmp_path / "out", variants=("rtx-fp16",))


def test_works_where_neither_torch_nor_onnx_nor_pydantic_is(parent, pictures, tmp_path):
    """A target has numpy, Pillow, click, rich and TensorRT."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'torchvision', 'timm', 'onnx', 'onnxruntime', 'pydantic',\n"
        "                                      'modelopt', 'scipy', 'matplotlib', 'jinja2', 'safetensors'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from edgekiln.pipeline.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["build", str(parent), "--out", str(tmp_path / "out"), "--variant", "rtx-fp16", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    assert document["variants"][0]["verdict"] == "unverified"
    assert open_bundle(tmp_path / "out").variant("rtx-fp16").files == ("rtx-fp16.engine",)


def test_compare_sees_the_engine_that_was_built_here_not_the_parents(parent, pictures, tmp_path, runs_here):
    from edgekiln.benchmarks.comparing.compare import compare_bundles

    build(parent, tmp_path / "good", variants=("rtx-fp16",), data=pictures)
    runs_here[1] = 1e6
    build(parent, tmp_path / "bad", variants=("rtx-fp16",), data=pictures)
    regressions = compare_bundles(tmp_path / "good", tmp_path / "bad").regressions
    assert [(c.engine, c.figure) for c in regressions] == [("rtx-fp16", "top1")]
    build(parent, tmp_path / "unjudged", variants=("rtx-fp16",))
    changes = compare_bundles(tmp_path / "good", tmp_path / "unjudged").changes
    assert "it was not run in" in next(
        c.reason for c in changes if (c.engine, c.figure) == ("rtx-fp16", "top1")
    )


def test_the_same_variant_twice_is_built_once(parent, tmp_path):
    build(parent, tmp_path / "out", variants=("rtx-fp16", "rtx-fp16"))
    assert [v.name for v in open_bundle(tmp_path / "out").variants] == ["rtx-fp16", "fp32", "int8"]


def test_out_inside_the_bundle_is_refused(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    with pytest.raises(UsageError, match="lies inside the bundle"):
        build(tmp_path / "parent", tmp_path / "parent" / "derived")
    open_bundle(tmp_path / "parent")


def test_fallback_survives_a_second_build(parent, tmp_path, monkeypatch):
    from edgekiln.export.engines import tensorrt
    from edgekiln.pipeline.device import building

    def refuse_int8(model, options, cache, **callbacks):
        if options.precision.value == "int8":
            raise BuildError("tensorrt-rtx could not build the int8 engine: no kernel")
        return tensorrt.build_engine(model, options, cache, **callbacks)

    with monkeypatch.context() as patch:
        patch.setattr(building, "build_engine", refuse_int8)
        build(parent, tmp_path / "a", variants=("rtx-int8",))
        again = build(tmp_path / "a", tmp_path / "b")
        assert row(again, "rtx-int8")["precision"] == "fp16"
    free = build(tmp_path / "b", tmp_path / "c")
    assert row(free, "rtx-int8")["precision"] == "int8"


def copy_with(parent, folder, name, **figures):
    """The parent with other figures of one variant."""
    shutil.copytree(parent, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    row(manifest, name)["figures"].update(figures)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_the_search_left_in_float_is_inherited_and_kept(parent, tmp_path):
    """Of the tiny network some 13 % are in FP16: too much for 0.9, unless that was kept on purpose."""
    audit = row(open_bundle(parent).manifest, "rtx-int8")["figures"]["audit"]
    assert 0.8 < audit["share"] < 0.9
    strict = copy_with(parent, tmp_path / "strict", "rtx-int8")
    manifest = json.loads((strict / "manifest.json").read_text())
    next(v for v in manifest["provenance"]["recipe"]["variants"] if v["name"] == "rtx-int8")[
        "min_precision_share"
    ] = 0.9
    (strict / "manifest.json").write_text(json.dumps(manifest))
    refused = build(strict, tmp_path / "refused", variants=("rtx-int8",))
    assert "wanted 90.0%" in row(refused, "rtx-int8")["reason"]
    searched = copy_with(strict, tmp_path / "searched", "rtx-int8", kept_share=0.15)
    content = build(searched, tmp_path / "out", variants=("rtx-int8",))
    assert row(content, "rtx-int8")["verdict"] == "unverified"
    assert row(content, "rtx-int8")["figures"]["kept_share"] == 0.15
    again = build(tmp_path / "out", tmp_path / "again", variants=("rtx-int8",))
    assert row(again, "rtx-int8")["verdict"] == "unverified"


@pytest.mark.parametrize("failing", ["nan", "engine", "memory"])
def test_engine_that_fails_while_it_runs_is_told_and_the_bundle_is_written(
    parent, pictures, tmp_path, monkeypatch, failing
):
    class Failing:
        def run(self, frames):
            raise {
                "nan": NonFiniteError("gave NaN"),
                "engine": EngineError(f"refused to run {tmp_path}/somewhere/x.engine"),
                "memory": ResourceError("out of memory"),
            }[failing]

        def close(self):
            pass

    monkeypatch.setattr(judging, "open_session", lambda backend, engines: Failing())
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=pictures)
    assert row(content, "rtx-fp16")["verdict"] == ("not-run" if failing == "memory" else "fail")
    if failing == "engine":  # a library's words lose the folders of this machine
        assert "refused to run .../x.engine" in row(content, "rtx-fp16")["reason"]
    assert str(tmp_path) not in (open_bundle(tmp_path / "out").path / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["variants"][2]["figures"].__setitem__("products", [1]),
        lambda m: m["variants"][2]["figures"].__setitem__("asked_precision", "int9"),
        lambda m: m["variants"][2]["figures"].__setitem__("kept_share", 1.5),
        lambda m: m["variants"][2]["figures"].__setitem__("kept_share", [1]),
        lambda m: m.__setitem__("gate", [1]),
        lambda m: m["provenance"]["recipe"]["variants"][2].__setitem__("build", {"batch": {"maxi": 3}}),
        lambda m: m["provenance"]["recipe"]["variants"][2].__setitem__("build", {"workspace_mib": "big"}),
        lambda m: m["provenance"]["recipe"]["variants"][2].__setitem__("min_precision_share", "x"),
    ],
)
def test_manifest_that_makes_no_sense_is_one_clear_error(parent, tmp_path, edit):
    shutil.copytree(parent, tmp_path / "parent")
    path = tmp_path / "parent" / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="the settings of 'rtx-fp16' cannot be used"):
        build(tmp_path / "parent", tmp_path / "out", variants=("rtx-fp16",))


def test_pictures_behind_links_are_found_and_odd_files_are_passed_over(parent, pictures, tmp_path, runs_here):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "linked").symlink_to(pictures)
    (folder / "back").symlink_to(folder)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    content = build(parent, tmp_path / "out", variants=("rtx-fp16",), data=folder)
    assert row(content, "rtx-fp16")["figures"]["judged_images"]["here"] == 30
