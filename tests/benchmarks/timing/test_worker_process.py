"""Processes of contenders: what they are asked, and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_support import HEED_INTERRUPTS, ROOT

from edgekiln.benchmarks.timing.contender import engine_contender, thread_choices
from edgekiln.benchmarks.timing.worker_process import open_worker


def test_all_images_rotate_however_few_calls_a_block_has(engine):
    path, inputs, logits = engine
    with open_worker(inputs, engine_contender("a", [path], "onnxruntime-cpu", logits)) as worker:
        worker.open({"threads": 1})
        seen = [
            worker.ask("time", seconds=0.0) for _ in range(6)
        ]  # one call each: the clock is read after it
        assert [len(answer["times_ns"]) for answer in seen] == [1] * 6
        assert [answer["sample"]["index"] for answer in seen] == [0, 1, 2, 3, 0, 1]
        repeated = [worker.ask("time", seconds=0.0, repeat=True)["sample"]["index"] for _ in range(3)]
        assert repeated == [0, 0, 0]
        assert worker.ask("time", seconds=0.0)["sample"]["index"] == 2, "a repeated image takes no turn"
        worker.check_all()
        worker.time_ns(0.01)  # what is sampled is compared with the answer of its own image


BENCH_A_SLEEPER = """
import sys
from pathlib import Path
import numpy as np
from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.worker_process import open_worker
sleeper = Contender("sleeper", "tests_support:open_sleeper", {"seconds": 60}, [{}], np.zeros((1, 3), np.float32))
with open_worker(Path(sys.argv[1]), sleeper) as worker:
    print("open", flush=True)
    worker.open({})
"""


def workers_of(inputs: Path) -> list[str]:
    """Processes that have the inputs file among their arguments, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:  # it has ended
            continue
        if b"edgekiln.benchmarks.timing.worker" in words and str(inputs).encode() in words:
            found.append(entry.name)
    return found


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_benchmark_that_is_stopped(engine, monkeypatch, number):
    """A real process group, as a terminal signals it; the worker is busy loading and reads no pipe."""
    inputs = engine[1]
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    process = subprocess.Popen(
        [sys.executable, "-c", HEED_INTERRUPTS + BENCH_A_SLEEPER, str(inputs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"open\n"
        wait_until(lambda: workers_of(inputs))
        time.sleep(0.5)  # into the load
        started = time.monotonic()
        os.killpg(process.pid, number)
        assert process.wait(timeout=5) != 0
        wait_until(lambda: not workers_of(inputs), 5 - (time.monotonic() - started))


def test_idle_worker_uses_no_cpu(engine):
    path, inputs, logits = engine
    with open_worker(inputs, engine_contender("a", [path], "onnxruntime-cpu", logits)) as worker:
        worker.open({"threads": max(thread_choices())})
        worker.time_ns(0.1)
        [pid] = workers_of(inputs)

        def ticks() -> int:
            fields = (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        time.sleep(0.2)  # onnxruntime's threads may look for work a little longer
        before = ticks()
        time.sleep(0.5)
        assert ticks() - before <= 0.1 * 0.5 * os.sysconf("SC_CLK_TCK")
