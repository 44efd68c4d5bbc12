"""The training log: what a resumed training keeps of it, and who writes none."""

import json
from types import SimpleNamespace

from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.log_writer import LogWriter


def lines(folder):
    return [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]


def test_a_line_has_the_steps_done_or_the_step_that_is_given(tmp_path):
    log = LogWriter(tmp_path, SimpleNamespace(step=3))
    log.begin()
    log.write("epoch", val_top1=0.5)
    log.write("step", 2, loss=0.25)
    assert lines(tmp_path) == [
        {"event": "epoch", "step": 3, "val_top1": 0.5},
        {"event": "step", "step": 2, "loss": 0.25},
    ]


def test_a_resumed_training_forgets_what_came_after_its_save_and_what_told_of_the_end(tmp_path):
    state = SimpleNamespace(step=0)
    log = LogWriter(tmp_path, state)
    log.begin()
    for step in (1, 2, 3):
        log.write("step", step)
    log.write("source", 2, when="after")
    log.write("done", 2)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"event": "st')  # a kill in the middle of a line
    state.step = 2
    log.go_on()
    assert [(line["event"], line["step"]) for line in lines(tmp_path)] == [("step", 1), ("step", 2)]


def test_only_the_process_with_a_folder_writes(tmp_path):
    log = LogWriter(None, SimpleNamespace(step=0))
    log.begin()
    log.write("start")
    log.go_on()
    log.close()
    assert list(tmp_path.iterdir()) == []
