"""The checks of the CUDA layers, on a fake that keeps its promises and on some that break one."""

from typing import get_args, get_type_hints

import pytest
from fake_cuda import FakeCuda

from edgekiln.pipeline.gpu_suite.layers import CHECKS, check_all, check_layer, list_layers
from edgekiln.runtime.cuda import open_cuda, probe_driver
from edgekiln.runtime.errors import DeviceError

no_gpu = pytest.mark.skipif(probe_driver().problem is None, reason="There is a GPU here.")


class DropsCopies(FakeCuda):
    def _copy_to_host(self, target, source, nbytes, stream):
        pass


class RunsWhileRecording(FakeCuda):
    def enqueue(self, handle, work):
        if self.is_capturing(handle):
            work()
        super().enqueue(handle, work)


class Leaks(FakeCuda):
    def _free_device(self, token):
        pass


class Sleeps(FakeCuda):
    def _elapsed_ms(self, since, until):
        return -1.0


def test_the_layers_are_those_that_open_cuda_takes():
    assert list_layers()
    assert {"auto", *list_layers()} == {*get_args(get_type_hints(open_cuda)["api"])}


def test_a_layer_that_keeps_its_promises_passes_each_check():
    told = []
    cuda = FakeCuda()
    found = check_all(cuda, told.append)
    assert found["failures"] == []
    assert list(found["checks"]) == list(CHECKS) == [event["check"] for event in told]
    states = {name: row["state"] for name, row in found["checks"].items()}
    assert states.pop("torch beside it") == "skipped"
    assert set(states.values()) == {"done"}
    assert found["layer"] == "fake"
    assert found["checks"]["graph"]["launch_and_wait_us"] > 0


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        (DropsCopies, {"copies", "mapped memory", "graph", "failed capture", "threads"}),
        (RunsWhileRecording, {"graph"}),
        (Leaks, {"leaks"}),
        (Sleeps, {"events"}),
    ],
)
def test_a_promise_that_is_broken_is_a_row_and_the_other_checks_are_made(kind, failed):
    found = check_all(kind(), lambda event: None)
    assert {entry["test"] for entry in found["failures"]} == failed
    assert all("wanted" in entry["reason"] for entry in found["failures"])
    assert len(found["checks"]) == len(CHECKS)


def test_a_call_that_fails_is_a_row():
    found = check_all(FakeCuda(fail_at={"create_stream": 1}), lambda event: None)
    assert [entry["test"] for entry in found["failures"]] == ["copies"]
    assert found["failures"][0]["reason"].startswith("DeviceError: ")


@no_gpu
@pytest.mark.parametrize("layer", list_layers())
def test_without_a_driver_a_layer_is_skipped(layer):
    with pytest.raises(DeviceError):
        check_layer({"layer": layer}, lambda event: None)
