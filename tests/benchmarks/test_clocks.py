import os

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.benchmarks.clocks import ThrottleWatch, read_conditions
from edgekiln.benchmarks.timing import latency
from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.benchmarks.timing.latency import run_benchmark
from edgekiln.benchmarks.timing.plan import BenchmarkPlan


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def board(tmp_path):
    """A board of two cores, as Linux shows it, with a fan that runs and nothing that throttles."""
    cores = sorted(os.sched_getaffinity(0))
    for core, mhz in zip((cores[0], cores[-1]), (1190, 1510), strict=True):
        cpufreq = f"sys__devices__system__cpu__cpu{core}__cpufreq__"
        write(tmp_path, **{f"{cpufreq}scaling_cur_freq": mhz * 1000, f"{cpufreq}scaling_max_freq": 1510400,
                           f"{cpufreq}scaling_governor": "schedutil"})  # fmt: skip
    thermal = "sys__class__thermal__"
    write(tmp_path, **{
        f"{thermal}thermal_zone0__type": "cpu-thermal", f"{thermal}thermal_zone0__temp": 61500,
        f"{thermal}thermal_zone1__type": "gpu-thermal", f"{thermal}thermal_zone1__temp": -256000,
        f"{thermal}thermal_zone2__type": "cv0-thermal",
        f"{thermal}cooling_device0__type": "pwm-fan", f"{thermal}cooling_device0__cur_state": 3,
        f"{thermal}cooling_device1__type": "cpufreq-cpu0", f"{thermal}cooling_device1__cur_state": 0,
        "sys__class__hwmon__hwmon3__oc1_event_cnt": 4,
    })  # fmt: skip
    return tmp_path


def test_what_a_board_tells(board):
    found = read_conditions(board)
    assert found["cpu_mhz"][-1] == 1510
    assert (found["cpu_max_mhz"], found["governors"]) == (1510.4, ["schedutil"])
    assert found["temperatures_c"] == {"cpu-thermal": 61.5, "gpu-thermal": -256.0}
    assert (found["throttled_by"], found["power_mode"], found["gpus"]) == ([], None, [])


def test_a_machine_that_tells_nothing(tmp_path):
    found = read_conditions(tmp_path)
    assert [found[key] for key in ("cpu_mhz", "cpu_max_mhz", "power_mode")] == [None] * 3
    assert (found["governors"], found["temperatures_c"], found["throttled_by"]) == ([], {}, [])
    assert ThrottleWatch(tmp_path).look() == []


@pytest.mark.parametrize(
    ("file", "text", "cause"),
    [
        ("sys__class__thermal__cooling_device1__cur_state", 2, "cpufreq-cpu0"),
        ("sys__class__hwmon__hwmon3__oc1_event_cnt", 5, "oc1_event_cnt"),
        ("sys__devices__platform__soc__soc:firmware__get_throttled", "50004", "the firmware's throttling"),
    ],
)
def test_what_throttles_is_named_once_for_an_event_and_as_long_as_it_lasts_for_a_state(
    board, file, text, cause
):
    watch = ThrottleWatch(board)
    assert watch.look() == []
    write(board, **{file: text})
    assert watch.look() == [cause]
    assert watch.look() == ([] if "event" in cause else [cause])


def test_an_intel_counter_that_grows(board):
    path = "sys__devices__system__cpu__cpu1__thermal_throttle__package_throttle_count"
    write(board, **{path: 9})
    watch = ThrottleWatch(board)
    write(board, **{path: 10})
    assert watch.look() == ["package_throttle_count"]


PLAN = BenchmarkPlan(processes=2, blocks=4, block_seconds=0.01, side_blocks=1, min_blocks=4, target_width=0)


@pytest.mark.parametrize(("throttled", "left"), [(range(1), 3), (range(4), 4)])
def test_blocks_that_were_timed_while_it_throttled_do_not_count(
    board, tmp_path, monkeypatch, throttled, left
):
    """One turn of four is left out, and the run is noisy at best; where all are, it is invalid and shows all."""

    class Watch(ThrottleWatch):
        def __init__(self):
            super().__init__(board)
            self.turn = -1

        def look(self):
            self.turn += 1
            write(board, sys__class__thermal__cooling_device1__cur_state=int(self.turn in throttled))
            return super().look()

    monkeypatch.setattr(latency, "ThrottleWatch", Watch)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    save_inputs(tmp_path / "inputs.npz", np.zeros((2, 4, 4, 3), np.uint8))
    answers = np.zeros((2, 3), np.float32)
    constant = Contender("a", "tests_support:open_constant", {"classes": 3}, [{}], answers)
    result = run_benchmark([constant], tmp_path / "inputs.npz", plan=PLAN)
    assert [len(medians) for medians in result.measurements[0].block_medians()] == [left, left]
    reasons = " ".join(result.validity.reasons)
    if left == 4:
        assert result.validity.state == "invalid"
        assert "the machine throttled in half of a round or more (cpufreq-cpu0)" in reasons
    elif result.validity.state == "noisy":
        assert "2 turns were timed while the machine throttled (cpufreq-cpu0) and left out" in reasons
