"""``CudaApi`` through PyCUDA: the driver API, in the device's primary context and never ``pycuda.autoinit``.

PyCUDA frees a resource when its last reference goes, and that needs the context to be current in the thread where
it happens. So a token is a list that holds the only reference, and is emptied while the context is current.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
import pycuda.driver as _driver

from edgekiln.runtime.cuda.driver import DeviceProperties, cuda_failure
from edgekiln.runtime.cuda.graphs import DriverGraphs
from edgekiln.runtime.cuda.resources import Bytes, PinnedMemory
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["PycudaApi"]

drv: Any = _driver  # ships no types
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING of cuda.h, for which PyCUDA has no name


class _Translation(AbstractContextManager[None]):
    """Turns PyCUDA's errors into edgekiln's. A class, as a generator would double the cost of a call."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, drv.Error):
            raise _failure(error) from error


_translated = _Translation()


@functools.cache
def _primary_context(device: int) -> Any:
    """Retained once and kept to the end of the process, since other libraries use it too.

    The reference that is leaked on purpose keeps PyCUDA's destructor from running at exit: it calls
    ``cuCtxDetach``, which is not how a primary context is released (seen with PyCUDA 2026.1).
    """
    drv.init()
    context = drv.Device(device).retain_primary_context()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
    return context


class PycudaApi(DriverGraphs):
    """See ``CudaApi``. Graphs, which PyCUDA lacks, go through the driver by the stream's handle."""

    name = "pycuda"

    def __init__(self, device: int, properties: DeviceProperties) -> None:
        super().__init__(device, properties)
        with _translated:
            self._context = _primary_context(device)

    def _push(self) -> None:
        with _translated:
            self._context.push()

    def _pop(self) -> None:
        with _translated:
            drv.Context.pop()

    def _memory(self) -> tuple[int, int]:
        with _translated:
            free, total = drv.mem_get_info()
        return int(free), int(total)

    def _allocate_device(self, nbytes: int) -> tuple[list[Any], int]:
        with _translated:
            allocation = drv.mem_alloc(nbytes)
        return [allocation], int(allocation)

    def _free_device(self, token: list[Any]) -> None:
        with _translated:
            token.pop().free()

    def _allocate_pinned(self, nbytes: int, mapped: bool) -> tuple[list[Any], Bytes, int | None]:
        flags = drv.host_alloc_flags.DEVICEMAP if mapped else 0
        with _translated:
            array = drv.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
            device_address = int(array.base.get_device_pointer()) if mapped else None
        return [array.base], array, device_address

    def _free_pinned(self, token: list[Any]) -> None:
        with _translated:
            token.pop().free()

    def _create_stream(self) -> tuple[list[Any], int]:
        with _translated:
            stream = drv.Stream(_NON_BLOCKING)
        return [stream], int(stream.handle)

    def _destroy_stream(self, token: list[Any]) -> None:
        token.clear()

    def _synchronize_stream(self, token: list[Any]) -> None:
        with _translated:
            token[0].synchronize()

    def _create_event(self, timing: bool, blocking: bool) -> list[Any]:
        flags = 0 if timing else int(drv.event_flags.DISABLE_TIMING)
        flags |= int(drv.event_flags.BLOCKING_SYNC) if blocking else 0
        with _translated:
            return [drv.Event(flags)]

    def _destroy_event(self, token: list[Any]) -> None:
        token.clear()

    def _record(self, event: list[Any], stream: list[Any]) -> None:
        with _translated:
            event[0].record(stream[0])

    def _synchronize_event(self, token: list[Any]) -> None:
        with _translated:
            token[0].synchronize()

    def _elapsed_ms(self, since: list[Any], until: list[Any]) -> float:
        with _translated:
            return float(until[0].time_since(since[0]))

    def _copy_to_device(self, target: int, source: PinnedMemory, nbytes: int, stream: list[Any]) -> None:
        with _translated:
            drv.memcpy_htod_async(target, source.array[:nbytes], stream[0])

    def _copy_to_host(self, target: PinnedMemory, source: int, nbytes: int, stream: list[Any]) -> None:
        with _translated:
            drv.memcpy_dtoh_async(target.array[:nbytes], source, stream[0])


def _failure(error: BaseException) -> EdgekilnError:
    call, _, description = str(error).partition(
        " failed: "
    )  # PyCUDA's text: "cuMemAlloc failed: out of memory"
    kind = f"pycuda.driver.{type(error).__name__}"
    return cuda_failure(call, kind, description, out_of_memory=isinstance(error, drv.MemoryError))
