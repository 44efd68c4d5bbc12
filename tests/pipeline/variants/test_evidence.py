"""``gate.evidence = "test+val"``: val counts beside test where it chose nothing of an engine, and reports tell it."""

import shutil

import numpy as np
import pytest

from edgekiln.benchmarks.comparing.compare import compare_bundles
from edgekiln.benchmarks.judging.gate import tango_interval
from edgekiln.benchmarks.judging.stored_answers import read_answers, rejudge
from edgekiln.benchmarks.judging.verdict import Reference
from edgekiln.benchmarks.report import render_card, render_page, render_summary
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.proof.variant_rows import judge_variant
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import plan_run, run_recipe
from edgekiln.pipeline.stages.planning import plan_stages, stage_names
from edgekiln.pipeline.variants import evidence
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import RETRY_NAME, StageContext, read_logits
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import DeviceError, NonFiniteError, RecipeError

BOTH = "gate.evidence=test+val"


@pytest.fixture(scope="module")
def both(tiny_run, tmp_path_factory):
    """The tiny run once more, with val as evidence: RunResult. Read-only."""
    runs = shutil.copytree(tiny_run[1], tmp_path_factory.mktemp("both") / "runs")
    return run_recipe(load_recipe(tiny_run[0], [BOTH]), runs, SilentProgress())


def context_of(tiny_run, both, tmp_path, **changes):
    folders = {name: record.folder for name, record in both.stages.items()} | changes
    return StageContext(load_recipe(tiny_run[0], [BOTH]), tmp_path, folders, SilentProgress())


def reference_of(context):
    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs["evaluate.baseline"])
    return Reference(baseline, test.labels, [str(i) for i in range(len(test))], ["a", "b", "c"])


# -- the verdict


def test_drops_are_of_both_splits_and_accuracy_is_of_test(both):
    for row in both.report["variants"]:
        parts = row["drop_by_split"]
        assert {name: part["counts"]["images"] for name, part in parts.items()} == {"test": 30, "val": 18}
        for count in ("images", "broken", "mended", "agreeing"):
            assert row["counts"][count] == sum(part["counts"][count] for part in parts.values())
        counts = row["counts"]
        expected = tango_interval(counts["broken"], counts["mended"], 48, 0.95)
        assert (row["drop"]["low"], row["drop"]["high"]) == pytest.approx(expected)
        assert row["accuracy"]["images"] == 30


def test_what_decides_is_more_than_test_alone_could(tiny_run, both):
    alone = tiny_run[2].report["variants"][0]
    assert both.report["variants"][0]["drop"]["high"] < 0.08 < alone["drop"]["high"]


def test_a_stored_verdict_is_made_again_from_both(both):
    for row, again in zip(both.report["variants"], rejudge(both.bundle, max_drop=0.2), strict=True):
        for key in ("verdict", "reason", "drop", "counts", "drop_by_split"):
            assert again[key] == row[key]


def test_the_bundle_keeps_the_answers_to_val(tiny_run, both):
    bundle = open_bundle(both.bundle)
    assert bundle.manifest["gate"]["evidence"] == "test+val"
    kept = read_answers(bundle, "val_logits")
    val = load_split(both.stages["data"].folder, "val")
    assert list(kept.digests) == list(val.sha256)
    assert set(kept.engines) == {"fp32", "int8"}
    engine = read_logits(both.stages["evidence.int8"].folder)
    assert np.array_equal(kept.engines["int8"], engine)
    assert "val_logits.npz" not in open_bundle(tiny_run[2].bundle).files


def test_an_engine_that_fails_on_val_fails(tiny_run, both, tmp_path, monkeypatch):
    def give_nan(context, session, name):
        raise NonFiniteError(f"onnxruntime-cpu gave NaN on {name}.")

    monkeypatch.setattr(evidence, "answer_split", give_nan)
    context = context_of(tiny_run, both, tmp_path, **{"evidence.int8": tmp_path})
    int8 = context.recipe.variants[1]
    evidence.answer_val(context, int8)
    row = judge_variant(context, int8, reference_of(context), None)
    assert (row["verdict"], row["reason"]) == (
        "fail", "failed while running on val: onnxruntime-cpu gave NaN on val.",
    )  # fmt: skip
    assert not (tmp_path / RETRY_NAME).exists()


def test_an_engine_that_lost_its_device_is_judged_on_test_alone_told_and_tried_again(
    tiny_run, both, tmp_path, monkeypatch
):
    def lose_device(context, session, name):
        raise DeviceError("The GPU is gone.")

    monkeypatch.setattr(evidence, "answer_split", lose_device)
    context = context_of(tiny_run, both, tmp_path, **{"evidence.int8": tmp_path})
    int8 = context.recipe.variants[1]
    evidence.answer_val(context, int8)
    row = judge_variant(context, int8, reference_of(context), None)
    assert row["counts"]["images"] == 30
    assert "drop_by_split" not in row
    assert (
        "int8 is judged on test alone: it did not answer val, because: The GPU is gone." in row["notices"][-1]
    )
    assert (tmp_path / RETRY_NAME).exists()


def test_an_engine_without_answers_to_test_is_not_asked(tiny_run, both, tmp_path):
    context = context_of(tiny_run, both, tmp_path, **{"evaluate.int8": tmp_path})
    evidence.answer_val(context, context.recipe.variants[1])
    assert [path.name for path in tmp_path.iterdir()] == ["not-run.json"]


# -- what it costs, and what it does not touch


def test_nothing_is_made_anew_but_the_answers_to_val_and_the_bundle(both):
    made = [name for name, record in both.stages.items() if not record.cached]
    assert made == ["evidence", "evidence.fp32", "evidence.int8", "bundle"]


def test_keys_of_a_run_without_it_are_what_they_were(tiny_run):
    timed = ["benchmark.enabled=true", "benchmark.mlperf=true"]
    plain, named, asked = (
        {stage.name: stage for stage in plan_stages(load_recipe(tiny_run[0], [*timed, *more]))}
        for more in ([], ["gate.evidence=test"], [BOTH])
    )
    assert {name: stage.settings for name, stage in plain.items()} == {
        name: stage.settings for name, stage in named.items()
    }
    assert not any("evidence" in str(stage.settings) for stage in plain.values())
    # Another gate times nothing anew; who drives the engines that passed has to know of it.
    assert asked["benchmark"].inputs == plain["benchmark"].inputs
    assert asked["mlperf"].settings["gate"]["evidence"] == "test+val"
    assert "evidence.int8" in asked["mlperf"].inputs
    assert (
        "evidence"
        not in public_recipe(load_recipe(tiny_run[0], ["gate.evidence=test"]), as_given=True)["gate"]
    )


def test_evaluate_goes_on_to_val(tiny_run):
    recipe = load_recipe(tiny_run[0], [BOTH])
    planned = [stage.name for stage in plan_run(recipe, tiny_run[1], until="evaluate", variants=["int8"])]
    assert planned[-2:] == ["evidence", "evidence.int8"]
    assert "evidence.fp32" not in planned
    assert "evidence" not in stage_names(load_recipe(tiny_run[0]))


# -- where it is refused


VARIANT = "variants.int8"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search=true"], "val chose the blocks that it keeps in float: set search = false"),
        (["max_drop=0.1"], "val chose the blocks that it keeps in float"),
        (["backend=tensorrt-rtx", "qat={epochs=1}"], "val chose the epoch of its qat: leave qat out"),
    ],
)
def test_val_does_not_judge_what_it_chose(tiny_run, overrides, words):
    with pytest.raises(
        RecipeError, match=rf"gate\.evidence = 'test\+val' cannot judge variants\.int8, since {words}"
    ):
        load_recipe(tiny_run[0], [BOTH, *(f"{VARIANT}.{override}" for override in overrides)])


def test_what_leaves_the_choice_out_may_be_judged(tiny_run):
    own_budget = [f"{VARIANT}.max_drop=0.1", f"{VARIANT}.search=false", f"{VARIANT}.calibration_method=auto"]
    assert load_recipe(tiny_run[0], [BOTH, *own_budget]).gate.judges_val


def test_pictures_that_may_stand_in_both_splits_never_count_twice(tiny_run):
    with pytest.raises(RecipeError, match="would count twice"):
        load_recipe(tiny_run[0], [BOTH, "data.leaks=allow"])


# -- where it is told


def test_every_report_tells_the_evidence(both):
    words = "Drops and verdicts are of 30 test and 18 val images together"
    assert [notice for notice in both.report["notices"] if notice.startswith(words)]
    assert "Points lost on test and on val: fp32 +0.00 and +0.00; int8" in " ".join(both.report["notices"])
    for render in (render_page, render_card, render_summary):
        assert words in render(both.report)


def test_compare_tells_it_and_compares_on_test(tiny_run, both):
    found = compare_bundles(tiny_run[2].bundle, both.bundle)
    assert [note for note in found.notes if "the verdicts of fp32, int8 rest on test and val" in note]
    assert all(change.verdict != "worse" for change in found.changes)
