"""The closed loop inside a variant stage: what it writes, what it never opens, and what an interruption costs."""

import importlib.util
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hostile import CLASSES, SIZE, colored_frames
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.benchmarks.judging.required import check_gate
from edgekiln.export.precision import int8_cpu
from edgekiln.export.precision.blocks import quantized_products
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import Recipe, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.planning import plan_stages
from edgekiln.pipeline.variants import searching, variants
from edgekiln.pipeline.variants.searching import CANDIDATES_NAME, make_rule
from edgekiln.pipeline.variants.variants import make_variant
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import ABOUT_NAME, MODEL_NAME, StageContext, read_json
from edgekiln.pipeline.workspace.store import earlier_files
from edgekiln.runtime.errors import BuildError, GateError, RecipeError
from edgekiln.runtime.spec import Precision

COUNTS = {"train": 60, "val": 90, "test": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory, hostile_networks):
    """A finished data folder whose test labels are poison, and export folders by what is hostile."""
    root = tmp_path_factory.mktemp("made")
    index = {"classes": list(CLASSES), "splits": {}}
    (root / "data").mkdir()
    for seed, (name, count) in enumerate(COUNTS.items()):
        frames, labels = colored_frames(count, 10 + seed)
        np.save(root / "data" / f"{name}.npy", frames)
        poison = name == "test"
        index["splits"][name] = {
            "keys": [f"{name}/{i}" for i in range(count)],
            "labels": [10**6] * count if poison else labels.tolist(),
            "sha256": ["0" * 64] * count,
        }
    (root / "data" / "index.json").write_text(json.dumps(index))
    for name in ("benign", "hostile", "hopeless"):
        (root / name).symlink_to(hostile_networks / name)
    return root


def recipe_with(**variant):
    values = {"name": "int8", "precision": "int8", "calibration_images": 48, "max_drop": 0.05, **variant}
    return Recipe.model_validate(
        {
            "name": "searching",
            "data": {"source": "imagefolder", "size": SIZE},
            "backbone": {"model": "edgekiln/tiny-cnn", "weights": "none"},
            "variants": [values],
        }
    )


class Progress(SilentProgress):
    """Remembers what it was told."""

    def __init__(self):
        self.told, self.steps = [], []

    def message(self, text):
        self.told.append(text)

    def advance(self, done, total, note=""):
        self.steps.append((done, total, note))


def run_stage(made, folder, export, progress=None, **variant):
    """(about, progress) of a variant stage."""
    recipe = recipe_with(**variant)
    folder.mkdir(exist_ok=True)
    inputs = {"data": made / "data", "export": made / export}
    context = StageContext(recipe, folder, inputs, progress or Progress())
    make_variant(context, recipe.variants[0])
    return read_json(folder / ABOUT_NAME), context.progress


@pytest.fixture(autouse=True)
def only_val_is_opened(monkeypatch):
    def open_split(folder, name):
        assert name == "val"
        return load_split(folder, name)

    monkeypatch.setattr(searching, "load_split", open_split)


# -- the stage


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino", "tensorrt"])
def test_hostile_block_is_kept_and_told(made, tmp_path, backend):
    if backend == "tensorrt":
        pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:  # never imported plainly
        pytest.skip("OpenVINO is not installed")
    about, progress = run_stage(made, tmp_path / "v", "hostile", backend=backend)
    search = about["search"]
    assert about["failure"] is None
    assert search["kept"] == [{"name": "layers.2", "products": ["node_conv2d_2"]}]
    assert (search["verdict"], search["split"], search["images"], search["rule"]) == (
        "found",
        "val",
        90,
        "estimate",
    )
    assert about["kept_share"] == pytest.approx(
        1 - search["share_quantized"], abs=1e-4 + (backend == "tensorrt")
    )
    [notice] = about["notices"]
    assert search["chosen"] == next(p for p in search["curve"] if p["kept"] == ["layers.2"])
    assert f"top-1 drop on val {100 * search['chosen']['drop']:+.2f} instead of" in notice
    rest, judge = {
        "onnxruntime-cpu": ("FP32", "onnxruntime on"),
        "openvino": ("FP32", "OpenVINO on"),
        "tensorrt": ("FP16", "a simulation of the graph on"),
    }[backend]
    blocks = search["blocks"]
    assert notice.startswith(f"int8 keeps 1 of {blocks} blocks in {rest} to hold its budget: layers.2. ")
    assert f"judged by {judge}" in notice
    assert any(notice in line for line in progress.told)
    assert any(note == "layers.2 alone" for _, _, note in progress.steps)
    assert "node_conv2d_2" not in quantized_products(onnx.load(tmp_path / "v" / MODEL_NAME).graph)
    assert {p.name for p in (tmp_path / "v").iterdir() if p.suffix != ".part"} == {ABOUT_NAME, MODEL_NAME}
    if backend == "openvino":
        assert about["audit"]["islands"] == ["node_conv2d_2/WithoutBiases"]
    elif backend == "onnxruntime-cpu":
        assert about["audit"]["kept_float"] == ["node_conv2d_2"]
        assert about["pixels_feed_directly"] is True
    else:
        assert about["int8"]["kept_float"] == ["node_conv2d_2"]
        assert about["products"]


def test_benign_network_is_judged_once_and_left_alone(made, tmp_path):
    about, _ = run_stage(made, tmp_path / "v", "benign")
    assert (about["search"]["verdict"], about["search"]["evaluations"]) == ("not-needed", 1)
    assert (about["kept_share"], about["failure"]) == (0.0, None)
    assert "notices" not in about
    plain, _ = run_stage(made, tmp_path / "plain", "benign", search=False)
    assert "search" not in plain
    assert (tmp_path / "v" / MODEL_NAME).read_bytes() == (tmp_path / "plain" / MODEL_NAME).read_bytes()


def test_impossible_budget_fails_the_variant_with_the_curve(made, tmp_path):
    about, _ = run_stage(made, tmp_path / "v", "hopeless")
    assert about["search"]["verdict"] == "impossible"
    assert about["failure"].startswith(
        "INT8 cannot hold its budget: plain INT8 loses +66.67 points on val, allowed 5.00"
    )
    assert about["failure"].endswith("At least half of the MACs must be in INT8; take FP32 instead.")
    shares = [point["share_quantized"] for point in about["search"]["curve"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) > 1
    assert (tmp_path / "v" / MODEL_NAME).exists()  # the plain graph, as evidence


def test_search_that_stops_for_time_says_so(made, tmp_path):
    about, _ = run_stage(made, tmp_path / "v", "hostile", search_seconds=1e-6)
    assert about["search"]["verdict"] == "stopped"
    assert "stopped for time after 1 evaluations (search_seconds = 1e-06)" in about["failure"]


def test_interrupted_stage_goes_on_where_it_was(made, tmp_path, monkeypatch):
    asked = []

    def count(source, target, calibration, method, *, keep_float=(), **options):
        asked.append(tuple(keep_float))
        return int8_cpu_quantize(source, target, calibration, method, keep_float=keep_float, **options)

    int8_cpu_quantize = int8_cpu.quantize_for_cpu
    monkeypatch.setattr(int8_cpu, "quantize_for_cpu", count)

    class Stop(Progress):
        def advance(self, done, total, note=""):
            if note == "layers.3 alone":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(made, tmp_path / "v", "hostile", Stop())
    judged = json.loads((tmp_path / "v" / CANDIDATES_NAME).read_text())["candidates"]
    assert len(judged) == 4  # plain, and three blocks
    before, asked[:] = set(asked) - {()}, []
    about, _ = run_stage(made, tmp_path / "v", "hostile")
    assert len(before) == 3
    assert not before & set(asked)
    whole, _ = run_stage(made, tmp_path / "w", "hostile")
    assert about == whole
    assert (tmp_path / "v" / MODEL_NAME).read_bytes() == (tmp_path / "w" / MODEL_NAME).read_bytes()
    assert not (tmp_path / "v" / CANDIDATES_NAME).exists()


def test_a_graph_that_crashes_the_library_is_a_bad_candidate_and_others_are_tried(
    made, tmp_path, monkeypatch
):
    judged = []

    def crash_first(model, frames, open_graph):
        judged.append(model)
        if len(judged) == 1:
            raise BuildError("the library crashed (signal 11)")
        return searching.answer(model, frames, open_graph)

    monkeypatch.setattr(variants, "answer", crash_first)
    about, _ = run_stage(made, tmp_path / "v", "benign")
    assert (about["failure"], about["not_built"]) == (None, None)
    assert about["search"]["verdict"] == "found"
    assert about["search"]["curve"][0]["failure"] == "the library crashed (signal 11)"


def test_candidates_of_another_graph_are_not_believed(made, tmp_path):
    (tmp_path / "v").mkdir()
    lie = {"broken": 0, "mended": 0, "images": 90, "divergence": 0.0, "failure": None}
    key = "e3b0c44298fc1c149afbf4c8996fb924"  # sha256 of nothing: the plain graph
    (tmp_path / "v" / CANDIDATES_NAME).write_text(
        json.dumps({"identity": "0" * 64, "candidates": {key: lie}})
    )
    assert run_stage(made, tmp_path / "v", "hostile")[0]["search"]["verdict"] == "found"


@pytest.fixture
def asked(monkeypatch):
    """What the CPU quantizer was asked to keep in float, one entry a call."""
    calls, quantize = [], int8_cpu.quantize_for_cpu

    def count(*arguments, keep_float=(), **more):
        calls.append(tuple(keep_float))
        return quantize(*arguments, keep_float=keep_float, **more)

    monkeypatch.setattr(int8_cpu, "quantize_for_cpu", count)
    return calls


def finish(folder, stage):
    """As the store does it: the working folder becomes the finished stage's output."""
    (stage / folder.name.removeprefix(".partial-")).mkdir()
    return folder.rename(stage / folder.name.removeprefix(".partial-") / "out")


def stop_after(count, monkeypatch):
    """Let a search's time run out once ``count`` candidates beside the plain graph were judged."""
    from edgekiln.export.precision import sensitivity

    clock = itertools.count()
    monkeypatch.setattr(sensitivity, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    return count + 0.5


def test_search_with_more_seconds_judges_nothing_again(made, tmp_path, monkeypatch, asked):
    with monkeypatch.context() as patch:
        seconds = stop_after(3, patch)
        about, _ = run_stage(made, tmp_path / ".partial-a", "hostile", search_seconds=seconds)
    assert (about["search"]["verdict"], about["search"]["evaluations"]) == ("stopped", 4)
    finish(tmp_path / ".partial-a", tmp_path)
    before, asked[:] = {kept for kept in asked if kept}, []
    about, progress = run_stage(made, tmp_path / ".partial-b", "hostile")
    assert len(before) == 3
    assert not before & set(asked)
    assert not any("damaged" in line for line in progress.told)
    whole, _ = run_stage(made, tmp_path / "w", "hostile")
    assert about == whole
    assert not (tmp_path / ".partial-b" / CANDIDATES_NAME).exists()


def test_forced_search_takes_up_nothing(made, tmp_path, asked):
    run_stage(made, tmp_path / ".partial-a", "benign", search_seconds=1e-6, max_drop=0.05)
    about, _ = run_stage(made, tmp_path / ".partial-b", "hostile", search_seconds=1e-6)
    assert about["search"]["verdict"] == "stopped"
    assert earlier_files(tmp_path / ".partial-c", CANDIDATES_NAME) == [
        tmp_path / ".partial-b" / CANDIDATES_NAME
    ]
    (tmp_path / ".forced-c").touch()
    assert earlier_files(tmp_path / ".partial-c", CANDIDATES_NAME) == []
    assert earlier_files(tmp_path / "anywhere", CANDIDATES_NAME) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"images": 90', '"images": 91'),
        lambda text: text.replace('"broken": ', '"broken": -'),
        lambda text: text.replace('"mended"', '"amended"'),
    ],
)
def test_damaged_candidates_are_judged_again_and_told(made, tmp_path, damage):
    run_stage(made, tmp_path / ".partial-a", "hostile", search_seconds=1e-6)
    path = finish(tmp_path / ".partial-a", tmp_path) / CANDIDATES_NAME
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    about, progress = run_stage(made, tmp_path / ".partial-b", "hostile", search_seconds=1e-6)
    assert about["search"]["curve"][0]["drop"] > 0.5
    assert any("Candidates of an earlier search are damaged, judged again" in line for line in progress.told)


@pytest.mark.parametrize("other", ["source", "plain", "calibration", "labels", "frames", "judged_by"])
def test_candidates_are_bound_to_everything_that_they_depend_on(made, other):
    val = load_split(made / "data", "val")
    loop = searching.Loop(b"plain", lambda keep: b"", lambda model, frames: frames, "judge", "FP32")
    known = searching._identify(b"source", loop, val, "0")
    assert known == searching._identify(b"source", loop, val, "0")
    arguments = {"source": b"source", "loop": loop, "val": val, "calibration": "0"}
    match other:
        case "plain" | "judged_by":
            arguments["loop"] = replace(loop, **{other: b"p" if other == "plain" else "another"})
        case "labels":
            arguments["val"] = replace(val, labels=val.labels[::-1])
        case "frames":
            arguments["val"] = replace(val, frames=np.array(val.frames[::-1]))
        case _:
            arguments[other] = b"s" if other == "source" else "1"
    assert searching._identify(**arguments) != known


# -- rule and recipe


def test_rule_asks_for_the_interval_only_where_val_can_give_it():
    accepts, rule = make_rule(0.05, 0.95, 90)
    assert (rule, accepts(6, 2, 90), accepts(7, 2, 90)) == ("estimate", True, False)
    # An engine without a flip has an upper bound of z^2 / (n + z^2) = 3.84 / (n + 3.84): half of 0.05 at n = 150.
    assert [make_rule(0.05, 0.95, n)[1] for n in (149, 150)] == ["estimate", "interval"]
    accepts, _ = make_rule(0.05, 0.95, 1000)
    assert accepts(30, 0, 1000)
    assert not accepts(45, 0, 1000)  # 4.5 points are inside, their interval is not


@pytest.mark.parametrize(
    ("variant", "searches"),
    [
        ({}, True),
        ({"max_drop": None}, False),
        ({"search": False}, False),
        ({"max_drop": None, "search": True}, True),
        ({"precision": "fp32"}, False),
    ],
)
def test_search_is_on_where_an_int8_variant_has_its_own_budget(variant, searches):
    recipe = recipe_with(**variant)
    assert recipe.variants[0].searches is searches


def test_search_of_another_precision_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace('precision = "fp32"', 'precision = "fp32"\nsearch = true'))
    with pytest.raises(RecipeError, match="search = true is for int8 variants, not for fp32"):
        load_recipe(path)


def test_budget_is_part_of_the_key_only_where_it_is_searched_for(tiny_recipe):
    def settings(*overrides):
        [stage] = [s for s in plan_stages(load_recipe(tiny_recipe, overrides)) if s.name == "variant.int8"]
        return stage.settings, stage.resumable

    assert settings("gate.max_drop=0.3") == settings("gate.max_drop=0.1")
    assert settings()[1] is False
    searched = settings("variants.int8.search=true", "gate.max_drop=0.3")
    assert searched[1] is True
    assert searched != settings("variants.int8.search=true", "gate.max_drop=0.1")


def test_engines_are_not_asked_for_what_the_search_left_in_float(tmp_path):
    from edgekiln.pipeline.variants.engines import _request

    (tmp_path / ABOUT_NAME).write_text(json.dumps({"products": {"a": 1}, "kept_share": 0.25}))
    variant = recipe_with(backend="tensorrt").variants[0]
    assert _request(variant, tmp_path / MODEL_NAME, Precision.INT8).asked_share == pytest.approx(0.6)
    assert _request(variant, tmp_path / MODEL_NAME, Precision.FP16).asked_share == pytest.approx(0.8)


# -- a whole run


@pytest.mark.slow
def test_report_tells_what_was_kept_and_what_was_impossible(tmp_path):
    write_pictures(tmp_path / "pictures")
    text = TINY_RECIPE.replace("edgekiln/tiny-cnn", "hostile:make_hostile").replace("size = 32", "size = 16")
    text = text.replace("calibration_images = 48\n", "calibration_images = 48\nmax_drop = 0.2\n")
    (tmp_path / "r.toml").write_text(text.replace("epochs = 2", "epochs = 0\nprobe = false"))
    result = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    row = result.report["variants"][1]
    assert row["search"]["verdict"] == "found"
    assert [block["name"] for block in row["search"]["kept"]] == ["layers.2"]
    assert result.report["notices"] == row["notices"] != []
    page = (result.bundle / "report.html").read_text()
    assert "keeps 1 of 5 blocks in FP32 to hold its budget: layers.2" in page
    assert "% of the MACs in INT8" in page  # the curve
    assert "ended as\n<strong>found</strong>" in page
    again = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    assert all(stage.cached for stage in again.stages.values())
    recipe = load_recipe(tmp_path / "r.toml", ["variants.int8.search_seconds=1e-6"])
    stopped = run_recipe(recipe, tmp_path / "runs", SilentProgress())
    assert stopped.report["variants"][1]["verdict"] == "fail"
    assert "stopped for time" in stopped.report["variants"][1]["reason"]
    with pytest.raises(GateError, match="int8: fail"):
        check_gate(stopped.report)
