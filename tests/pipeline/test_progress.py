"""How far a stage is: lines in a log come at their own pace, a bar lives and goes on a terminal."""

import os
import pty
import subprocess
import sys
import time

import pytest

from edgekiln.pipeline import progress
from edgekiln.pipeline.progress import LineProgress, SilentProgress, make_progress


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


def test_time_left_counts_what_this_attempt_did(monkeypatch):
    teller = LineProgress()
    teller._name = "benchmark"
    teller.advance(60, 100)  # an earlier attempt
    teller.advance(70, 100, "round 4 of 5")
    assert teller._line(5.0) == "benchmark: 70 of 100, about 15 s left (round 4 of 5)"


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
from edgekiln.pipeline.progress import make_progress
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
