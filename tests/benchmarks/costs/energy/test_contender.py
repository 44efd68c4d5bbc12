import os
import sys
from pathlib import Path

import numpy as np
import pytest
from energy_support import write_files

from edgekiln.benchmarks.costs.energy.contender import measure_contender
from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.runtime.errors import EngineError


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
