"""What goes through the driver itself by the stream's handle, whatever does the rest: graphs, waits that spin, and
arrays and streams of other libraries.

PyCUDA has no graphs and wraps no foreign stream, and one way is enough.
"""

from __future__ import annotations

import ctypes
import logging
from functools import partial

from edgekiln.runtime.cuda.driver import DeviceProperties, Driver, load_driver
from edgekiln.runtime.cuda.resources import CudaBase, Stream
from edgekiln.runtime.cuda.unwinding import closed_at_last, closed_on_failure
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["DriverGraphs"]

_log = logging.getLogger(__name__)
_EVENT_DISABLE_TIMING = 2  # of cuda.h
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


class DriverGraphs(CudaBase):
    """The graph primitives of ``CudaBase``. A token is the handle of the executable graph.

    Args:
        device: number of the device.
        properties: what it is.
        driver: the driver's library, without it the system's; for tests.
    """

    def __init__(self, device: int, properties: DeviceProperties, driver: Driver | None = None) -> None:
        super().__init__(device, properties)
        self._driver = driver or load_driver()
        self.polls = self._driver.may_sleep_while_waiting(device, integrated=properties.integrated)

    def _is_done(self, stream: Stream) -> bool:
        return self._driver.is_stream_done(stream.handle)

    def _copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self._driver.call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream.handle)

    def _wait_for(self, stream: Stream, other: int) -> None:
        mark = self._driver.handle("cuEventCreate", _EVENT_DISABLE_TIMING)
        with closed_at_last(
            partial(self._driver.call, "cuEventDestroy_v2", mark)
        ):  # freed once it is reached
            self._driver.call("cuEventRecord", mark, other)
            self._driver.call("cuStreamWaitEvent", stream.handle, mark, 0)

    def _device_of(self, address: int) -> int:
        number = ctypes.c_int()
        self._driver.call("cuPointerGetAttribute", ctypes.byref(number), _DEVICE_ORDINAL, address)
        return number.value

    def _begin_capture(self, stream: Stream) -> None:
        self._driver.begin_capture(stream.handle)

    def _end_capture(self, stream: Stream) -> int:
        graph = self._driver.end_capture(stream.handle)
        with closed_on_failure() as closes:
            with closed_at_last(partial(self._driver.destroy_graph, graph)):
                executable = self._driver.instantiate_graph(graph)
                closes.append(partial(self._driver.destroy_executable, executable))
            self._driver.upload_graph(executable, stream.handle)
        return executable

    def _abandon_capture(self, stream: Stream) -> None:
        try:
            graph = self._driver.end_capture(stream.handle)
        except (
            EdgekilnError
        ) as error:  # as it should be where CUDA itself had called the capture off: no graph is left
            _log.debug("A capture was given up: %s", error)
            return
        if graph:
            self._driver.destroy_graph(graph)

    def _launch(self, graph: int, stream: Stream) -> None:
        self._driver.launch_graph(graph, stream.handle)

    def _destroy_graph(self, token: int) -> None:
        self._driver.destroy_executable(token)
