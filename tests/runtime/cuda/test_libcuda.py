"""The layer that needs no package: its calls, its waits and its errors, on the fake driver."""

import ctypes
import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tests_support import ROOT

from edgekiln.runtime.cuda.libcuda import LibcudaApi
from edgekiln.runtime.errors import DeviceError, ResourceError

WAITS = {"cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"}


@pytest.mark.parametrize(
    ("primitive", "arguments"),
    [
        ("_memory", ()),
        ("_allocate_device", (8,)),
        ("_free_device", (256,)),
        ("_allocate_pinned", (8, False)),
        ("_allocate_pinned", (8, True)),
        ("_free_pinned", (256,)),
        ("_create_stream", ()),
        ("_destroy_stream", (256,)),
        ("_synchronize_stream", (256,)),
        ("_is_done", (SimpleNamespace(handle=256),)),
        ("_create_event", (True, False)),
        ("_create_event", (False, True)),
        ("_destroy_event", (256,)),
        ("_record", (256, 256)),
        ("_synchronize_event", (256,)),
        ("_elapsed_ms", (256, 256)),
        ("_copy_to_device", (256, SimpleNamespace(address=256), 8, 256)),
        ("_copy_to_host", (SimpleNamespace(address=256), 256, 8, 256)),
    ],
)
def test_every_primitive_needs_the_context_and_nothing_else(libcuda, primitive, arguments):
    """Without a context the driver refuses each call, after ctypes has accepted its arguments."""
    with pytest.raises(DeviceError, match=r"^cu\w+ failed: CUDA_ERROR_\w+ \(error \d+, .+\)\.") as caught:
        getattr(libcuda, primitive)(*arguments)
    assert caught.value.exit_code == 5


def test_addresses_above_four_gigabytes_arrive_whole(libcuda):
    with libcuda.activate():
        memory, pinned = libcuda.allocate_device(1 << 20), libcuda.allocate_pinned(8, mapped=True)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert memory.address > 1 << 32
    assert pinned.array.ctypes.data == pinned.address > 1 << 32
    assert pinned.device_address is not None


def test_memory_that_runs_out_is_told_as_such(libcuda):
    with pytest.raises(ResourceError) as caught:
        libcuda.allocate_device(1 << 50)
    assert caught.value.message == "cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY (error 2, out of memory)."
    assert caught.value.hint == "Use a smaller batch, or free memory of the device."


@pytest.mark.parametrize(
    ("integrated", "scheduling", "polls"),
    [
        (True, 0, True),
        (False, 0, False),
        (True, 1, False),
        (True, 2, False),
        (False, 4, True),
        (True, 4, True),
    ],
    ids=["tegra-auto", "card-auto", "tegra-spin", "tegra-yield", "card-blocking", "tegra-blocking"],
)
def test_it_polls_where_the_drivers_own_wait_may_sleep(
    libcuda, watched_driver, integrated, scheduling, polls
):
    watched_driver.scheduling = scheduling | 8  # CU_CTX_MAP_HOST, which is no way to wait
    properties = dataclasses.replace(libcuda.properties, integrated=integrated)
    cuda = LibcudaApi(0, properties, watched_driver)
    stream = cuda.create_stream()
    del watched_driver.calls[:]
    stream.synchronize("spin")
    assert cuda.polls is polls
    assert WAITS & {*watched_driver.calls} == (set() if polls else {"cuStreamSynchronize"})
    assert ("cuStreamQuery" in watched_driver.calls) is polls


def test_spin_asks_until_it_is_done_and_never_sleeps(libcuda, watched_driver):
    stream = libcuda.create_stream()
    del watched_driver.calls[:]
    watched_driver.busy_queries = 3
    stream.synchronize("spin")
    assert watched_driver.calls == ["cuCtxPushCurrent_v2", *["cuStreamQuery"] * 4, "cuCtxPopCurrent_v2"]


def test_blocking_sleeps_and_never_asks(libcuda, watched_driver):
    stream = libcuda.create_stream()
    del watched_driver.calls[:]
    stream.synchronize("blocking")
    assert WAITS & {*watched_driver.calls} == {"cuEventSynchronize"}
    assert "cuStreamQuery" not in watched_driver.calls


def test_work_that_failed_is_told_by_a_wait_that_asks(libcuda, watched_driver):
    stream = libcuda.create_stream()
    watched_driver.failing.add("cuStreamQuery")
    with pytest.raises(DeviceError, match=r"cuStreamQuery failed: .*\(error 719, "):
        stream.synchronize("spin")


def test_the_flags_of_the_primary_context_are_left_alone(libcuda, watched_driver):
    stream = libcuda.create_stream()
    stream.synchronize()
    libcuda.close()
    assert not [
        name for name in watched_driver.calls if "SetFlags" in name or "CtxCreate" in name or "Reset" in name
    ]
    assert "cuDevicePrimaryCtxRelease_v2" not in watched_driver.calls


def test_pinned_memory_without_a_device_address_is_given_back(libcuda, watched_driver):
    watched_driver.failing.add("cuMemHostGetDevicePointer_v2")
    with pytest.raises(DeviceError, match="cuMemHostGetDevicePointer_v2 failed"):
        libcuda.allocate_pinned(8, mapped=True)
    assert watched_driver.left_over() == {}
    assert not libcuda.live


def test_opening_it_imports_no_package(fake_driver_path):
    code = (
        "import sys\n"
        "from edgekiln.runtime.cuda.driver import load_driver, require_device\n"
        "from edgekiln.runtime.cuda.libcuda import LibcudaApi\n"
        f"path = {fake_driver_path!r}\n"
        "cuda = LibcudaApi(0, require_device(0, path), load_driver(path))\n"
        "print(cuda.memory()[1], *({'cuda', 'pycuda', 'torch', 'tensorrt'} & {*sys.modules}))\n"
        "cuda.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) > 0
