import contextlib
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from edgekiln.benchmarks.costs.energy import (
    CounterMeter,
    EnergyPerImage,
    PowerMeter,
    measure_contender,
    measure_energy,
    open_meter,
    parse_tegrastats,
    total_watts,
)
from edgekiln.benchmarks.timing.contender import save_inputs
from edgekiln.runtime.errors import EngineError, UsageError

LINES = dict(
    line.split("|")
    for line in (Path(__file__).parents[2] / "data" / "power" / "tegrastats.txt").read_text().splitlines()
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def open_here(tmp_path, device="cpu", **arguments):
    folders = {"hwmon": tmp_path / "hwmon", "powercap": tmp_path / "powercap"}
    return open_meter(device, **folders, **{"tegrastats": str(tmp_path / "absent"), **arguments})


def write_files(folder, **files):
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


# ---- protocol


def test_readings_become_energy_by_the_trapezoid_sum(clock):
    watts = iter([10.0, 20.0, 20.0, 0.0])
    meter = PowerMeter(lambda: next(watts), "made up", interval=None, clock=clock)
    for seconds, joules in ((2, 30.0), (1, 50.0), (0.5, 55.0)):
        clock.pass_by(seconds)
        assert meter.read_joules() == pytest.approx(joules)
    assert meter.samples == 4


def test_idle_power_is_taken_off(clock):
    """5 W idle and 9 W busy; an image takes 10 ms: 40 mJ of it are the engine's."""
    watts = {False: 5.0, True: 9.0}
    joules, busy = 0.0, False

    def pass_by(seconds):
        nonlocal joules
        joules += watts[busy] * seconds
        clock.pass_by(seconds)

    def run():
        nonlocal busy
        busy = True
        pass_by(0.01)
        busy = False

    meter = CounterMeter([(lambda: joules, None)], "made up")
    found = measure_energy(run, 2.0, meter, clock=clock, sleep=pass_by)
    assert found.joules_per_image == pytest.approx(0.04)
    assert found.idle_watts == pytest.approx(5)
    assert found.busy_watts == pytest.approx(9)
    assert found.images in {200, 201}  # the clock's sums of 0.01 are not exact
    assert found.samples == 1
    assert found.source == "made up"


def test_error_is_that_of_both_powers_in_opposite_ways():
    found = EnergyPerImage(0.04, 5.0, 9.0, images=200, seconds=2.0, samples=40, source="made up")
    assert found.error_joules == pytest.approx(0.05 * (9 + 5) * 2 / 200)
    values = found.to_dict()
    assert (values["mj_per_image"], values["error_mj"]) == (pytest.approx(40), pytest.approx(7))


def test_threads_may_settle_before_idle_power_is_read(clock):
    """8 W for a second after the last call, while threads still spin; 5 W from then on."""
    joules, busy_until = 0.0, 0.0

    def pass_by(seconds):
        nonlocal joules
        spun = max(0.0, min(seconds, busy_until - clock.now))
        joules += 8 * spun + 5 * (seconds - spun)
        clock.pass_by(seconds)

    def run():
        nonlocal busy_until
        busy_until = clock.now + 1.1
        pass_by(0.1)

    meter = CounterMeter([(lambda: joules, None)], "made up")
    assert measure_energy(run, 2.0, meter, clock=clock, sleep=pass_by).idle_watts == pytest.approx(6.5)
    settled = measure_energy(run, 2.0, meter, settle_seconds=1.0, clock=clock, sleep=pass_by)
    assert settled.idle_watts == pytest.approx(5)


# ---- one contender in a fresh process


@pytest.fixture
def frames_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p))
    path = tmp_path / "inputs.npz"
    save_inputs(path, np.zeros((4, 8, 8, 3), np.uint8))
    return path


def test_contender_is_measured_in_a_process_of_its_own(tmp_path, frames_file):
    """On a recorded counter that stands still: every figure but zero would come from elsewhere."""
    rapl = tmp_path / "powercap" / "intel-rapl:0"
    write_files(rapl, name="package-0", energy_uj=4_000_000, max_energy_range_uj=262_143_328_850)
    places = {
        "hwmon": str(tmp_path),
        "powercap": str(tmp_path / "powercap"),
        "tegrastats": "/nowhere/tegrastats",
    }
    arguments = {"classes": 3}
    found = measure_contender(
        "tests_support:open_constant", arguments, frames_file, seconds=0.5, places=places
    )
    assert (found.joules_per_image, found.idle_watts, found.busy_watts) == (0, 0, 0)
    assert found.images > 10
    assert found.source == "RAPL package-0"


def test_contender_without_a_source_says_why(tmp_path, frames_file):
    places = {
        "hwmon": str(tmp_path / "a"),
        "powercap": str(tmp_path / "b"),
        "tegrastats": "/nowhere/tegrastats",
    }
    with pytest.raises(EngineError, match=r"no INA3221 .*; no tegrastats; no RAPL energy counter"):
        measure_contender("tests_support:open_constant", {"classes": 3}, frames_file, places=places)


def test_a_call_of_several_images_is_shared_out(clock):
    meter = CounterMeter([(lambda: 8 * clock.now, None)], "made up")
    found = measure_energy(
        lambda: clock.pass_by(0.25), 1.0, meter, images_per_call=4, clock=clock, sleep=clock.pass_by
    )
    assert found.images == 16
    assert found.joules_per_image == pytest.approx(0)


def test_a_moment_is_refused(clock):
    with pytest.raises(UsageError, match=r"over 0\.1 s means nothing"):
        measure_energy(lambda: None, 0.1, CounterMeter([], "none"), clock=clock)


def test_a_thread_takes_readings_until_the_meter_is_closed():
    meter = PowerMeter(lambda: 7.0, "made up", interval=0.005)
    while meter.samples < 5:
        time.sleep(0.001)
    meter.close()
    taken = meter.samples
    assert meter.read_joules() > 0
    assert meter.samples == taken + 1
    meter.close()


# ---- RAPL


def rapl_zone(folder, zone, name, energy, span=1000_000_000):
    write_files(folder / zone, name=name, energy_uj=energy, max_energy_range_uj=span)


def test_rapl_adds_packages_and_memory_and_goes_on_where_a_counter_starts_again(tmp_path):
    folder = tmp_path / "powercap"
    rapl_zone(folder, "intel-rapl:0", "package-0", 999_000_000)
    rapl_zone(folder, "intel-rapl:0:0", "core", 1)
    rapl_zone(folder, "intel-rapl:0:1", "dram", 0)
    rapl_zone(folder, "intel-rapl:1", "psys", 5)
    rapl_zone(folder, "intel-rapl-mmio:0", "package-0", 5)
    meter, _ = open_here(tmp_path)
    assert meter.describe() == "RAPL package-0 + dram"
    (folder / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # 1 J to the end, 2 J after it
    (folder / "intel-rapl:0:1" / "energy_uj").write_text("500000\n")
    (folder / "intel-rapl:1" / "energy_uj").write_text("900000\n")
    assert meter.read_joules() == pytest.approx(3.5)
    assert meter.read_joules() == pytest.approx(3.5)
    meter.close()


def test_rapl_that_root_alone_may_read_says_so(tmp_path, monkeypatch):
    rapl_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refuse(self, *arguments, **named):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, reason = open_here(tmp_path)
    assert meter is None
    assert "root alone here: permission denied" in reason


def test_a_machine_without_any_source_says_what_was_looked_for(tmp_path):
    meter, reason = open_here(tmp_path)
    assert meter is None
    assert (
        reason == "no INA3221 or INA238 power monitor that can be read; no tegrastats; no RAPL energy counter"
    )


# ---- Jetson


def test_sysfs_rails_by_name_volts_times_amperes(tmp_path):
    hwmon = tmp_path / "hwmon"
    write_files(hwmon / "hwmon0", name="coretemp", in1_label="VDD_IN", in1_input=5000, curr1_input=9999)
    write_files(
        hwmon / "hwmon1", name="ina3221",
        in1_label="VDD_GPU_SOC", in1_input=20000, curr1_input=180,
        in2_label="VDD_CPU_CV", in2_input=20000, curr2_input=40,
        in3_label="VIN_SYS_5V0", in3_input=5000, curr3_input=800,
        in7_label="sum of shunt voltages",
    )  # fmt: skip
    write_files(
        hwmon / "hwmon2", name="ina3221",
        in1_label="NC", in1_input=0, curr1_input=0,
        in2_label="VDDQ_VDD2_1V8AO", in2_input=1000, curr2_input=300,
        in3_label="SWITCHED_OFF",
    )  # fmt: skip
    meter, _ = open_here(tmp_path, "cuda")
    meter.close()
    assert meter.describe() == "board rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert meter._last[1] == pytest.approx(3.6 + 0.8 + 4.0)


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1040}, 5.2),
        ({"name": "ina238", "in1_input": 12000, "curr1_input": 9, "power1_input": 19_800_000}, 19.8),
    ],
)
def test_the_boards_own_input_counts_alone(tmp_path, files, watts):
    write_files(tmp_path / "hwmon" / "hwmon0", **files)
    write_files(
        tmp_path / "hwmon" / "hwmon1", name="ina3221", in2_label="VDD_GPU", in2_input=5000, curr2_input=500
    )
    meter, _ = open_here(tmp_path)
    meter.close()
    assert meter.describe() in {"board rails VDD_IN", "board rails VIN"}
    assert meter._last[1] == pytest.approx(watts)


@pytest.mark.parametrize(
    ("board", "rails", "watts"),
    [
        ("nano-jetpack4", ("POM_5V_IN",), 3.12),
        ("orin-nano-jetpack6", ("VDD_IN",), 5.2),
        ("agx-orin-jetpack5", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 9.4),
        ("agx-orin-jetpack7", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 9.4),
        ("thor-jetpack7", ("VIN",), 19.8),
        ("thor-single", ("VIN",), 28.5),
    ],
)
def test_tegrastats_of_each_jetpack(board, rails, watts):
    found, names = total_watts(parse_tegrastats(LINES[board]))
    assert names == rails
    assert found == pytest.approx(watts)


def test_tegrastats_gives_rails_only():
    assert parse_tegrastats(LINES["thor-jetpack7"]) == {
        "VDD_GPU": -0.39, "VDD_CPU_SOC_MSS": 5.9, "VIN_SYS_5V0": 5.6, "VIN": 19.8
    }  # fmt: skip
    assert parse_tegrastats("RAM 1/2MB SWAP 0/15311MB (cached 0MB) EMC_FREQ 0%@204 APE 200") == {}


def test_tegrastats_is_followed_until_the_meter_is_closed(tmp_path):
    program = tmp_path / "tegrastats"
    line = LINES["orin-nano-jetpack6"]
    program.write_text(f"#!/bin/sh\nwhile :; do echo '{line}'; sleep 0.02; done\n")
    program.chmod(0o755)
    meter, _ = open_here(tmp_path, tegrastats=str(program))
    assert meter.describe() == "tegrastats VDD_IN"
    while meter.samples < 4:
        time.sleep(0.001)
    assert meter.read_joules() > 0
    meter.close()


@pytest.mark.parametrize(("dies", "span"), [("idle", "idle"), ("busy", "busy")])
def test_a_source_that_dies_gives_no_figure(clock, dies, span):
    """tegrastats, whose readings are pushed: no more of them come from some point on."""
    meter = PowerMeter(None, "tegrastats VDD_IN", clock=clock)
    meter.add(5.0)

    def idle(seconds):
        clock.pass_by(seconds)
        if dies == "busy":
            meter.add(5.0)

    with pytest.raises(EngineError, match=f"tegrastats VDD_IN gave no reading in the {span} span"):
        measure_energy(lambda: clock.pass_by(0.01), 1.0, meter, clock=clock, sleep=idle)


def test_tegrastats_that_ends_while_the_engine_runs_is_told(tmp_path):
    program = tmp_path / "tegrastats"
    line = LINES["orin-nano-jetpack6"]
    program.write_text(f"#!/bin/sh\nfor i in $(seq 30); do echo '{line}'; sleep 0.02; done\n")
    program.chmod(0o755)
    meter, _ = open_here(tmp_path, tegrastats=str(program))

    def idle_until_it_is_gone(seconds):
        while seconds and meter.samples < 30:
            time.sleep(0.01)

    with contextlib.closing(meter), pytest.raises(EngineError, match="no reading in the busy span"):
        measure_energy(lambda: time.sleep(0.01), 0.5, meter, sleep=idle_until_it_is_gone)


def test_tegrastats_without_rails_is_no_source(tmp_path):
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho 'RAM 1/2MB'\n")
    program.chmod(0o755)
    assert "tegrastats prints no power rail" in open_here(tmp_path, tegrastats=str(program)).reason


# ---- NVML


@pytest.fixture
def nvml(monkeypatch):
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.energy, module.asked = 5_000, []
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByIndex = module.asked.append
    module.nvmlDeviceGetHandleByUUID = module.asked.append
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: module.energy
    module.nvmlDeviceGetPowerUsage = lambda handle: 70_500
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_counts_millijoules_of_the_gpu_that_cuda_means(nvml, tmp_path):
    meter, _ = open_here(tmp_path, "cuda", gpu_uuid="1-2-3")
    nvml.energy = 7_500
    assert meter.read_joules() == pytest.approx(2.5)
    assert nvml.asked == ["GPU-1-2-3"]
    assert "energy counter" in meter.describe()


def test_nvml_without_a_counter_is_sampled(nvml, tmp_path):
    def unsupported(handle):
        raise nvml.NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    meter, _ = open_here(tmp_path, "cuda")
    meter.close()
    assert nvml.asked == [0]
    assert "power readings" in meter.describe()
    assert meter._last[1] == pytest.approx(70.5)


def test_nvml_that_fails_and_nvml_that_is_missing_say_so(nvml, tmp_path, monkeypatch):
    def broken():
        raise nvml.NVMLError("Driver Not Loaded")

    nvml.nvmlInit = broken
    assert "NVML: Driver Not Loaded" in open_here(tmp_path, "cuda").reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "edgekiln[nvml]" in open_here(tmp_path, "cuda").reason
