"""``CudaApi`` through NVIDIA's cuda-bindings, 12.x and 13.x: the CUDA runtime API, whose calls return tuples."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import cuda.bindings.runtime as _cudart
import numpy as np

from edgekiln.runtime.cuda.driver import DeviceProperties, cuda_failure
from edgekiln.runtime.cuda.graphs import DriverGraphs
from edgekiln.runtime.cuda.resources import Bytes, PinnedMemory
from edgekiln.runtime.errors import DeviceError, EdgekilnError

__all__ = ["CudaBindingsApi"]

cudart: Any = _cudart  # 12.x ships no types


class CudaBindingsApi(DriverGraphs):
    """See ``CudaApi``. The primary context is pushed through the driver, so whatever was current comes back."""

    name = "cuda-bindings"

    def __init__(self, device: int, properties: DeviceProperties) -> None:
        super().__init__(device, properties)
        self._context = self._driver.retain_primary_context(device)
        self.memory()  # a package that is newer than the driver fails here, not at the first picture

    def _push(self) -> None:
        self._driver.push_context(self._context)

    def _pop(self) -> None:
        self._driver.pop_context()

    def _memory(self) -> tuple[int, int]:
        free, total = _call(cudart.cudaMemGetInfo)
        return int(free), int(total)

    def _allocate_device(self, nbytes: int) -> tuple[int, int]:
        address = int(_call(cudart.cudaMalloc, nbytes)[0])
        return address, address

    def _free_device(self, token: int) -> None:
        _call(cudart.cudaFree, token)

    def _allocate_pinned(self, nbytes: int, mapped: bool) -> tuple[int, Bytes, int | None]:
        flags = cudart.cudaHostAllocMapped if mapped else cudart.cudaHostAllocDefault
        address = int(_call(cudart.cudaHostAlloc, nbytes, flags)[0])
        try:
            device_address = int(_call(cudart.cudaHostGetDevicePointer, address, 0)[0]) if mapped else None
        except EdgekilnError:
            _call(cudart.cudaFreeHost, address)
            raise
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return address, array, device_address

    def _free_pinned(self, token: int) -> None:
        _call(cudart.cudaFreeHost, token)

    def _create_stream(self) -> tuple[Any, int]:
        stream = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)[0]
        return stream, int(stream)

    def _destroy_stream(self, token: Any) -> None:
        _call(cudart.cudaStreamDestroy, token)

    def _synchronize_stream(self, token: Any) -> None:
        _call(cudart.cudaStreamSynchronize, token)

    def _create_event(self, timing: bool, blocking: bool) -> Any:
        flags = 0 if timing else cudart.cudaEventDisableTiming
        flags |= cudart.cudaEventBlockingSync if blocking else 0
        return _call(cudart.cudaEventCreateWithFlags, flags)[0]

    def _destroy_event(self, token: Any) -> None:
        _call(cudart.cudaEventDestroy, token)

    def _record(self, event: Any, stream: Any) -> None:
        _call(cudart.cudaEventRecord, event, stream)

    def _synchronize_event(self, token: Any) -> None:
        _call(cudart.cudaEventSynchronize, token)

    def _elapsed_ms(self, since: Any, until: Any) -> float:
        return float(_call(cudart.cudaEventElapsedTime, since, until)[0])

    def _copy_to_device(self, target: int, source: PinnedMemory, nbytes: int, stream: Any) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(cudart.cudaMemcpyAsync, target, source.address, nbytes, kind, stream)

    def _copy_to_host(self, target: PinnedMemory, source: int, nbytes: int, stream: Any) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(cudart.cudaMemcpyAsync, target.address, source, nbytes, kind, stream)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
    """What ``function`` gives behind its status, or the error that the status means."""
    status, *results = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        raise _failure(function.__name__, status)
    return tuple(results)


def _failure(call: str, status: Any) -> EdgekilnError:
    name, description = (
        describe(status)[1].decode(errors="replace")
        for describe in (cudart.cudaGetErrorName, cudart.cudaGetErrorString)
    )
    out_of_memory = status == cudart.cudaError_t.cudaErrorMemoryAllocation
    error = cuda_failure(call, name, f"error {int(status)}, {description}", out_of_memory=out_of_memory)
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver:
        return DeviceError(
            error.message,
            hint="Install a newer driver, or cuda-bindings of the CUDA version that `nvidia-smi` shows, "
            "for example: pip install 'cuda-bindings==12.*'",
        )
    return error
