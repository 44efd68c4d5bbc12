"""The log in short: losses are means over an epoch's own steps, and the kept epoch is the log's own."""

import json
from dataclasses import replace

import pytest
import torch
from finetune_support import TINY, events, job
from report_support import make_report

from edgekiln.benchmarks.report import render_page
from edgekiln.benchmarks.report.charts.training import draw_training
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.log import LOG_NAME, summarize_training


def test_a_real_run_in_short(tmp_path):
    finetune(job(epochs=2, learning_rate=1e-3, probe=False), tmp_path)
    found = summarize_training(tmp_path / LOG_NAME)
    assert [epoch["epoch"] for epoch in found["epochs"]] == [0, 1, 2]
    assert "loss" not in found["epochs"][0]
    steps = [step["loss"] for step in events(tmp_path, "step")]
    assert [e["loss"] for e in found["epochs"][1:]] == [
        pytest.approx(sum(part) / 5, abs=1e-6) for part in (steps[:5], steps[5:])
    ]
    assert found["best_epoch"] * 5 == events(tmp_path, "done")[0]["best_step"]
    assert (found["stopped"], found["source"]) == (None, None)


def test_how_a_files_names_were_changed_is_told_and_logged(tmp_path):
    network = build_backbone(TINY, 2, 16).network
    torch.save({"model": torch.nn.DataParallel(network).state_dict()}, tmp_path / "w.pth")
    settings = TINY.model_copy(update={"weights": str(tmp_path / "w.pth")})
    told = []
    finetune(replace(job(backbone=settings, epochs=0, tensorboard=True), tell=told.append), tmp_path)
    assert told == [
        "w.pth: the weights are those under 'model'.", "w.pth: 'module.' was removed from the names of 8 tensors.",
    ]  # fmt: skip
    assert summarize_training(tmp_path / LOG_NAME)["weights"] == told
    (tmp_path / "plain").mkdir()
    finetune(job(epochs=0), tmp_path / "plain")
    assert "weights" not in summarize_training(tmp_path / "plain" / LOG_NAME)


def test_the_probe_alone_has_one_epoch_and_no_drawing(tmp_path):
    finetune(job(epochs=0), tmp_path)
    found = summarize_training(tmp_path / LOG_NAME)
    assert (len(found["epochs"]), found["best_epoch"]) == (1, 0)
    assert draw_training({"training": found}) == ""


def test_stop_and_source_are_told(tmp_path):
    lines = [
        {"event": "source", "step": 0, "when": "before", "val_top1": 0.9},
        {"event": "epoch", "step": 0, "epoch": 0, "val_top1": 0.5, "val_loss": 1.0},
        {"event": "step", "step": 1, "loss": 2.0, "target_loss": 1.0, "source_loss": 4.0},
        {"event": "epoch", "step": 1, "epoch": 1, "val_top1": 0.4, "val_loss": 1.1},
        {"event": "stopped", "step": 1, "reason": "no better epoch in 1"},
        {"event": "source", "step": 1, "when": "after", "val_top1": 0.8},
        {"event": "done", "step": 1, "best_step": 0, "best_val_top1": 0.5},
    ]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarize_training(tmp_path / "log")
    assert found["source"] == {"before": 0.9, "after": 0.8}
    assert found["stopped"] == "no better epoch in 1"
    assert found["best_epoch"] == 0
    assert found["epochs"][1] == {
        "epoch": 1, "loss": 2.0, "target_loss": 1.0, "source_loss": 4.0, "val_top1": 0.4, "val_loss": 1.1,
    }  # fmt: skip


def test_the_rate_of_an_epochs_last_step_is_told_and_drawn(tmp_path):
    lines = [{"event": "epoch", "step": 0, "epoch": 0, "val_top1": 0.5, "val_loss": 1.0}]
    for epoch in (1, 2):
        for step in (2 * epoch - 1, 2 * epoch):
            lines.append({"event": "step", "step": step, "loss": 1.0, "learning_rate": 0.1 / step})
        lines.append({"event": "epoch", "step": step, "epoch": epoch, "val_top1": 0.5, "val_loss": 1.0})
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarize_training(tmp_path / "log")
    assert [e.get("learning_rate") for e in found["epochs"]] == [None, 0.05, 0.025]
    plain = {
        **found,
        "epochs": [{k: v for k, v in e.items() if k != "learning_rate"} for e in found["epochs"]],
    }
    assert [">rate<" in draw_training({"training": values}) for values in (found, plain)] == [True, False]


def test_source_and_teacher_of_a_run_are_drawn_and_told():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    epochs = [
        {"epoch": 0, "val_top1": 0.5, "val_loss": 1.0},
        {"epoch": 1, "val_top1": 0.6, "val_loss": 0.9, "loss": 1.0, "target_loss": 1.1, "source_loss": 0.7,
         "teacher_loss": 0.3},
    ]  # fmt: skip
    report["training"] = {"epochs": epochs, "best_epoch": 1, "stopped": "no better epoch in 1",
                          "source": {"before": 0.91, "after": 0.875}}  # fmt: skip
    page = render_page(report)
    assert "91.00 % before\ntraining, 87.50 % after." in page
    assert "Stopped early: no better epoch in 1." in page
    drawing = draw_training(report)
    assert all(f">{name}<" in drawing for name in ("loss", "target", "source", "teacher", "val"))


def test_the_drawing_repeats_and_names_its_lines():
    report = make_report(60, ["a", "b", "c"], processes=2, blocks=4)
    drawing = draw_training(report)
    assert drawing == draw_training(report)
    assert "<svg" in drawing
