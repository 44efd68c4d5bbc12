"""Which method of calibration a variant takes: by what evidence, on which pictures, at what cost, and what is told."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hostile import CLASSES, SIZE, colored_frames
from torch import nn

from edgekiln.export.calibration import hash_frames
from edgekiln.export.precision import onnxruntime_quantizer, simulation
from edgekiln.export.to_onnx import PixelModel, export_onnx
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.recipe.variants import AUTO_SECONDS
from edgekiln.pipeline.stages.settings import settings_of_qat, settings_of_variant
from edgekiln.pipeline.stages.stage import Wish
from edgekiln.pipeline.variants import choosing
from edgekiln.pipeline.variants.calibrating import choose_calibration_set, hold_out
from edgekiln.pipeline.variants.choosing import Trial, beats, compare, estimate_seconds
from edgekiln.pipeline.variants.variants import make_variant
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import ABOUT_NAME, MODEL_NAME, StageContext, read_json
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract
from edgekiln.runtime.errors import BuildError, PrecisionError, ResourceError

COUNTS = {"train": 240, "val": 40, "test": 40}
FLASH = 23.0
"""Makes a value 28 times the 90th percentile of the others: the rule for outliers keeps a node in float from 32 on."""


class FlashNet(nn.Module):
    """Two convolutions and a head. With ``flash``, channel 0 answers a white pixel, and nothing else, with a value that
    dwarfs all others; nobody reads that channel, but it shares the tensor's scale. Few positions are averaged: rounding
    is to be seen in the answers."""

    def __init__(self, flash):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=8, padding=1)
        self.fc = nn.Linear(16, 3)
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = 0, -2.2 * flash  # white sums up to 3, colours to 0.3
            self.first.weight[0, :, 1, 1] = flash
            self.second.weight[:, 0] = 0
            frames, labels = colored_frames(96, 1)
            x = (torch.from_numpy(frames).float().permute(0, 3, 1, 2) - 127) / 128
            pooled = torch.cat([self.features(x), torch.ones(96, 1)], 1)
            wanted = 2 * nn.functional.one_hot(torch.from_numpy(labels)).float()
            solved = torch.linalg.solve(pooled.T @ pooled + 1e-3 * torch.eye(17), pooled.T @ wanted)
            self.fc.weight.copy_(solved[:-1].T)
            self.fc.bias.copy_(solved[-1])

    def features(self, x):
        return torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished data folder, where a few training pictures have a white pixel and some are copies of val and test;
    ``few`` is one with hardly more pictures than calibrate; export folders ``flash`` and ``plain``."""
    root = tmp_path_factory.mktemp("made")
    splits = {name: colored_frames(count, 10 + i) for i, (name, count) in enumerate(COUNTS.items())}
    train = splits["train"][0]
    train[::60, 8, 8] = 255
    train[7], train[77] = splits["val"][0][7], splits["test"][0][5]
    train[100] = train[99]
    for folder, count in (("data", 240), ("few", 100)):
        (root / folder).mkdir()
        index = {"classes": list(CLASSES), "splits": {}}
        for name, (frames, labels) in splits.items():
            np.save(root / folder / f"{name}.npy", frames[:count])
            index["splits"][name] = {
                "keys": [f"{name}/{i}" for i in range(len(frames[:count]))],
                "labels": labels[:count].tolist(),
                "sha256": ["0" * 64] * len(frames[:count]),
            }
        (root / folder / "index.json").write_text(json.dumps(index))
    contract = Contract(height=SIZE, width=SIZE, classes=CLASSES)
    for folder, flash in (("flash", FLASH), ("plain", 0.0)):
        (root / folder).mkdir()
        network = PixelModel(FlashNet(flash).eval(), SHARED_NORMALIZATION)
        export_onnx(network, contract, root / folder / MODEL_NAME)
    return root


class Progress(SilentProgress):
    def __init__(self):
        self.told = []

    def message(self, text):
        self.told.append(text)


def context_of(made, folder, export="flash", data="data", **variant):
    values = {"name": "int8", "precision": "int8", "calibration_images": 100, **variant}
    recipe = Recipe.model_validate(
        {
            "name": "choosing",
            "data": {"source": "imagefolder", "size": SIZE},
            "backbone": {"model": "edgekiln/tiny-cnn", "weights": "none"},
            "variants": [values],
        }
    )
    folder.mkdir()
    return StageContext(recipe, folder, {"data": made / data, "export": made / export}, Progress())


def run_stage(made, folder, export="flash", data="data", **variant):
    """(about, graph, what was told) of a variant stage."""
    context = context_of(made, folder, export, data, **variant)
    make_variant(context, context.recipe.variants[0])
    return read_json(folder / ABOUT_NAME), (folder / MODEL_NAME).read_bytes(), context.progress.told


# -- the stage


def test_clearly_better_method_is_taken_and_its_figures_are_told(made, tmp_path):
    about, graph, told = run_stage(made, tmp_path / "auto")
    calibration = about["calibration"]
    figures = calibration["choice"]["methods"]
    assert about["failure"] is None
    assert calibration["method"] == calibration["choice"]["kept"] == "percentile"
    assert calibration["choice"]["reason"] is None
    assert figures["percentile"]["divergence"] < 0.25 * figures["minmax"]["divergence"]
    assert [figures[name]["calibrated_on"] for name in ("minmax", "entropy", "percentile")] == [100, 64, 100]
    [notice] = about["notices"]
    assert notice == f"int8, calibration: {calibration['choice']['sentence']}"
    assert f"percentile {figures['percentile']['differing']}, " in notice
    assert any(notice in line for line in told)
    # The graph is that of a recipe which names the method, and so it is on another day.
    assert run_stage(made, tmp_path / "named", calibration_method="percentile")[1] == graph
    assert run_stage(made, tmp_path / "again")[:2] == (about, graph)


def test_simple_method_stays_where_nothing_is_gained(made, tmp_path):
    about, graph, told = run_stage(made, tmp_path / "auto", "plain")
    choice = about["calibration"]["choice"]
    assert (about["calibration"]["method"], choice["images"]) == (
        "minmax",
        len(choice_pictures(made, tmp_path)),
    )
    assert set(choice["methods"]) == {"minmax", "entropy", "percentile"}
    assert "minmax, since no other is clearly better" in choice["sentence"]
    assert "notices" not in about
    assert any(choice["sentence"] in line for line in told)
    named, same, _ = run_stage(made, tmp_path / "named", "plain", calibration_method="minmax")
    assert same == graph
    assert named["calibration"]["digest"] == about["calibration"]["digest"]
    assert "choice" not in named["calibration"]


def test_tensorrt_compares_by_simulation(made, tmp_path):
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    about, graph, _ = run_stage(made, tmp_path / "auto", "plain", backend="tensorrt")
    choice = about["calibration"]["choice"]
    assert set(choice["methods"]) == {"max", "entropy"}
    assert about["int8"]["quantized_products"] > 0
    kept = about["calibration"]["method"]
    assert (
        run_stage(made, tmp_path / "named", "plain", backend="tensorrt", calibration_method=kept)[1] == graph
    )


def test_too_few_pictures_leave_the_simple_method_and_are_told(made, tmp_path):
    about, _, told = run_stage(made, tmp_path / "auto", data="few", calibration_images=64)
    choice = about["calibration"]["choice"]
    assert (about["calibration"]["method"], choice["methods"]) == ("minmax", {})
    assert "34 are left, wanted 64 at least" in choice["reason"]
    assert any(choice["sentence"] in line for line in told)


def test_challenger_that_cannot_be_made_is_out_and_told(made, tmp_path, monkeypatch):
    error = PrecisionError("it cannot")

    def refuse(source, calibration, method):
        if method == "percentile":
            raise error
        return measure(source, calibration, method)

    measure = onnxruntime_quantizer.measure_ranges
    monkeypatch.setattr(onnxruntime_quantizer, "measure_ranges", refuse)
    about, graph, _ = run_stage(made, tmp_path / "auto")
    choice = about["calibration"]["choice"]
    assert (about["failure"], about["calibration"]["method"]) == (None, "minmax")
    assert choice["methods"]["percentile"] == {"calibrated_on": 64, "failure": str(error)}
    assert f"percentile failed ({error})" in choice["sentence"]
    assert run_stage(made, tmp_path / "named", calibration_method="minmax")[1] == graph


@pytest.mark.parametrize(
    ("error", "kept"), [(BuildError("it crashed", hint="no"), True), (ResourceError("no memory"), False)]
)
def test_crash_of_a_challenger_is_its_own_but_lack_of_memory_decides_nothing(
    made, tmp_path, monkeypatch, error, kept
):
    """Which method is taken must not hang on the machine: then the variant is tried again another time."""
    graphs = []

    def fail_second(graph, frames, open_graph):
        graphs.append(graph)
        if len(graphs) == 2:
            raise error
        return np.zeros((len(frames), 3), np.float32)

    monkeypatch.setattr(simulation, "simulate", fail_second)
    about, graph, _ = run_stage(made, tmp_path / "auto")
    assert graph == graphs[0]  # the simple method's
    if kept:
        assert "it crashed" in about["calibration"]["choice"]["methods"]["entropy"]["failure"]
        assert about["audit"]["share"] == 1.0  # it came to the end
    else:
        assert "no memory" in about["not_built"]


# -- the pictures


def choice_pictures(made, tmp_path):
    context = context_of(made, tmp_path / "pictures")
    return hold_out(context, choose_calibration_set(context, context.recipe.variants[0]))


def test_pictures_are_of_train_alone_and_calibrate_nothing(made, tmp_path):
    context = context_of(made, tmp_path / "v")
    calibration = choose_calibration_set(context, context.recipe.variants[0])
    chosen = hash_frames(hold_out(context, calibration))
    hashes = {name: set(hash_frames(load_split(made / "data", name).frames)) for name in COUNTS}
    assert hashes["train"] & hashes["val"]  # else nothing is shown
    assert hashes["train"] & hashes["test"]
    out = hashes["val"] | hashes["test"] | set(hash_frames(calibration.frames))
    assert set(chosen) == hashes["train"] - out
    assert len(chosen) == len(set(chosen))
    assert chosen == hash_frames(hold_out(context, calibration))


def test_many_pictures_are_drawn_by_the_seed(made, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekiln.pipeline.variants.calibrating.MOST_HELD_OUT", 70)
    context = context_of(made, tmp_path / "v")
    calibration = choose_calibration_set(context, context.recipe.variants[0])
    other = replace(context, recipe=context.recipe.model_copy(update={"seed": 1}))
    one, two = (set(hash_frames(hold_out(c, calibration))) for c in (context, other))
    assert len(one) == len(two) == 70
    assert one != two


# -- the rule


def trial(differing, divergence):
    differs = np.zeros(200, bool)
    differs[differing] = True
    return Trial(differs, np.asarray(divergence, float))


NOISE = np.random.default_rng(0).uniform(0.5, 1.5, 200)
WILD = np.where(np.arange(200) == 3, 200.0, 0.01)


@pytest.mark.parametrize(
    ("challenger", "simple", "wins"),
    [
        (([], NOISE), (range(5), NOISE), True),  # five pictures to none
        (([], NOISE), (range(4), NOISE), False),  # four may be by chance
        ((range(5), 0.1 * NOISE), ([], NOISE), False),  # the other way round, whatever the divergence
        (([9], 0.1 * NOISE), ([], NOISE), False),  # no more other answers, not even by chance
        (([9], 0.1 * NOISE), ([1], NOISE), True),
        (([], 0.7 * NOISE), ([], NOISE), True),
        (([], 0.8 * NOISE), ([], NOISE), False),  # a fifth is not worth it
        (([], 0.0 * WILD), ([], WILD), False),  # one picture's share alone
        (([], 0 * NOISE), ([], 0 * NOISE), False),
    ],
)
def test_challenger_must_be_clearly_better(challenger, simple, wins):
    assert beats(trial(*challenger), trial(*simple)) is wins


def test_figures_are_those_of_the_answers():
    baseline = np.log(np.array([[0.5, 0.5 - 1e-9], [0.9, 0.1]], np.float32))
    found = compare(baseline, np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)))
    assert found.differs.tolist() == [True, False]
    assert found.divergence == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0], abs=1e-6)
    assert found.rank == (1, pytest.approx(0.5 * np.log(4 / 3) / 2, abs=1e-6))


# -- the cost


def test_cost_grows_with_network_pictures_and_methods_and_no_clock():
    few = estimate_seconds(30_000_000, 3, 512)
    assert few == pytest.approx(30e6 * (2 * 64 + 512 + 0.25 * 256 * 5) * 1e-9)
    assert estimate_seconds(60_000_000, 3, 512) == pytest.approx(2 * few)
    assert estimate_seconds(30_000_000, 2, 512) < few < estimate_seconds(30_000_000, 3, 1024)


def test_dear_comparison_is_made_only_where_the_recipe_asks(made, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "_CALIBRATING_NS", 1e6)
    about, graph, _ = run_stage(made, tmp_path / "default")
    choice = about["calibration"]["choice"]
    assert (about["calibration"]["method"], choice["methods"]) == ("minmax", {})
    assert f's of one core, over {AUTO_SECONDS:.0f}; calibration_method = "auto"' in choice["reason"]
    assert run_stage(made, tmp_path / "named", calibration_method="minmax")[1] == graph
    asked = run_stage(made, tmp_path / "asked", calibration_method="auto")[0]
    assert asked["calibration"]["method"] == "percentile"


# -- the recipe


def settings_with(made, tmp_path, name, **variant):
    recipe = context_of(made, tmp_path / name, **variant).recipe
    of = settings_of_qat if recipe.variants[0].qat else settings_of_variant
    return of(Wish(recipe), recipe.variants[0])


def test_key_tells_what_was_asked(made, tmp_path):
    default = settings_with(made, tmp_path, "a")
    assert (default["calibration_method"], default["calibration_seconds"]) == ("auto", AUTO_SECONDS)
    asked = settings_with(made, tmp_path, "b", calibration_method="auto")
    named = settings_with(made, tmp_path, "c", calibration_method="minmax")
    assert (asked["calibration_method"], named["calibration_method"]) == ("auto", "minmax")
    assert "calibration_seconds" not in asked
    assert "calibration_seconds" not in named


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        ({}, "auto"),
        ({"backend": "openvino"}, "auto"),
        ({"backend": "tensorrt"}, "auto"),
        ({"backend": "tensorrt", "calibration_method": "entropy"}, "entropy"),
        ({"backend": "tensorrt", "qat": {}}, "max"),
        ({"backend": "tensorrt", "precision": "fp16"}, "max"),
    ],
)
def test_only_int8_without_training_is_chosen_for(made, tmp_path, variant, method):
    assert context_of(made, tmp_path / "v", **variant).recipe.variants[0].calibration == method


def test_training_for_int8_leaves_no_choice(made, tmp_path):
    with pytest.raises(ValueError, match="'auto' and qat exclude each other"):
        context_of(made, tmp_path / "v", backend="tensorrt", qat={}, calibration_method="auto")
