"""``CudaApi`` on the driver's own library, by ctypes: no package, and any driver version.

ctypes gives up the interpreter's lock during each call, so other threads run while one waits. It matters where a call
takes long: the waits (``cuStreamSynchronize``, ``cuEventSynchronize``); what waits for the device or the system by
itself (``cuMemAlloc``, ``cuMemFree``, ``cuMemHostAlloc``, ``cuMemFreeHost``, ``cuGraphInstantiateWithFlags``,
``cuGraphUpload``); and ``cuDevicePrimaryCtxRetain``, which starts the device. The others take microseconds.
"""

from __future__ import annotations

import ctypes

import numpy as np

from edgekiln.runtime.cuda.driver import DeviceProperties, Driver
from edgekiln.runtime.cuda.graphs import DriverGraphs
from edgekiln.runtime.cuda.resources import Bytes, PinnedMemory
from edgekiln.runtime.cuda.unwinding import closed_on_failure

__all__ = ["LibcudaApi"]

# Flags of cuda.h.
_STREAM_NON_BLOCKING = 1
_EVENT_BLOCKING_SYNC = 1
_EVENT_DISABLE_TIMING = 2
_HOST_ALLOC_DEVICEMAP = 2


class LibcudaApi(DriverGraphs):
    """See ``CudaApi``. Each token is a handle or an address; the primary context is retained and never released."""

    name = "libcuda"

    def __init__(self, device: int, properties: DeviceProperties, driver: Driver | None = None) -> None:
        super().__init__(device, properties, driver)
        self._context = self._driver.retain_primary_context(device)

    def _push(self) -> None:
        self._driver.push_context(self._context)

    def _pop(self) -> None:
        self._driver.pop_context()

    def _memory(self) -> tuple[int, int]:
        return self._driver.memory()

    def _allocate_device(self, nbytes: int) -> tuple[int, int]:
        address = self._driver.handle("cuMemAlloc_v2", nbytes)
        return address, address

    def _free_device(self, token: int) -> None:
        self._driver.call("cuMemFree_v2", token)

    def _allocate_pinned(self, nbytes: int, mapped: bool) -> tuple[int, Bytes, int | None]:
        address = self._driver.handle("cuMemHostAlloc", nbytes, _HOST_ALLOC_DEVICEMAP if mapped else 0)
        with closed_on_failure() as closes:
            closes.append(lambda: self._free_pinned(address))
            device_address = self._device_address(address) if mapped else None
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return address, array, device_address

    def _device_address(self, address: int) -> int:
        return self._driver.handle("cuMemHostGetDevicePointer_v2", address, 0)

    def _free_pinned(self, token: int) -> None:
        self._driver.call("cuMemFreeHost", token)

    def _create_stream(self) -> tuple[int, int]:
        stream = self._driver.handle("cuStreamCreate", _STREAM_NON_BLOCKING)
        return stream, stream

    def _destroy_stream(self, token: int) -> None:
        self._driver.call("cuStreamDestroy_v2", token)

    def _synchronize_stream(self, token: int) -> None:
        self._driver.call("cuStreamSynchronize", token)

    def _create_event(self, timing: bool, blocking: bool) -> int:
        flags = 0 if timing else _EVENT_DISABLE_TIMING
        flags |= _EVENT_BLOCKING_SYNC if blocking else 0
        return self._driver.handle("cuEventCreate", flags)

    def _destroy_event(self, token: int) -> None:
        self._driver.call("cuEventDestroy_v2", token)

    def _record(self, event: int, stream: int) -> None:
        self._driver.call("cuEventRecord", event, stream)

    def _synchronize_event(self, token: int) -> None:
        self._driver.call("cuEventSynchronize", token)

    def _elapsed_ms(self, since: int, until: int) -> float:
        milliseconds = ctypes.c_float()
        # Not _v2, which drivers before CUDA 12.8 lack.
        self._driver.call("cuEventElapsedTime", ctypes.byref(milliseconds), since, until)
        return milliseconds.value

    def _copy_to_device(self, target: int, source: PinnedMemory, nbytes: int, stream: int) -> None:
        self._driver.call("cuMemcpyHtoDAsync_v2", target, source.address, nbytes, stream)

    def _copy_to_host(self, target: PinnedMemory, source: int, nbytes: int, stream: int) -> None:
        self._driver.call("cuMemcpyDtoHAsync_v2", target.address, source, nbytes, stream)
