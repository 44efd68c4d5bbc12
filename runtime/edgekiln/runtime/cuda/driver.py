"""The NVIDIA driver, asked directly: is there one, which devices, and the calls that Python packages lack.

Everything here goes through ctypes into ``libcuda.so.1``, so it needs no package. It knows nothing of memory or of
what is computed.

Asking the driver calls ``cuInit``, which is process-wide: a process that did so and then forks leaves a child in
which CUDA cannot be used. Start workers with the ``spawn`` method, or ask in the child alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
import uuid
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgekiln.runtime.cuda.signatures import SIGNATURES
from edgekiln.runtime.cuda.unwinding import closed_at_last
from edgekiln.runtime.errors import DeviceError, EdgekilnError, ResourceError

__all__ = [
    "DeviceProperties",
    "Driver",
    "DriverState",
    "cuda_failure",
    "explain_old_driver",
    "free_memory",
    "gpu_uuids",
    "load_driver",
    "probe_driver",
    "require_device",
    "supported_cuda",
]

LIBRARY = "libcuda.so.1"
_MEMINFO = Path("/proc/meminfo")

# Values of cuda.h (CUDA 13.0).
_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_NOT_READY = 600
_MULTIPROCESSOR_COUNT = 16
_INTEGRATED = 18
_CAN_MAP_HOST_MEMORY = 19
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_CAPTURE_THREAD_LOCAL = 1
_SCHEDULING_MASK = 7
_SCHEDULING_AUTO = 0
_SCHEDULING_BLOCKING = 4
_NAME_BYTES = 256
_AFTER_FAILURE = "`nvidia-smi` and `dmesg | grep -i xid` tell what the driver saw; start the process again."


@dataclass(frozen=True)
class DeviceProperties:
    """What a CUDA device is.

    Attributes:
        name: the maker's name of it.
        compute_capability: (major, minor), for example (8, 7).
        multiprocessors: number of streaming multiprocessors.
        total_memory: bytes.
        integrated: True where it shares the host's memory, as on Jetson.
        can_map_host_memory: True where it can read pinned host memory by address.
        uuid: of this GPU or MIG slice, or ``None`` where the driver does not tell.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    total_memory: int
    integrated: bool
    can_map_host_memory: bool
    uuid: str | None = None


@dataclass(frozen=True)
class DriverState:
    """What the driver says of this machine. ``problem`` is one sentence where no device can be used."""

    problem: str | None
    version: tuple[int, int] | None = None
    devices: tuple[DeviceProperties, ...] = ()


def cuda_failure(call: str, name: str, description: str, *, out_of_memory: bool = False) -> EdgekilnError:
    """The one shape of a failed CUDA call: a ``ResourceError`` where memory ran out, else a ``DeviceError``."""
    message = f"{call} failed: {name} ({description})."
    if out_of_memory:
        return ResourceError(message, hint="Use a smaller batch, or free memory of the device.")
    return DeviceError(message, hint=_AFTER_FAILURE)


def explain_old_driver(
    library: str, needs: tuple[int, int] | None, has: tuple[int, int] | None
) -> DeviceError:
    """The one shape of a driver that is too old for a library: always a ``DeviceError``, never a broken file.

    Args:
        library: name and version of what does not start, as a user knows it: ``tensorrt_lean 11.4.0.106``.
        needs: CUDA version that it was built for, or ``None`` where it does not tell.
        has: newest CUDA version that the driver supports, see ``supported_cuda``; ``None`` where it does not tell.
    """
    wanted = f"an NVIDIA driver for CUDA {needs[0]}.{needs[1]} or later" if needs else "a newer NVIDIA driver"
    found = "does not tell its version" if has is None else f"supports CUDA up to {has[0]}.{has[1]}"
    fitting = "this driver's CUDA" if has is None else f"CUDA {has[0]}"
    return DeviceError(
        f"{library} needs {wanted}; the driver here {found}.",
        hint=f"Update the driver, or install the release of {library.split()[0]} for {fitting}; on a Jetson both "
        "come with JetPack.",
    )


class Driver:
    """Calls of ``libcuda``; a status other than 0 becomes an error. Handles are ints."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(library)  # OSError: absent or not loadable
        self._functions: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any) -> None:
        """Call the function ``name``.

        Raises:
            DeviceError: it failed, or this driver is too old to have it.
            ResourceError: memory ran out.
        """
        status = self._function(name)(*arguments)
        if status != 0:
            raise self._failure(name, status)

    def _function(self, name: str) -> Any:
        function = self._functions.get(name)
        if function is None:
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise DeviceError(
                    f"The NVIDIA driver has no {name}.", hint="Install a newer driver."
                ) from error
            function.argtypes = SIGNATURES[name]
            self._functions[name] = function
        return function

    def _failure(self, name: str, status: int) -> EdgekilnError:
        described = f"error {status}, {self._text('cuGetErrorString', status)}"
        code = self._text("cuGetErrorName", status)
        return cuda_failure(name, code, described, out_of_memory=status == _OUT_OF_MEMORY)

    def _text(self, name: str, status: int) -> str:
        text = c_char_p()
        try:
            self._function(name)(status, ctypes.byref(text))
        except DeviceError:
            return "not described"  # a stub library has no texts
        return (text.value or b"not described").decode(errors="replace")

    def initialize(self) -> int:
        """Call ``cuInit`` and give its status; 0 is success. Process-wide; see the module's docstring."""
        return int(self._function("cuInit")(0))

    def describe(self, status: int) -> str:
        """``error 100 (CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected)``."""
        return f"error {status} ({self._text('cuGetErrorName', status)}: {self._text('cuGetErrorString', status)})"

    def version(self) -> tuple[int, int]:
        """Newest CUDA version that the driver supports."""
        number = self._int("cuDriverGetVersion")
        return number // 1000, number % 1000 // 10

    def device_count(self) -> int:
        """Number of devices that this process may see."""
        return self._int("cuDeviceGetCount")

    def properties(self, index: int) -> DeviceProperties:
        """What device number ``index`` is."""
        device = self._int("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", name, _NAME_BYTES, device)
        total = c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        major, minor, multiprocessors, integrated, can_map = (
            self._int("cuDeviceGetAttribute", attribute, device)
            for attribute in (
                _COMPUTE_CAPABILITY_MAJOR,
                _COMPUTE_CAPABILITY_MINOR,
                _MULTIPROCESSOR_COUNT,
                _INTEGRATED,
                _CAN_MAP_HOST_MEMORY,
            )
        )
        return DeviceProperties(
            name=name.value.decode(errors="replace"),
            compute_capability=(major, minor),
            multiprocessors=multiprocessors,
            total_memory=total.value,
            integrated=bool(integrated),
            can_map_host_memory=bool(can_map),
            uuid=self._uuid(device, ("cuDeviceGetUuid_v2", "cuDeviceGetUuid")),  # _v2 tells MIG slices apart
        )

    def gpu_uuid(self, index: int) -> str | None:
        """UUID of the GPU that device number ``index`` is or is a slice of; ``None`` where the driver does not tell."""
        return self._uuid(self._int("cuDeviceGet", index), ("cuDeviceGetUuid", "cuDeviceGetUuid_v2"))

    def _uuid(self, device: int, names: tuple[str, ...]) -> str | None:
        raw = ctypes.create_string_buffer(16)
        for name in names:
            try:
                self.call(name, raw, device)
            except DeviceError:
                continue
            return str(uuid.UUID(bytes=raw.raw))
        return None

    def _int(self, name: str, *arguments: int) -> int:
        value = c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def handle(self, name: str, *arguments: int) -> int:
        """What the function ``name`` writes through its first argument: a handle or an address. Raises as ``call``."""
        value = c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def retain_primary_context(self, index: int) -> int:
        """Handle of the primary context of device ``index``: the one that torch and TensorRT use too."""
        return self.handle("cuDevicePrimaryCtxRetain", self._int("cuDeviceGet", index))

    def release_primary_context(self, index: int) -> None:
        """Take back one ``retain_primary_context``; the last one of all libraries ends the context."""
        self.call("cuDevicePrimaryCtxRelease_v2", self._int("cuDeviceGet", index))

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device whose context is current."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def may_sleep_while_waiting(self, index: int, *, integrated: bool) -> bool:
        """Whether ``cuStreamSynchronize`` may sleep on device ``index``, by the flags of its primary context.

        cuda.h has it: CU_CTX_SCHED_AUTO spins or yields, but on Tegra it may block, by the board's power profile.
        """
        flags, active = c_uint(), c_int()
        device = self._int("cuDeviceGet", index)
        self.call("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
        scheduling = flags.value & _SCHEDULING_MASK
        return scheduling == _SCHEDULING_BLOCKING or (scheduling == _SCHEDULING_AUTO and integrated)

    def is_stream_done(self, stream: int) -> bool:
        """Whether all that was enqueued on ``stream`` is done. Raises as ``call`` where some of it failed."""
        status = int(self._function("cuStreamQuery")(stream))
        if status not in (0, _NOT_READY):
            raise self._failure("cuStreamQuery", status)
        return status == 0

    def push_context(self, context: int) -> None:
        """Make ``context`` current in this thread, above the one that is."""
        self.call("cuCtxPushCurrent_v2", context)

    def pop_context(self) -> None:
        """Take the current context off this thread's stack."""
        self.handle("cuCtxPopCurrent_v2")

    def begin_capture(self, stream: int) -> None:
        """Record what is enqueued on ``stream`` from now on. Other threads may go on using CUDA."""
        self.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Handle of the recorded graph; in the thread that began."""
        graph = c_void_p()
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        return graph.value or 0

    def instantiate_graph(self, graph: int) -> int:
        """Handle of an executable graph made of ``graph``, which may then be destroyed."""
        return self.handle("cuGraphInstantiateWithFlags", graph, 0)

    def upload_graph(self, executable: int, stream: int) -> None:
        """Move the graph to the device ahead of its first launch, which is then as fast as the next."""
        self.call("cuGraphUpload", executable, stream)

    def launch_graph(self, executable: int, stream: int) -> None:
        """Enqueue the graph on ``stream``."""
        self.call("cuGraphLaunch", executable, stream)

    def destroy_executable(self, executable: int) -> None:
        """Free an executable graph."""
        self.call("cuGraphExecDestroy", executable)

    def destroy_graph(self, graph: int) -> None:
        """Free a recorded graph."""
        self.call("cuGraphDestroy", graph)


@functools.cache
def load_driver(library: str = LIBRARY) -> Driver:
    """The driver's library, loaded once.

    Raises:
        DeviceError: it is not there.
    """
    try:
        return Driver(library)
    except OSError as error:
        raise DeviceError(_absent(library, error), hint=_REMEDY) from error


_REMEDY = "Check with `nvidia-smi`; in a container, give it the GPU (`docker run --gpus all`)."


def _absent(library: str, error: OSError) -> str:
    if "cannot open shared object file" in str(error):
        return f"There is no NVIDIA driver: {library} is not found."
    return f"The NVIDIA driver cannot be loaded: {error}."


def probe_driver(library: str = LIBRARY) -> DriverState:
    """Ask the driver what is here. Nothing that is absent or broken raises: it is told in ``problem``.

    Calls ``cuInit``, see the module's docstring. ``library`` is for tests.
    """
    try:
        driver = load_driver(library)
        status = driver.initialize()
    except DeviceError as error:
        return DriverState(error.message)
    try:
        version = driver.version()
    except DeviceError:
        version = None  # cuInit's own status tells more
    if status == _NO_DEVICE:
        return DriverState(_no_device(), version)
    if status != 0:
        return DriverState(f"cuInit failed: {driver.describe(status)}.", version)
    return _list_devices(driver, version)


def supported_cuda(library: str = LIBRARY) -> tuple[int, int] | None:
    """Newest CUDA version that the driver supports; ``None`` without a driver, or where it does not tell.

    Does not call ``cuInit``: a process that asked may fork. ``library`` is for tests.
    """
    try:
        version = load_driver(library).version()
    except DeviceError:
        return None
    return version if version > (0, 0) else None  # 0 is what a stub says


def _list_devices(driver: Driver, version: tuple[int, int] | None) -> DriverState:
    try:
        devices = tuple(driver.properties(index) for index in range(driver.device_count()))
    except (DeviceError, ResourceError) as error:
        return DriverState(error.message, version)
    return DriverState(None if devices else _no_device(), version, devices)


def _no_device() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    setting = "is not set" if visible is None else f"is {visible!r}"
    return f"The NVIDIA driver shows no device; CUDA_VISIBLE_DEVICES {setting}."


def require_device(index: int = 0, library: str = LIBRARY) -> DeviceProperties:
    """What device number ``index`` is.

    Raises:
        DeviceError: no driver, no device, or no device of this number.
    """
    state = probe_driver(library)
    if state.problem is not None:
        raise DeviceError(state.problem, hint=_REMEDY)
    if not 0 <= index < len(state.devices):
        raise DeviceError(
            f"There is no CUDA device {index}: this process sees {len(state.devices)}.",
            hint="Devices are counted from 0, among those that CUDA_VISIBLE_DEVICES shows.",
        )
    return state.devices[index]


def gpu_uuids(library: str = LIBRARY) -> list[str | None]:
    """UUID of the GPU behind each device that this process sees, in its order; empty without a device.

    nvidia-smi and NVML take it behind ``GPU-``. They know nothing of CUDA_VISIBLE_DEVICES, and count in another order.
    ``None`` where the device shares the host's memory, since such a machine has one GPU, which needs no name.
    """
    devices = probe_driver(library).devices
    driver = load_driver(library) if devices else None
    return [
        None if driver is None or device.integrated else driver.gpu_uuid(index)
        for index, device in enumerate(devices)
    ]


def free_memory(index: int = 0, library: str = LIBRARY, meminfo: Path = _MEMINFO) -> int:
    """Bytes that can be had on device number ``index``, for who has no ``CudaApi`` open. Needs no package.

    Where the device shares the host's memory, CUDA counts as free only what holds nothing at all. Linux keeps files
    there that were read, and gives that memory back on demand: MemAvailable counts it as well.

    Args:
        index: number of the device.
        library: the driver's, for tests.
        meminfo: where Linux tells MemAvailable, for tests.

    Raises:
        DeviceError: no driver, no device, or no device of this number.
    """
    properties = require_device(index, library)
    driver = load_driver(library)
    context = driver.retain_primary_context(index)
    with closed_at_last(partial(driver.release_primary_context, index)):
        driver.push_context(context)
        with closed_at_last(driver.pop_context):
            free, total = driver.memory()
    available = _host_memory(meminfo) if properties.integrated else None
    return free if available is None else min(max(free, available), total)


def _host_memory(meminfo: Path) -> int | None:
    """Bytes of MemAvailable; ``None`` where nothing tells."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
