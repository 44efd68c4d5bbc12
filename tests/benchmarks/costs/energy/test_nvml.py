import sys
import types

import pytest
from energy_support import open_here


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
