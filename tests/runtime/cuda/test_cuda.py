"""The driver's probe, the choice of a CUDA package, and forks; on a machine with or without a GPU."""

import ast
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from fake_cuda import FAKE_DEVICE, FakeCuda
from tests_support import ROOT

import edgekiln.runtime.cuda as cuda_package
import edgekiln.runtime.cuda.driver as cuda_driver
from edgekiln.runtime.cuda import open_cuda, probe_driver, require_device
from edgekiln.runtime.cuda.driver import (
    Driver,
    explain_old_driver,
    free_memory,
    gpu_uuids,
    load_driver,
    supported_cuda,
)
from edgekiln.runtime.cuda.signatures import SIGNATURES
from edgekiln.runtime.errors import (
    DeviceError,
    EnvironmentProblem,
    ExitCode,
    MissingExtraError,
    UsageError,
)

SOURCES = ROOT / "runtime" / "edgekiln" / "runtime" / "cuda"
without_device = pytest.mark.skipif(probe_driver().problem is None, reason="a CUDA device is here")

# What the PyCUDA module uses, checked against the source of PyCUDA 2026.1 (src/wrapper/wrap_cudadrv.cpp).
PYCUDA_NAMES = {
    "Context.pop",
    "Device",
    "Error",
    "Event",
    "MemoryError",
    "Stream",
    "event_flags.BLOCKING_SYNC",
    "event_flags.DISABLE_TIMING",
    "host_alloc_flags.DEVICEMAP",
    "init",
    "mem_alloc",
    "mem_get_info",
    "memcpy_dtoh_async",
    "memcpy_htod_async",
    "pagelocked_empty",
}


@pytest.fixture
def pretend_device(monkeypatch):
    """Makes ``open_cuda`` believe that there is a device; opening gives the name that was chosen."""
    monkeypatch.setattr(cuda_package, "require_device", lambda index: FAKE_DEVICE)
    monkeypatch.setattr(cuda_package, "_open", lambda name, device, properties: (name, device))


@pytest.fixture
def installed(monkeypatch):
    """Makes exactly the packages named look installed and importable."""

    def pretend(*names):
        monkeypatch.setattr(cuda_package, "find_spec", lambda name: object() if name in names else None)
        monkeypatch.setattr(importlib, "import_module", lambda name: None)

    return pretend


def test_no_driver_is_told_and_does_not_raise():
    state = probe_driver("libcuda_absent.so.1")
    assert state.problem == "There is no NVIDIA driver: libcuda_absent.so.1 is not found."
    assert state.version is None
    assert state.devices == ()


def test_a_library_that_does_not_load_is_told(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    state = probe_driver(str(tmp_path / "libcuda.so.1"))
    assert state.problem.startswith("The NVIDIA driver cannot be loaded: ")


def test_require_device_raises_what_the_probe_tells():
    with pytest.raises(DeviceError, match="There is no NVIDIA driver") as caught:
        require_device(library="libcuda_absent.so.1")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert "nvidia-smi" in caught.value.hint


@without_device
@pytest.mark.parametrize("api", ["auto", "pycuda", "libcuda"])
def test_without_a_device_the_driver_is_asked_first(api, monkeypatch):
    def unexpected(name):
        raise AssertionError(f"looked for {name} before the driver was asked")

    monkeypatch.setattr(cuda_package, "find_spec", unexpected)
    with pytest.raises(DeviceError) as caught:
        open_cuda(api)
    assert caught.value.message == probe_driver().problem
    assert caught.value.exit_code == 5


def test_devices_are_described(fake_libcuda):
    library = fake_libcuda("DEVICES=2")
    state = probe_driver(library)
    assert state.problem is None
    assert state.version == (12, 6)
    first, second = state.devices
    assert first.name == "Fake Orin"
    assert first.compute_capability == (8, 7)
    assert first.multiprocessors == 14
    assert first.total_memory == 8 << 30
    assert first.integrated is True
    assert first.can_map_host_memory is True
    assert first.uuid == "00000000-0000-0000-0000-000000000007"
    assert second.uuid.endswith("8")
    assert require_device(1, library) == second
    for absent in (-1, 2):
        with pytest.raises(DeviceError, match=f"no CUDA device {absent}: this process sees 2"):
            require_device(absent, library)


def test_free_memory_leaves_no_context_behind(fake_libcuda):
    library = fake_libcuda()
    assert 0 < free_memory(0, library) <= 8 << 30
    with pytest.raises(DeviceError, match="cuCtxPopCurrent_v2 failed"):
        load_driver(library).pop_context()
    with pytest.raises(DeviceError, match="no CUDA device 1"):
        free_memory(1, library)


@pytest.mark.parametrize(
    ("text", "gibibytes"),
    [
        ("MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable:    6291456 kB\n", 6),
        ("MemAvailable: 33554432 kB\n", 8),  # not more than the device has
        ("MemAvailable: 1048576 kB\n", 4),  # not less than CUDA itself counts
        ("MemFree: 1048576 kB\n", 4),
        (None, 4),
    ],
)
def test_memory_that_files_hold_is_free_where_the_device_shares_the_hosts(
    fake_libcuda, tmp_path, text, gibibytes
):
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert free_memory(0, fake_libcuda(), tmp_path / "meminfo") == gibibytes << 30


def test_a_card_has_the_memory_that_cuda_counts(fake_libcuda, tmp_path, monkeypatch):
    card = dataclasses.replace(FAKE_DEVICE, integrated=False)
    monkeypatch.setattr(cuda_driver, "require_device", lambda index, library: card)
    (tmp_path / "meminfo").write_text("MemAvailable: 6291456 kB\n")
    library = fake_libcuda()
    load_driver(library).initialize()
    assert free_memory(0, library, tmp_path / "meminfo") == 4 << 30


@pytest.mark.parametrize(
    ("macros", "visible", "problem"),
    [
        (["INIT_STATUS=100"], "", "The NVIDIA driver shows no device; CUDA_VISIBLE_DEVICES is ''."),
        (["DEVICES=0"], None, "The NVIDIA driver shows no device; CUDA_VISIBLE_DEVICES is not set."),
        (["INIT_STATUS=35"], None, "cuInit failed: error 35 (CUDA_ERROR_FAKE: a fake error)."),
        (["INIT_STATUS=34", "NO_TEXTS"], None, "cuInit failed: error 34 (not described: not described)."),
    ],
)
def test_what_the_driver_refuses_is_told(fake_libcuda, monkeypatch, macros, visible, problem):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    state = probe_driver(fake_libcuda(*macros))
    assert state.problem == problem
    assert state.version == (12, 6)
    assert state.devices == ()


def test_a_failed_call_tells_call_code_and_description(fake_libcuda):
    driver = load_driver(fake_libcuda())
    driver.initialize()
    with pytest.raises(DeviceError) as caught:
        driver.pop_context()
    assert caught.value.message == "cuCtxPopCurrent_v2 failed: CUDA_ERROR_FAKE (error 201, a fake error)."


def test_the_supported_cuda_version_is_told_without_starting_cuda(fake_libcuda):
    assert supported_cuda(fake_libcuda("INIT_STATUS=999")) == (12, 6)
    assert supported_cuda("libcuda_absent.so.1") is None


def test_a_call_of_cuda_that_fails_has_a_remedy():
    assert "nvidia-smi" in cuda_driver.cuda_failure("cuLaunchKernel", "CUDA_ERROR_X", "error 1").hint


@pytest.mark.parametrize(
    ("needs", "has", "message", "hint"),
    [
        (
            (13, 0),
            (12, 6),
            "tensorrt_lean 11.4 needs an NVIDIA driver for CUDA 13.0 or later; the driver here supports CUDA up to "
            "12.6.",
            "Update the driver, or install the release of tensorrt_lean for CUDA 12;",
        ),
        (
            None,
            (12, 6),
            "tensorrt_lean 11.4 needs a newer NVIDIA driver; the driver here supports CUDA up to 12.6.",
            "release of tensorrt_lean for CUDA 12;",
        ),
        (
            None,
            None,
            "tensorrt_lean 11.4 needs a newer NVIDIA driver; the driver here does not tell its version.",
            "release of tensorrt_lean for this driver's CUDA;",
        ),
    ],
)
def test_a_driver_that_is_too_old_is_one_shape_of_error(needs, has, message, hint):
    error = explain_old_driver("tensorrt_lean 11.4", needs, has)
    assert type(error) is DeviceError
    assert error.message == message
    assert hint in error.hint


def test_gpus_are_named_in_the_order_of_this_process(fake_libcuda, monkeypatch):
    library = fake_libcuda("DEVICES=2")
    assert gpu_uuids(library) == [None, None]  # of a machine with one GPU, says the driver: it needs no name
    cards = tuple(dataclasses.replace(device, integrated=False) for device in probe_driver(library).devices)
    monkeypatch.setattr(
        cuda_driver, "probe_driver", lambda library: cuda_driver.DriverState(None, (12, 6), cards)
    )
    assert gpu_uuids(library) == [f"00000000-0000-0000-0000-00000000000{n}" for n in (7, 8)]


def test_a_slice_is_named_by_its_gpu(fake_libcuda, monkeypatch):
    driver, asked = Driver(fake_libcuda()), []
    monkeypatch.setattr(driver, "call", lambda name, *arguments: asked.append(name))
    assert driver.gpu_uuid(0) == "00000000-0000-0000-0000-000000000000"
    assert asked == ["cuDeviceGet", "cuDeviceGetUuid"]  # not _v2, which names the slice
    assert gpu_uuids("libcuda_absent.so.1") == []


def test_a_driver_without_a_function_is_too_old(fake_libcuda, monkeypatch):
    monkeypatch.setitem(SIGNATURES, "cuFromTheFuture", [])
    with pytest.raises(DeviceError, match="The NVIDIA driver has no cuFromTheFuture") as caught:
        Driver(fake_libcuda()).call("cuFromTheFuture")
    assert caught.value.hint == "Install a newer driver."


def test_a_graph_goes_through_the_driver_by_handle(fake_libcuda):
    path = fake_libcuda()
    driver = load_driver(path)
    driver.initialize()
    driver.push_context(driver.retain_primary_context(0))
    stream, memory = driver.handle("cuStreamCreate", 1), driver.handle("cuMemAlloc_v2", 8)
    source, target = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
    driver.begin_capture(stream)
    driver.call("cuMemcpyHtoDAsync_v2", memory, source.ctypes.data, 8, stream)
    driver.call("cuMemcpyDtoHAsync_v2", target.ctypes.data, memory, 8, stream)
    graph = driver.end_capture(stream)
    executable = driver.instantiate_graph(graph)
    driver.destroy_graph(graph)
    driver.upload_graph(executable, stream)
    assert not target.any()
    for step in (1, 2):
        source += step
        driver.launch_graph(executable, stream)
        driver.call("cuStreamSynchronize", stream)
        np.testing.assert_array_equal(target, source)
    driver.destroy_executable(executable)
    with pytest.raises(DeviceError, match="cuStreamEndCapture failed"):
        driver.end_capture(stream)
    driver.pop_context()


@pytest.mark.parametrize(
    ("packages", "chosen"),
    [
        (["pycuda", "cuda.bindings"], "pycuda"),
        (["pycuda"], "pycuda"),
        (["cuda.bindings"], "libcuda"),
        ([], "libcuda"),
    ],
)
def test_auto_takes_pycuda_where_it_is_installed(pretend_device, installed, packages, chosen):
    installed(*packages)
    assert open_cuda() == (chosen, 0)
    assert open_cuda("auto", device=3) == (chosen, 3)


def test_an_api_that_is_asked_for_is_taken(pretend_device, installed):
    installed("pycuda")
    assert open_cuda("libcuda") == ("libcuda", 0)


def test_a_missing_package_tells_the_install_lines(pretend_device, installed):
    installed("cuda.bindings")
    with pytest.raises(MissingExtraError, match="The package pycuda is not installed") as caught:
        open_cuda("pycuda")
    assert caught.value.hint == (
        "Run: pip install 'edgekiln[pycuda]', or ask for libcuda, which needs no package."
    )


def test_no_package_is_looked_for_where_libcuda_is_asked_for(pretend_device, monkeypatch):
    def unexpected(name):
        raise AssertionError(f"looked for {name}")

    monkeypatch.setattr(cuda_package, "find_spec", unexpected)
    assert open_cuda("libcuda") == ("libcuda", 0)


def test_an_unknown_api_is_refused():
    with pytest.raises(UsageError, match="Unknown CUDA API 'cupy'; known: auto, pycuda, libcuda"):
        open_cuda("cupy")


@pytest.mark.parametrize("api", ["auto", "pycuda"])
def test_a_broken_pycuda_is_told_and_not_replaced(pretend_device, monkeypatch, tmp_path, api):
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "driver.py").write_text(
        "import warnings\nwarnings.warn('version of your CUDA header')\n"
        "raise ImportError('undefined symbol: cuCtxCreate_v4')\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(EnvironmentProblem, match="pycuda is installed and cannot be imported") as caught:
            open_cuda(api)
    finally:
        sys.modules.pop("pycuda", None)
    assert type(caught.value) is EnvironmentProblem
    assert "undefined symbol: cuCtxCreate_v4" in caught.value.message
    assert "--no-binary pycuda" in caught.value.hint


def test_a_fork_cannot_use_what_its_parent_opened():
    code = (
        "import json, os, sys\n"
        "from fake_cuda import FakeCuda\n"
        "from edgekiln.runtime.errors import UsageError\n"
        "cuda = FakeCuda()\n"
        "stream, memory, pinned = cuda.create_stream(), cuda.allocate_device(8), cuda.allocate_pinned(8)\n"
        "uses = [cuda.memory, cuda.create_stream, cuda.create_event, cuda.close, memory.free, stream.close,\n"
        "  lambda: cuda.activate().__enter__(), lambda: cuda.allocate_device(8),\n"
        "  lambda: cuda.allocate_pinned(8), stream.synchronize, lambda: stream.synchronize('blocking'),\n"
        "  lambda: cuda.copy_to_device(memory, pinned, 8, stream),\n"
        "  lambda: cuda.copy_to_host(pinned, memory, 8, stream), lambda: cuda.capture(stream, lambda: None)]\n"
        "def attempt(use):\n"
        "  try: use()\n"
        "  except UsageError as error: return error.message\n"
        "  return 'was allowed'\n"
        "if (child := os.fork()) == 0:\n"
        "  print(json.dumps([os.getppid(), os.getpid(), *map(attempt, uses)]), flush=True)\n"
        "  os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "cuda.close()\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    parent, child, *messages = json.loads(out.stdout)
    assert len(messages) == 14
    assert set(messages) == {f"CUDA was opened in process {parent} and cannot be used in its fork {child}."}


def test_importing_loads_no_cuda_package():
    code = (
        "import sys; before = set(sys.modules); import edgekiln.runtime.cuda\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded & {'cuda', 'pycuda', 'tensorrt', 'torch'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def names_after(root, path):
    """Dotted names that follow ``root.`` in a source file: ``a.b`` for ``root.a.b``, longest only."""
    found = set()

    def visit(node, chain):
        if isinstance(node, ast.Attribute):
            visit(node.value, [node.attr, *chain])
        elif isinstance(node, ast.Name) and node.id == root and chain:
            found.add(".".join(chain))
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, [])

    visit(ast.parse(path.read_text()), [])
    return found


def test_pycuda_has_every_name_that_is_used():
    assert names_after("drv", SOURCES / "pycuda.py") - {"Device.retain_primary_context"} == PYCUDA_NAMES


def test_every_driver_function_that_is_called_has_a_signature():
    texts = [path.read_text() for path in sorted(SOURCES.glob("*.py")) if path.name != "signatures.py"]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    called = {str(node.value) for node in nodes if re.fullmatch(r"cu[A-Z]\w+", str(node.value))}
    assert called == set(SIGNATURES)


def test_the_fake_fails_where_it_is_told_to():
    cuda = FakeCuda(fail_at={"allocate_device": 2})
    first = cuda.allocate_device(100)
    with pytest.raises(DeviceError, match="fake allocate_device failed: CUDA_ERROR_FAKE"):
        cuda.allocate_device(100)
    assert cuda.allocated == 100
    assert cuda.calls["allocate_device"] == 2
    first.free()
    assert cuda.allocated == 0


def test_the_fake_device_is_read_and_written_by_address():
    cuda = FakeCuda()
    stream, memory, target = cuda.create_stream(), cuda.allocate_device(8), cuda.allocate_pinned(8)

    def double():
        cuda.view(memory.address + 2, 4)[:] *= 2

    cuda.view(memory.address, 8)[:] = np.arange(8)
    with pytest.raises(DeviceError, match="no context is current"):
        cuda.enqueue(stream.handle, double)
    with cuda.activate():
        cuda.enqueue(stream.handle, double)
    cuda.copy_to_host(target, memory, 8, stream)
    assert cuda.pending(stream.handle) == 2
    stream.synchronize()
    np.testing.assert_array_equal(target.array, [0, 1, 4, 6, 8, 10, 6, 7])
    graph = cuda.capture(stream, lambda: cuda.enqueue(stream.handle, double))
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(cuda.view(memory.address, 8), [0, 1, 8, 12, 16, 20, 6, 7])
    address = memory.address
    memory.free()
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        cuda.view(address, 8)
