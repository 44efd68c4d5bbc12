"""Quantization-aware training, from the fine-tuned network to the engine's graph."""

import json

import numpy as np
import pytest
import torch
from hostile import CLASSES, make_hostile, make_outlier
from qat_support import CONTRACT, colored_split, make_job
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.benchmarks.judging.required import advise, check_gate
from edgekiln.export.calibration import choose_calibration
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.simulation import simulate
from edgekiln.export.qat.to_onnx import export_fake_quantized
from edgekiln.export.to_onnx import PixelModel, export_onnx
from edgekiln.pipeline.recipe import BackboneSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.planning import plan_stages, stage_names
from edgekiln.pipeline.training.checkpoint import load_tensors, save_tensors
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.qat import TRAINED_NAME, load_trained, train_quantized
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.contract import SHARED_NORMALIZATION
from edgekiln.runtime.errors import GateError, RecipeError, UntrustedError

pytest.importorskip("modelopt", reason="trains with nvidia-modelopt")

TEST = colored_split(150, 9)
# What mends each: ranges that are fitted to the pictures, or training, at a rate that moves weights of 0.05 by as much
# within six epochs of six steps.
MENDED = {"hostile": {"epochs": 1}, "outlier": {"epochs": 6, "learning_rate": 1e-4}}


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def top1(logits):
    return float((np.asarray(logits).argmax(axis=1) == TEST.labels).mean())


@pytest.fixture(scope="module", params=["hostile", "outlier"])
def trained(request, tmp_path_factory):
    """(name, job, folder, summary) of a network that INT8 breaks."""
    folder = tmp_path_factory.mktemp(request.param)
    job = make_job(folder, request.param, **MENDED[request.param])
    (folder / "out").mkdir()
    return request.param, job, folder / "out", train_quantized(job, folder / "out")


def test_network_that_int8_breaks_passes_after_training(trained, tmp_path):
    name, job, folder, _ = trained
    network = {"hostile": make_hostile, "outlier": make_outlier}[name](len(CLASSES))
    source, plain, quantized = (tmp_path / f"{part}.onnx" for part in ("m", "plain", "trained"))
    export_onnx(PixelModel(network, SHARED_NORMALIZATION), CONTRACT, source)
    calibration = choose_calibration(job.calibration, 48, 0)
    quantize_for_tensorrt(source, plain, calibration)
    model = load_trained(folder / TRAINED_NAME, job.finetune.backbone)
    report = export_fake_quantized(model, source, quantized, calibration)
    assert (report.quantized, report.findings) == ((4, 5), ())
    answers = {path.stem: simulate(path.read_bytes(), TEST.frames) for path in (source, plain, quantized)}
    assert top1(answers["m"]) == 1.0
    assert top1(answers["plain"]) < 0.7  # a third is chance
    assert top1(answers["trained"]) >= 0.99


def test_each_is_mended_by_what_can_mend_it(trained):
    name, _, folder, summary = trained
    told = summary["val_top1"]
    assert told["float"] == 1.0
    assert told["largest_ranges"] < 0.7
    assert told["trained"] >= 0.99
    [line] = events(folder, "calibrated")
    if name == "hostile":
        assert (summary["weight_ranges"], line["fitted_top1"], told["calibrated"]) == ("fitted", 1.0, 1.0)
    else:  # no range of weights helps: the activations' is too wide
        assert told["calibrated"] < 0.7
        assert summary["best_epoch"] > 0


def test_best_epoch_is_kept_and_logged(trained):
    _, job, folder, summary = trained
    assert sorted(path.name for path in folder.iterdir()) == [LOG_NAME, TRAINED_NAME]
    epochs = events(folder, "epoch")
    assert [line["epoch"] for line in epochs] == list(range(job.settings.epochs + 1))
    best = max(epochs, key=lambda line: (line["val_top1"], -line["val_loss"]))
    assert summary["best_epoch"] == best["epoch"]
    model = load_trained(folder / TRAINED_NAME, job.finetune.backbone)
    val = job.finetune.val
    right = evaluate_model(model, val.frames).argmax(1) == torch.from_numpy(val.labels)
    assert float(right.float().mean()) == pytest.approx(best["val_top1"], abs=1e-6)


class Stop(Exception):
    """As Ctrl-C, and no class that pytest heeds."""


@pytest.mark.parametrize("at", [1, 6, 9])
def test_stopped_and_resumed_it_ends_with_the_same_weights(tmp_path, at):
    """Six steps an epoch: inside the first, at its end, inside the second."""

    def stop(done, total, note):
        if done == at:
            raise Stop

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train_quantized(make_job(tmp_path, "outlier"), tmp_path / "whole")
    with pytest.raises(Stop):
        train_quantized(
            make_job(tmp_path, "outlier", advance=stop, checkpoint_seconds=1e-9), tmp_path / "stopped"
        )
    assert not (tmp_path / "stopped" / TRAINED_NAME).exists()
    train_quantized(make_job(tmp_path, "outlier"), tmp_path / "stopped")
    files = [(tmp_path / name / TRAINED_NAME).read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    steps = [line["step"] for line in events(tmp_path / "stopped", "step")]
    assert steps == list(range(1, 13)), "no step is logged twice, none is missing"


def test_other_rate_gives_other_weights(tmp_path):
    for name, rate in (("a", 1e-4), ("b", 2e-4)):
        (tmp_path / name).mkdir()
        train_quantized(make_job(tmp_path, "outlier", epochs=1, learning_rate=rate), tmp_path / name)
    assert events(tmp_path / "a", "step")[-1] != events(tmp_path / "b", "step")[-1]
    assert make_job(tmp_path).learning_rate == pytest.approx(3e-5)  # a tenth of the fine-tuning's


def test_loss_that_is_no_number_stops_and_names_the_step(tmp_path):
    job = make_job(tmp_path, "outlier", learning_rate=1e30, warmup=0.0)
    with pytest.raises(
        GateError, match=r"training became (nan|inf) at step \d+ of 12\. Lower qat\.learning_rate"
    ):
        train_quantized(job, tmp_path)


def test_file_of_another_backbone_is_refused(trained):
    _, _, folder, _ = trained
    with pytest.raises(RecipeError, match=r"holds hostile:make_\w+, the recipe names timm/resnet18"):
        load_trained(folder / TRAINED_NAME, BackboneSettings(model="timm/resnet18", weights="none"))


def test_file_without_a_range_is_refused(trained, tmp_path):
    _, job, folder, _ = trained
    tensors, metadata = load_tensors(folder / TRAINED_NAME)
    del tensors["layers.1.weight_quantizer._amax"]
    save_tensors(tensors, tmp_path / TRAINED_NAME, metadata)
    with pytest.raises(UntrustedError, match=r"another network than its backbone has.*no range of layers\.1"):
        load_trained(tmp_path / TRAINED_NAME, job.finetune.backbone)


# -- the recipe


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ('precision = "fp16"\nbackend = "tensorrt"\nqat = {}', "qat is for int8 variants, not for fp16"),
        (
            'precision = "int8"\nqat = {}',
            "qat is for tensorrt and tensorrt-rtx; onnxruntime-cpu takes unsigned",
        ),
        (
            'precision = "int8"\nbackend = "openvino"\nqat = {}',
            "qat is for tensorrt and tensorrt-rtx; openvino",
        ),
        ('precision = "int8"\nbackend = "tensorrt"\nsearch = true\nqat = {}', "exclude each other"),
        ('precision = "int8"\nbackend = "tensorrt"\nqat = {epochs = 0}', "greater than or equal to 1"),
        ('precision = "int8"\nbackend = "tensorrt"\nqat = {learning_rate = 0}', "greater than 0"),
        ('precision = "int8"\nbackend = "tensorrt"\nqat = {epoch = 2}', "did you mean 'epochs'?"),
    ],
)
def test_recipe_refuses_what_cannot_be_meant(tmp_path, variant, message):
    path = tmp_path / "r.toml"
    path.write_text(TINY_RECIPE.replace("[gate]", f'[[variants]]\nname = "x"\n{variant}\n[gate]'))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


VARIANT = '[[variants]]\nname = "trt"\nprecision = "int8"\nbackend = "{}"\nmax_drop = 0.1\n{}\n'


def plan(tmp_path, qat="", *overrides):
    (tmp_path / "r.toml").write_text(
        TINY_RECIPE.replace("[gate]", VARIANT.format("tensorrt", qat) + "[gate]")
    )
    (tmp_path / "pictures").mkdir(exist_ok=True)
    if not any((tmp_path / "pictures").iterdir()):
        (tmp_path / "pictures").rmdir()
        write_pictures(tmp_path / "pictures", per_class=2)
    recipe = load_recipe(tmp_path / "r.toml", overrides)
    return recipe, {stage.name: stage for stage in plan_stages(recipe)}


def test_stage_stands_before_its_variant_only_where_it_is_asked_for(tmp_path):
    recipe, stages = plan(tmp_path)
    assert "qat.trt" not in stages
    assert stages["variant.trt"].inputs == ("data", "export")
    assert recipe.variants[-1].searches
    recipe, stages = plan(tmp_path, "qat = {}")
    assert list(stages) == stage_names(recipe)
    assert not recipe.variants[-1].searches  # what is trained for INT8 stays in INT8
    assert stages["qat.trt"].inputs == ("data", "finetune")
    assert stages["qat.trt"].resumable
    assert stages["variant.trt"].inputs == ("data", "export", "qat.trt")


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("variants.trt.qat.epochs=3", True),
        ("variants.trt.qat.learning_rate=1e-5", True),
        ("variants.trt.calibration_images=64", True),
        ("finetune.batch_size=8", True),
        ("finetune.checkpoint_seconds=1", False),
        ("gate.max_drop=0.3", False),
    ],
)
def test_key_holds_what_the_weights_depend_on(tmp_path, override, changes):
    before, after = (plan(tmp_path, "qat = {}", *more)[1]["qat.trt"].settings for more in ((), (override,)))
    assert (before != after) is changes


# -- the gate


def row(**changes):
    values = {"name": "trt", "precision": "int8", "backend": "tensorrt", "verdict": "fail", "reason": "drop"}
    return {**values, "required": True, **changes}


def report(**changes):
    return {"variants": [row(**changes)], "recipe": {"gate": {"inconclusive": "fail"}}}


def test_gate_that_fails_names_the_training():
    with pytest.raises(GateError, match=r"may mend trt: set qat = \{epochs = 2\} \(docs/qat\.md\)"):
        check_gate(report())


@pytest.mark.parametrize(
    "changes",
    [{"backend": "onnxruntime-cpu"}, {"precision": "fp16"}, {"verdict": "not-run"}, {"qat": {"epochs": 2}}],
)
def test_gate_does_not_name_what_would_not_help(changes):
    assert advise(report(**changes)) == []
    with pytest.raises(GateError, match=r"only what passed is deployable\.$"):
        check_gate(report(**changes))


# -- a whole run


@pytest.mark.slow
def test_run_trains_builds_and_tells(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds a real TensorRT-RTX engine; needs no GPU")
    write_pictures(tmp_path / "pictures")
    text = TINY_RECIPE.replace("edgekiln/tiny-cnn", "hostile:make_hostile").replace("size = 32", "size = 16")
    text = text.replace("epochs = 2", "epochs = 0\nprobe = false")
    common = 'backend = "tensorrt-rtx"\nrequired = false\ncalibration_images = 48\n'
    mended = f'[[variants]]\nname = "mended"\nprecision = "int8"\nqat = {{epochs = 1}}\n{common}'
    text = text.replace("calibration_images = 48\n", f"{common}{mended}")
    (tmp_path / "r.toml").write_text(text)
    result = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    plain, mended = result.report["variants"][1:]
    assert (plain.get("qat"), mended["qat"]["weight_ranges"]) == (None, "fitted")
    assert mended["failure"] is None
    assert mended["files"] == ["mended.engine"]
    assert mended["int8"]["quantized_products"] == 4
    assert plain["simulated"]["top1"] < 0.7 < 0.99 <= mended["simulated"]["top1"]
    assert mended["notices"][0] in result.report["notices"]
    assert (
        "was trained for INT8, epochs: 1; the state after epoch"
        in (result.bundle / "report.html").read_text()
    )
    again = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    assert all(stage.cached for stage in again.stages.values())


@pytest.mark.slow
def test_absent_library_leaves_the_rest_of_the_run_as_it_is(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "modelopt", None)
    write_pictures(tmp_path / "pictures")
    variant = VARIANT.format("tensorrt-rtx", "required = false\nqat = {}")
    (tmp_path / "r.toml").write_text(TINY_RECIPE.replace("[gate]", variant + "[gate]"))
    result = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", SilentProgress())
    rows = {row["name"]: row for row in result.report["variants"]}
    assert rows["int8"]["verdict"] == "pass"
    assert rows["trt"]["verdict"] == "not-run"
    assert "Run: pip install 'edgekiln[modelopt]'" in rows["trt"]["reason"]
