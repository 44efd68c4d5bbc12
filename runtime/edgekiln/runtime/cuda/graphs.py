"""Graph capture through the driver itself, by the stream's handle: PyCUDA has none, and one way is enough."""

from __future__ import annotations

import contextlib

from edgekiln.runtime.cuda.driver import DeviceProperties, load_driver
from edgekiln.runtime.cuda.resources import CudaBase, Stream
from edgekiln.runtime.errors import DeviceError

__all__ = ["DriverGraphs"]


class DriverGraphs(CudaBase):
    """The graph primitives of ``CudaBase``. A token is the handle of the executable graph."""

    def __init__(self, device: int, properties: DeviceProperties) -> None:
        super().__init__(device, properties)
        self._driver = load_driver()

    def _begin_capture(self, stream: Stream) -> None:
        self._driver.begin_capture(stream.handle)

    def _end_capture(self, stream: Stream) -> int:
        graph = self._driver.end_capture(stream.handle)
        try:
            executable = self._driver.instantiate_graph(graph)
        finally:
            self._driver.destroy_graph(graph)
        self._driver.upload_graph(executable, stream.handle)
        return executable

    def _abandon_capture(self, stream: Stream) -> None:
        # A capture that CUDA had already called off ends with an error, and has no graph.
        with contextlib.suppress(DeviceError):
            graph = self._driver.end_capture(stream.handle)
            if graph:
                self._driver.destroy_graph(graph)

    def _launch(self, graph: int, stream: Stream) -> None:
        self._driver.launch_graph(graph, stream.handle)

    def _destroy_graph(self, token: int) -> None:
        self._driver.destroy_executable(token)
