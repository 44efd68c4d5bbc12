"""A driver that is too old for an installed library is told, with both versions."""

import pytest

from edgekiln.pipeline.doctor import driver_fit
from edgekiln.pipeline.doctor.gpu import Gpus

NEEDS = {"tensorrt-rtx": (13, 0), "tensorrt-lean": (12, 0)}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(driver_fit, "needed_cuda", NEEDS.get)
    monkeypatch.setattr(driver_fit, "tool_versions", lambda names: {"tensorrt-rtx-cu13": "1.7.1.116"})


def test_a_library_for_a_newer_cuda_fails_with_its_remedy():
    [row] = driver_fit.check_driver_fit(Gpus(None, (12, 8)))
    assert (row.name, row.state) == ("driver fit tensorrt-rtx", "FAIL")
    assert "tensorrt-rtx 1.7.1.116 needs an NVIDIA driver for CUDA 13.0 or later" in row.found
    assert "supports CUDA up to 12.8" in row.found
    assert "Update the driver" in row.fix


@pytest.mark.parametrize("cuda", [(13, 0), (13, 2), (14, 0)])
def test_a_driver_of_the_same_major_version_or_a_newer_one_fits(cuda):
    [row] = driver_fit.check_driver_fit(Gpus(None, cuda))
    assert (row.name, row.state) == ("driver fit", "OK")
    assert "tensorrt-lean for CUDA 12, tensorrt-rtx for CUDA 13; CUDA up to" in row.found


def test_no_driver_is_no_fault_of_the_libraries(monkeypatch):
    assert [row.state for row in driver_fit.check_driver_fit(Gpus("There is no driver."))] == ["OK"]
    monkeypatch.setattr(driver_fit, "needed_cuda", lambda name: None)
    [row] = driver_fit.check_driver_fit(Gpus(None, (12, 8)))
    assert row.found == "no library that needs it; CUDA up to 12.8"


def test_a_device_that_is_missing_does_not_hide_an_old_driver():
    [row] = driver_fit.check_driver_fit(Gpus("The NVIDIA driver shows no device.", (12, 8)))
    assert row.state == "FAIL"
