"""Event files repeat the log: read by TensorBoard's own reader, value by value, after a kill too."""

import json
import shutil
import sys

import pytest
from finetune_support import events, job
from tensorboard_support import read, single
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.training import tensorboard as module
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.tensorboard import FILE_NAME, EventFiles, complete_events, event_folder
from edgekiln.pipeline.workspace.progress import SilentProgress

pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")

LINES = [
    {"event": "start", "step": 0, "device": "cpu", "threads": 2, "torch": "2.9"},
    {"event": "probe", "step": 0, "l2": 0.001},
    {"event": "source", "step": 0, "when": "before", "val_top1": 0.9},
    {"event": "epoch", "step": 0, "epoch": 0, "val_top1": 0.5, "val_loss": 1.25},
    {"event": "step", "step": 1, "loss": 2.5, "teacher_loss": 0.125},
    {"event": "step", "step": 2, "loss": 1.5, "teacher_loss": 0.25},
    {"event": "epoch", "step": 2, "epoch": 1, "val_top1": 0.75, "val_loss": 1.0},
    {"event": "stopped", "step": 2, "reason": "no better epoch in 1"},
    {"event": "source", "step": 2, "when": "after", "val_top1": 0.7},
    {"event": "done", "step": 2, "best_step": 2, "best_val_top1": 0.75},
]
CURVES = {
    "probe/l2": [(0, 0.001)],
    "source/before/val_top1": [(0, 0.9)],
    "source/after/val_top1": [(2, 0.7)],
    "epoch/val_top1": [(0, 0.5), (2, 0.75)],
    "epoch/val_loss": [(0, 1.25), (2, 1.0)],
    "step/loss": [(1, 2.5), (2, 1.5)],
    "step/teacher_loss": [(1, 0.125), (2, 0.25)],
}


def rounded(curves):
    return {tag: [(step, single(value)) for step, value in points] for tag, points in curves.items()}


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_number_of_the_log_is_a_curve(tmp_path):
    with EventFiles(tmp_path / "absent.jsonl", tmp_path / "events") as files:
        for line in LINES:
            files.event(line)
    assert read(tmp_path / "events") == rounded(CURVES)


def test_a_run_that_goes_on_has_no_step_twice_and_none_that_was_undone(tmp_path):
    """Killed after step 2; the log was cut back to step 1, from which training goes on otherwise."""
    killed = EventFiles(tmp_path / "absent.jsonl", tmp_path / "events")
    for line in LINES[:6]:
        killed.event(line)
    killed._writer.flush()
    left = (tmp_path / "events" / FILE_NAME).read_bytes()
    killed.close()
    (tmp_path / "events" / FILE_NAME).write_bytes(left[:-7])  # a kill may tear the last record
    kept = LINES[:5]
    log = write_log(tmp_path / LOG_NAME, kept)
    with log.open("a") as file:
        file.write('{"event": "step", "st')  # cut off by the kill
    with EventFiles(log, tmp_path / "events") as files:
        for line in LINES[5:]:
            files.event(line | {"loss": 1.75} if line["event"] == "step" else line)
    assert len(list((tmp_path / "events").iterdir())) == 1
    assert read(tmp_path / "events") == rounded({**CURVES, "step/loss": [(1, 2.5), (2, 1.75)]})


def test_what_is_written_can_be_read_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.0)
    files = EventFiles(tmp_path / "absent.jsonl", tmp_path / "events")
    files.event(LINES[4])
    assert read(tmp_path / "events") == rounded({"step/loss": [(1, 2.5)], "step/teacher_loss": [(1, 0.125)]})
    files.close()


def test_losses_that_are_no_numbers_are_told_as_such(tmp_path):
    with EventFiles(tmp_path / "absent.jsonl", tmp_path / "events") as files:
        files.event({"event": "step", "step": 1, "loss": float("inf")})
    assert read(tmp_path / "events") == {"step/loss": [(1, float("inf"))]}


def test_a_real_log_comes_back_value_by_value(tmp_path):
    finetune(job(epochs=2), tmp_path)
    assert complete_events(tmp_path / LOG_NAME, tmp_path / "events")
    assert not complete_events(tmp_path / LOG_NAME, tmp_path / "events")
    found = read(tmp_path / "events")
    assert found["step/loss"] == [(e["step"], single(e["loss"])) for e in events(tmp_path, "step")]
    for key in ("val_top1", "val_loss"):
        assert found[f"epoch/{key}"] == [(e["step"], single(e[key])) for e in events(tmp_path, "epoch")]


def test_events_lie_beside_the_stages_under_the_stages_key(tmp_path):
    stages = tmp_path / "tiny" / "stages" / "finetune"
    wanted = tmp_path / "tiny" / "tensorboard" / "0123456789abcdef"
    assert event_folder(stages / ".partial-0123456789abcdef") == wanted
    assert event_folder(stages / "0123456789abcdef" / "out") == wanted


def test_events_that_are_asked_for_later_are_made_of_the_log_and_nothing_is_trained_again(tiny_run, tmp_path):
    runs = shutil.copytree(tiny_run[1], tmp_path / "runs", symlinks=True)
    recipe = load_recipe(tiny_run[0], ["finetune.tensorboard=true"])
    result = run_recipe(recipe, runs, SilentProgress(), until="finetune")
    assert result.stages["finetune"].cached
    [file] = (runs / "tiny" / "tensorboard").rglob("*tfevents*")
    log = [
        json.loads(line) for line in (result.stages["finetune"].folder / LOG_NAME).read_text().splitlines()
    ]
    assert read(file.parent)["step/loss"] == [
        (line["step"], single(line["loss"])) for line in log if line["event"] == "step"
    ]
    assert file.name == FILE_NAME  # TensorBoard's own writers put the name of the host there


def test_a_missing_extra_is_told_before_anything_is_done(edgekiln, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    write_pictures(tmp_path / "pictures", per_class=6)
    (tmp_path / "r.toml").write_text(TINY_RECIPE.replace("epochs = 2", "epochs = 2\ntensorboard = true"))
    exit, out, err = edgekiln("run", tmp_path / "r.toml", "--runs", tmp_path / "runs")
    assert (exit, out) == (5, "")
    assert err == (
        "edgekiln: The package 'tensorboardX' is needed here and is not installed. "
        "Run: pip install 'edgekiln[tensorboard]'\n"
    )
    assert not (tmp_path / "runs").exists()
