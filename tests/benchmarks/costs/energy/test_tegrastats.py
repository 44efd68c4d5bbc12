import contextlib
import time
from pathlib import Path

import pytest
from energy_support import open_here

from edgekiln.benchmarks.costs.energy.board_rails import total_watts
from edgekiln.benchmarks.costs.energy.per_image import measure_energy
from edgekiln.benchmarks.costs.energy.tegrastats import parse_tegrastats
from edgekiln.runtime.errors import EngineError

LINES = dict(
    line.split("|")
    for line in (Path(__file__).parents[3] / "data" / "power" / "tegrastats.txt").read_text().splitlines()
)


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
