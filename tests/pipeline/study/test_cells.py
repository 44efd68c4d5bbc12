"""``edgekiln transfer``: cells that are kept, resumed, judged alike and told; on a network that trains in a second."""

import json
import os
import re
import shutil
import signal
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from study_support import write_study_recipe

from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.pipeline.data import load_split, read_source, split_samples
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.study.cells import (
    Cell,
    CellResult,
    estimate_seconds,
    find_cells,
    make_plan,
    run_study,
)
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import read_logits
from edgekiln.runtime.errors import DataError

SHARES = "0.5,1"
FILES = ("transfer.html", "transfer.json", "transfer.svg")


@pytest.fixture(scope="module")
def finished(tiny_run, launcher, tmp_path_factory):
    """A whole study by the command: (recipe path, runs folder, stdout). Read-only."""
    folder = tmp_path_factory.mktemp("study")
    checkpoint = tiny_run[2].stages["finetune"].folder / CHECKPOINT_NAME
    path = write_study_recipe(folder, checkpoint)
    arguments = ("transfer", path, "--shares", SHARES, "--seeds", "2", "--runs", folder / "runs", "-q")
    done = launcher.start(*arguments, folder=folder)
    assert done.wait(300) == 0, done.log.read_text()
    return path, folder / "runs", done.out.read_text()


def study_of(runs):
    return json.loads((runs / "tiny/transfer/transfer.json").read_text("utf-8"))


def checkpoints(runs):
    """Of finished stages: what a stage is called until it is moved to its place begins with a dot."""
    found = runs.glob(f"tiny/stages/finetune/[!.]*/out/{CHECKPOINT_NAME}")
    return {p: p.stat().st_mtime_ns for p in found}


# -- what a study finds


def test_every_cell_is_trained_once_and_judged_on_the_same_images(finished):
    path, runs, _ = finished
    plan, _ = make_plan(load_recipe(path), shares=[0.5, 1], seeds=2)
    found = find_cells(plan, runs)
    assert len(found) == 4 * 2 * 2 == len(checkpoints(runs))
    assert len({result.test.digest for result in found.values()}) == 1
    # The data of one size and seed serve all four methods.
    assert len(list(runs.glob("tiny/stages/data/*"))) == 4
    assert len(list(runs.glob("tiny/stages/data.source/*"))) == 2


def test_seeds_take_other_images_of_the_same_training_set(finished):
    path, _, _ = finished
    images = read_source(load_recipe(path).data)
    common = {"validation": 0.2, "test": 0.25, "share": 0.5, "test_seed": 3}
    first, other = (split_samples(images, seed=seed, **common) for seed in (3, 4))
    assert first["test"] == other["test"]
    assert set(first["train"]) != set(other["train"])
    moved = split_samples(images, seed=4, validation=0.2, test=0.25, share=0.5)
    assert moved["test"] != first["test"]  # without test_seed the seed moves test as well


def test_a_cells_figures_are_those_of_its_own_logits(finished):
    _, runs, _ = finished
    study = study_of(runs)
    for cell in study["cells"]:
        folders = {
            name: next(
                p.parent / "out"
                for p in runs.glob(f"tiny/stages/{name}/*/stage.json")
                if json.loads(p.read_text())["digest"] == digest
            )
            for name, digest in cell["digests"].items()
        }
        test = load_split(folders["data"], "test")
        accuracy = measure_accuracy(read_logits(folders["evaluate.baseline"]), test.labels)
        assert (cell["top1"], cell["balanced"]) == (accuracy.top1, accuracy.balanced)
        assert cell["train_images"] == len(load_split(folders["data"], "train"))
        assert ("data.source" in cell["digests"]) == (cell["method"] == "combined")


def test_the_same_budget_is_told_in_steps_and_images(finished):
    _, runs, _ = finished
    study = study_of(runs)
    cells = {(c["method"], c["share"], c["seed"]): c for c in study["cells"]}
    for share in (0.5, 1):
        scratch, probe, full, combined = (
            cells[name, share, 3] for name in ("scratch", "probe", "full", "combined")
        )
        assert scratch["steps"] == full["steps"] == combined["steps"] > probe["steps"] == 0
        assert scratch["images_seen"] == full["images_seen"] == 2 * full["train_images"]  # 2 epochs
        assert combined["images_seen"] > full["images_seen"]
        assert probe["images_seen"] == 0
    # 120 pictures: 30 test, of the other 90 half or all, of which a fifth is val; a class at a time.
    assert [cells["full", share, 3]["train_images"] for share in (0.5, 1)] == [36, 72]


def test_means_and_differences_are_made_of_the_cells(finished):
    _, runs, _ = finished
    study = study_of(runs)
    assert (study["metric"], study["margin"], study["seeds"], study["shares"]) == (
        "top1",
        0.2,
        [3, 4],
        [0.5, 1],
    )
    of = {}
    for cell in study["cells"]:
        of.setdefault((cell["method"], cell["share"]), []).append(cell["top1"])
    for entry in study["means"]:
        values = of[entry["method"], entry["share"]]
        assert entry["values"] == values
        assert entry["mean"] == pytest.approx(np.mean(values))
        assert entry["median"] == pytest.approx(np.median(values))
    pairs = [(entry["share"], entry["first"], entry["second"]) for entry in study["differences"]]
    assert pairs == [
        (share, *pair)
        for share in (0.5, 1)
        for pair in (("full", "scratch"), ("full", "probe"), ("combined", "full"))
    ]
    for entry in study["differences"]:
        ours, theirs = (np.mean(of[entry[side], entry["share"]]) for side in ("first", "second"))
        assert entry["mean"] == pytest.approx(ours - theirs)
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert study["choice"] == study["choices"][-1]
    assert study["choice"]["method"] == "probe"  # weights of the same task: nothing is left to learn


# -- how it is told


def test_the_table_has_a_row_for_each_method_and_size(finished):
    _, runs, out = finished
    for share in ("36 (50 %)", "72 (100 %)"):
        for method in ("scratch", "probe", "full", "combined"):
            assert re.search(rf"^{re.escape(share)} +{method} +\d+\.\d\d ", out, re.M), (share, method)
    assert "At 100 % of the images take probe." in out
    for name in FILES:
        assert f"{runs / 'tiny/transfer' / name}" in out


def test_the_page_stands_alone_and_names_no_folder(finished):
    path, runs, _ = finished
    texts = {name: (runs / "tiny/transfer" / name).read_text("utf-8") for name in FILES}
    for name, text in texts.items():
        assert str(path.parent) not in text, name
        assert "/tmp/" not in text, name
    page = texts["transfer.html"]
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert page.count('class="chart"') == 1
    for title in ("from scratch", "linear probe", "full fine-tuning", "combined loss"):
        assert f">{title}<" in page
    assert "Owen 2007" in page


def test_the_drawing_is_a_file_of_its_own_for_light_and_dark(finished):
    _, runs, _ = finished
    text = (runs / "tiny/transfer/transfer.svg").read_text("utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert "fill: var(--ink)" in text
    assert "<script" not in text


# -- again, interrupted, killed


def test_the_same_study_again_trains_nothing_and_says_the_same(finished, tmp_path, edgekiln):
    path, runs, _ = finished
    shutil.copytree(runs, tmp_path / "runs")
    before, study = checkpoints(tmp_path / "runs"), study_of(runs)
    code, out, _ = edgekiln(
        "transfer", path, "--shares", SHARES, "--seeds", 2, "--runs", tmp_path / "runs", "-q", "--json"
    )
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    assert checkpoints(tmp_path / "runs") == before
    for key in ("cells", "means", "differences", "choices", "test", "recipe"):
        assert document["study"][key] == study[key]
    assert sorted(document["files"]) == list(FILES)


def test_a_plain_run_and_a_study_share_what_is_equal(tiny_run, tmp_path, edgekiln):
    checkpoint = tiny_run[2].stages["finetune"].folder / CHECKPOINT_NAME
    path = write_study_recipe(tmp_path, checkpoint, source_task=False)
    assert edgekiln("train", path, "--runs", tmp_path / "runs", "-q")[0] == 0
    before = checkpoints(tmp_path / "runs")
    arguments = ("--methods", "full", "--shares", "1", "--seeds", "1", "--runs", tmp_path / "runs", "-q")
    assert edgekiln("transfer", path, *arguments)[0] == 0
    assert checkpoints(tmp_path / "runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_stopped_goes_on_where_it_was(finished, launcher, tmp_path, kind):
    path, _, _ = finished
    arguments = ["transfer", str(path), "--methods", "scratch,full", "--shares", "1", "--seeds", "2"]
    arguments += ["--runs", str(tmp_path / "runs"), "--set", "finetune.epochs=6"]
    running = launcher.start(*arguments, folder=tmp_path, name="stopped")
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "runs") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running.pid, kind)
    running.wait(60)
    kept = checkpoints(tmp_path / "runs")
    assert 1 <= len(kept) < 4
    if kind is signal.SIGINT:
        assert running.code == 130
        assert "Interrupted. Run the same command again to go on." in running.log.read_text()
    done = launcher.run(*arguments, "-q", folder=tmp_path)
    assert done.code == 0, done.log.read_text()
    after = checkpoints(tmp_path / "runs")
    assert len(after) == 4
    assert {place: after[place] for place in kept} == kept


# -- what goes wrong


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(finished, tmp_path, edgekiln):
    """At 3 % a class has one picture and none for val: those cells fail, the whole ones are there."""
    path, runs, _ = finished
    shutil.copytree(runs, tmp_path / "runs")
    arguments = ("transfer", path, "--methods", "probe,full", "--shares", "0.03,1", "--seeds", 2)
    code, out, err = edgekiln(*arguments, "--runs", tmp_path / "runs", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["error"]["code"]) == (3, False, "gate")
    assert "4 of 8 trainings failed" in document["error"]["message"]
    study = document["study"]
    states = {(c["method"], c["share"], c["seed"]): c["state"] for c in study["cells"]}
    assert {key for key, state in states.items() if state == "failed"} == {
        (method, 0.03, seed) for method in ("probe", "full") for seed in (3, 4)
    }
    assert all("split is empty" in c["error"] for c in study["cells"] if c["state"] == "failed")
    assert str(path.parent) not in json.dumps(study)
    assert [choice["method"] for choice in study["choices"]] == [None, "probe"]
    assert study["choices"][0]["not_compared"] == ["full", "probe"]
    assert "probe 3 % seed 3 failed: " in err
    assert json.loads((tmp_path / "runs/tiny/transfer/transfer.json").read_text())["cells"] == study["cells"]


def test_a_loss_that_becomes_nan_is_a_cell_that_fails(finished, tmp_path, edgekiln):
    path, _, _ = finished
    arguments = ("transfer", path, "--methods", "probe,full", "--shares", "1", "--seeds", 1)
    code, out, _ = edgekiln(*arguments, "--runs", tmp_path, "-q", "--set", "finetune.learning_rate=1e30")
    assert code == 3
    assert re.search(r"^full 100 % seed 3 failed: The loss became (nan|inf) at step \d+", out, re.M)
    assert re.search(r"^72 \(100 %\) +full +failed", out, re.M)
    assert re.search(r"^72 \(100 %\) +probe +\d", out, re.M)


def test_one_seed_gives_figures_and_no_intervals(finished, tmp_path, edgekiln):
    path, runs, _ = finished
    shutil.copytree(runs, tmp_path / "runs")
    arguments = ("transfer", path, "--shares", "1", "--seeds", 1, "--runs", tmp_path / "runs", "-q")
    code, out, _ = edgekiln(*arguments)
    assert code == 0
    assert "One seed gives no interval: nothing here tells methods apart. Take --seeds 3 or more." in out
    assert "At 100 % of the images no method to recommend." in out
    assert re.search(r"full less scratch +[+-]\d+\.\d\d +none +no interval", out)


def test_other_test_images_are_no_pair(finished, monkeypatch):
    path, runs, _ = finished
    import edgekiln.pipeline.study.cells as module

    count = iter(range(100))
    real = module.JudgedImages
    monkeypatch.setattr(module, "JudgedImages", lambda labels, digest: real(labels, f"{digest}{next(count)}"))
    plan, _ = make_plan(load_recipe(path), shares=[0.5, 1], seeds=2)
    with pytest.raises(DataError, match="probe 50 % seed 3 and scratch 50 % seed 3 were judged on different"):
        run_study(plan, runs, SilentProgress())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "0,1"], "A share of 0 cannot be trained on"),
        (["--shares", "half"], "--shares half: wanted numbers with commas between"),
        (["--shares", ","], "There is no share to train on"),
        (["--methods", "probe,fool"], "There is no method 'fool'; there are: scratch, probe, full, combined"),
        (["--methods", ","], "--methods names no method"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
        (["--margin", "1"], "Invalid value for '--margin'"),
        (["--set", "backbone.weights=none", "--set", "backbone.head=keep"], "transfers nothing"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_made(finished, tmp_path, edgekiln, arguments, message):
    path, _, _ = finished
    code, out, err = edgekiln("transfer", path, "--runs", tmp_path / "runs", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "runs").exists()


# -- the dry run


def test_the_dry_run_says_what_is_done_and_how_long_the_rest_takes(finished, edgekiln):
    path, runs, _ = finished
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
    arguments = ("transfer", path, "--seeds", 2, "--runs", runs, "--dry-run")
    code, out, _ = edgekiln(*arguments, "--shares", "0.25,0.5,1")
    assert code == 0
    assert len(re.findall(r"^\w+ 25 % seed [34] +to run +about \d+ s$", out, re.M)) == 8
    assert len(re.findall(r"^\w+ (?:50|100) % seed [34] +done$", out, re.M)) == 16
    assert "8 of 24 cells to run: about " in out
    code, out, _ = edgekiln(*arguments, "--shares", SHARES, "--json")
    document = json.loads(out)
    assert (code, document["dry_run"], document["to_run"], document["estimated_seconds"]) == (
        0,
        True,
        0,
        None,
    )
    assert len(document["cells"]) == 16
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == before


def test_estimates_have_a_fixed_part_and_one_that_grows():
    def done(share, seconds):
        return CellResult(Cell("full", share, 0), about={"seconds": seconds}, test=None)

    waiting = Cell("full", 1.0, 1)
    two = {done(0.1, 7.0).cell: done(0.1, 7.0), done(0.5, 15.0).cell: done(0.5, 15.0), waiting: None}
    assert estimate_seconds(two) == {waiting: pytest.approx(25.0)}  # 5 s and 20 s at all images
    one = {done(0.5, 15.0).cell: done(0.5, 15.0), waiting: None}
    assert estimate_seconds(one) == {waiting: pytest.approx(30.0)}
    falling = {done(0.1, 20.0).cell: done(0.1, 20.0), done(0.5, 10.0).cell: done(0.5, 10.0), waiting: None}
    assert estimate_seconds(falling) == {waiting: pytest.approx(15.0)}  # a busy machine: no growth is seen
    other = {done(0.5, 15.0).cell: done(0.5, 15.0), Cell("probe", 1.0, 0): None}
    assert estimate_seconds(other) == {Cell("probe", 1.0, 0): None}
