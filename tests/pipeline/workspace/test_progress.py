"""How far a stage is: lines in a log come at their own pace, a bar lives and goes on a terminal."""

import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from finetune_support import job

from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.workspace import progress
from edgekiln.pipeline.workspace.progress import LineProgress, SilentProgress, make_progress


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.05)


def lines_after(capsys, count, seconds=10.0):
    """Lines on stderr, once there are that many."""
    text, end = "", time.monotonic() + seconds
    while text.count("\n") < count:
        assert time.monotonic() < end, text
        time.sleep(0.01)
        text += capsys.readouterr().err
    return text.splitlines()


def test_a_step_that_says_nothing_is_told_all_the_same(fast, capsys):
    teller = LineProgress()
    with teller.stage("[3/9] export"):
        teller.advance(0, 2, "torch.onnx")
        first, second = lines_after(capsys, 2)[:2]
    assert first == second == "[3/9] export: 0 of 2, 0 s so far (torch.onnx)"
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == "", "it goes on after the stage"


def paced(monkeypatch, *reports):
    """What is told at the end of (second, done, total, note), the last of which is only a time."""
    teller, clock = LineProgress(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    teller._name = "finetune"
    for clock[0], *report in reports[:-1]:
        teller.advance(*report)
    return teller._line(reports[-1])


def test_time_left_counts_what_this_attempt_did(monkeypatch):
    line = paced(monkeypatch, (0, 60, 100), (5, 70, 100, "round 4 of 5"), 5)  # 60 are of an earlier attempt
    assert line == "finetune: 70 of 100, about 15 s left (round 4 of 5)"


def test_time_left_knows_nothing_of_what_came_before_the_steps(monkeypatch):
    probe = [(0, 0, 1000, "linear probe"), (90, 0, 1000, "linear probe"), (100, 0, 1000, "linear probe")]
    assert paced(monkeypatch, *probe, 100) == "finetune: 0 of 1000, 100 s so far (linear probe)"
    steps = [(100 + second, 10 * second, 1000, "") for second in range(1, 11)]
    assert paced(monkeypatch, *probe, *steps, 110) == "finetune: 100 of 1000, about 90 s left"


def test_time_left_follows_the_last_minute(monkeypatch):
    fast = [(second, 10 * second, 2000) for second in range(101)]
    slow = [(100 + second, 1000 + second, 2000) for second in range(1, 71)]
    assert paced(monkeypatch, *fast, *slow, 170) == "finetune: 1070 of 2000, about 16 min left"  # 930 s


def test_units_that_take_longer_than_a_minute_are_told_by_the_last(monkeypatch):
    reports = [(0, 0, 9), (300, 1, 9), (900, 2, 9)]
    assert paced(monkeypatch, *reports, 900) == "finetune: 2 of 9, about 70 min left"  # 7 of 600 s
    assert (
        paced(monkeypatch, *reports, 1500) == "finetune: 2 of 9, about 2 h 20 min left"
    )  # the third takes long


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (5400, "90 min"),
        (7200, "2 h 00 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_durations_are_told_no_finer_than_they_are_known(seconds, told):
    assert progress.format_seconds(seconds) == told


def test_fine_tuning_tells_count_time_left_speed_and_accuracy(monkeypatch, tmp_path):
    """As it stands in a plain log."""
    teller, lines = LineProgress(), []
    teller._name, teller._started = "[2/9] finetune", time.monotonic()

    def advance(done, total, note):
        teller.advance(done, total, note)
        lines.append(teller._line(time.monotonic()))

    finetune(replace(job(epochs=2), advance=advance), tmp_path)
    assert re.fullmatch(r"\[2/9\] finetune: 0 of 10, \d+ s so far \(linear probe\)", lines[0])
    assert re.fullmatch(
        r"\[2/9\] finetune: 10 of 10, about 0 s left \(\d+ img/s, best val top-1 [01]\.\d{4}\)", lines[-1]
    )


def test_before_anything_is_counted_it_says_for_how_long(fast, capsys):
    with LineProgress().stage("data"):
        assert lines_after(capsys, 1)[0] == "data: working, 0 s so far"


def test_a_stage_that_fails_ends_its_lines(fast, capsys):
    teller = LineProgress()
    with pytest.raises(ValueError, match="x"), teller.stage("data"):
        raise ValueError("x")
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing():
    assert isinstance(make_progress(True), SilentProgress)


BAR = """
import time
from edgekiln.pipeline.workspace.progress import make_progress
bar = make_progress(False)
with bar.stage("[2/9] finetune"):
    for done in range(5):
        bar.advance(done, 10, "12 img/s")
        time.sleep(0.15)
bar.message("done")
"""


def test_on_a_terminal_there_is_a_bar_with_count_time_left_and_note():
    primary, secondary = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", BAR], stderr=secondary, env=environment)
    os.close(secondary)
    seen = b""
    while True:
        try:
            part = os.read(primary, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(primary)
    assert process.wait() == 0
    text = seen.decode()
    assert "[2/9] finetune" in text
    assert "4/10" in text
    assert "12 img/s" in text
    assert "0:00:" in text  # time left
    assert text.rstrip().endswith("done")
