"""CUDA memory, streams and graphs behind one small protocol, with the driver's own library or PyCUDA doing the work.

Importing this loads no CUDA package and asks no driver; ``open_cuda`` does both. It knows nothing of engines.

May import: ``runtime``.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Literal, Protocol

from edgekiln.runtime.cuda.driver import (
    DeviceProperties,
    DriverState,
    probe_driver,
    require_device,
)
from edgekiln.runtime.cuda.resources import DeviceMemory, Event, Graph, PinnedMemory, Stream, Wait
from edgekiln.runtime.errors import EnvironmentProblem, MissingExtraError, UsageError

__all__ = [
    "CudaApi",
    "DeviceMemory",
    "DeviceProperties",
    "DriverState",
    "Event",
    "Graph",
    "PinnedMemory",
    "Stream",
    "Wait",
    "open_cuda",
    "probe_driver",
    "require_device",
]

_REBUILD = (
    "It was built for another CUDA, Python or numpy. Run: pip install --force-reinstall --no-cache-dir "
    "--no-binary pycuda pycuda, or pip uninstall pycuda: it is not needed."
)


class CudaApi(Protocol):
    """CUDA on one device. Any thread may call anything; every method makes the context current by itself.

    Each method raises DeviceError where CUDA fails, ResourceError where its memory runs out, and UsageError after
    ``close`` or in a process forked from the one that opened it. The primary context stays until the process
    ends, since other libraries use it too.
    """

    @property
    def name(self) -> str:
        """``pycuda`` or ``libcuda``."""

    @property
    def device(self) -> int:
        """Number of the device, from 0."""

    @property
    def properties(self) -> DeviceProperties:
        """What the device is."""

    def activate(self) -> AbstractContextManager[None]:
        """Inside, the device's primary context is current in this thread; after it, what was current before.

        May be nested; only the outermost one of a thread asks CUDA, so wrap a sequence of calls in one. What is
        called inside has to leave current what it found current. Needed around other libraries that use CUDA.
        """

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device, as CUDA counts; ``driver.free_memory`` tells what can be had."""

    def allocate_device(self, nbytes: int) -> DeviceMemory:
        """``nbytes`` of device memory, not cleared."""

    def allocate_pinned(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        """``nbytes`` of page-locked host memory, not cleared; with ``mapped`` the device can address it."""

    def create_stream(self) -> Stream:
        """A stream that does not wait for the default stream."""

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> Event:
        """An event; ``timing`` for ``elapsed_ms``, ``blocking`` to sleep rather than spin while waiting."""

    def copy_to_device(self, target: DeviceMemory, source: PinnedMemory, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy of the first ``nbytes`` and return; ``source`` must stay as it is until it is done.

        Raises:
            UsageError: ``nbytes`` is below 1 or more than either holds.
        """

    def copy_to_host(self, target: PinnedMemory, source: DeviceMemory, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy of the first ``nbytes`` and return; ``target`` holds them once ``stream`` is done.

        Raises:
            UsageError: ``nbytes`` is below 1 or more than either holds.
        """

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy between two device addresses, of this CUDA's memory or another library's, and return."""

    def wait_for(self, stream: Stream, other: int) -> None:
        """Have ``stream`` wait for all that another one holds now, by its handle: also 1 and 2, the default ones."""

    def device_of(self, address: int) -> int:
        """Number of the device that the memory at an address belongs to. Raises DeviceError for any other address."""

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record, without running it, what ``enqueue`` puts on ``stream``. Other threads may go on using CUDA.

        ``enqueue`` may not wait for the device, nor allocate. What it raises goes on, and the stream is usable.
        Python's garbage collector is held off meanwhile, in all threads: it may free what belongs to CUDA.
        """

    def close(self) -> None:
        """Free all that is not freed yet. Closing twice does nothing."""


def open_cuda(api: Literal["auto", "pycuda", "libcuda"] = "auto", device: int = 0) -> CudaApi:
    """CUDA on ``device`` through ``api``; ``auto`` is PyCUDA where it is installed, else ``libcuda``.

    ``libcuda`` is the driver's own library, which needs no package and fits any driver.

    Raises:
        DeviceError: no driver, or no such device. Asked first.
        MissingExtraError: PyCUDA was asked for and is not installed.
        EnvironmentProblem: PyCUDA is installed and cannot be imported. ``libcuda`` is not taken instead.
        UsageError: ``api`` is none of the three.
    """
    if api not in ("auto", "pycuda", "libcuda"):
        raise UsageError(f"Unknown CUDA API {api!r}; known: auto, pycuda, libcuda.")
    properties = require_device(device)
    name = _choose(api)
    if name == "pycuda":
        _import_pycuda()
    return _open(name, device, properties)


def _choose(api: str) -> str:
    if api == "libcuda":
        return api
    if find_spec("pycuda") is not None:
        return "pycuda"
    if api == "auto":
        return "libcuda"
    raise MissingExtraError(
        "The package pycuda is not installed.",
        hint="Run: pip install 'edgekiln[pycuda]', or ask for libcuda, which needs no package.",
    )


def _import_pycuda() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyCUDA's, ahead of the ImportError that tells more
            importlib.import_module("pycuda.driver")
    except Exception as error:  # a compiled module that does not fit raises anything
        raise EnvironmentProblem(
            f"pycuda is installed and cannot be imported: {error}", hint=_REBUILD
        ) from error


def _open(name: str, device: int, properties: DeviceProperties) -> CudaApi:
    if name == "pycuda":
        from edgekiln.runtime.cuda.pycuda import PycudaApi

        return PycudaApi(device, properties)
    from edgekiln.runtime.cuda.libcuda import LibcudaApi

    return LibcudaApi(device, properties)
