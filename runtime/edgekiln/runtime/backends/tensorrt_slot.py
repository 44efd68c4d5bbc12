"""One slot of a TensorRT session: a stream, its pinned and device buffers, and a context and graph per batch size.

A context's shape and addresses never change after ``open``, since that would invalidate a CUDA graph captured from it
(NVIDIA/TensorRT#3798). A slot runs one call at a time, so its contexts share their working memory. It knows nothing
of sessions, threads or the library's own objects, which only ``LoadedEngine`` touches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgekiln.runtime.backends.settling import settled
from edgekiln.runtime.backends.tensorrt_buckets import choose_bucket
from edgekiln.runtime.backends.tensorrt_engine import EngineInterface, EngineProfile, LoadedEngine
from edgekiln.runtime.cuda import CudaApi, Graph, PinnedMemory, Stream, Wait
from edgekiln.runtime.cuda.arrays import DeviceFrames, read_device_frames
from edgekiln.runtime.errors import DeviceError, EngineError, ResourceError
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["CallPhases", "Slot"]


@dataclass(frozen=True, slots=True)
class CallPhases:
    """Where the milliseconds of one call go. The GPU's parts follow each other on one stream.

    Attributes:
        host_ms: frames into pinned memory and logits out of it, by the CPU.
        enqueue_ms: until the launch of the call returns to the CPU, as a graph where it runs as one.
        copy_in_ms: of the frames to the GPU; ``None`` where CPU and GPU share their memory.
        device_ms: of the engine on the GPU.
        copy_out_ms: of the logits; ``None`` as before.
    """

    host_ms: float
    enqueue_ms: float
    copy_in_ms: float | None
    device_ms: float
    copy_out_ms: float | None


@dataclass(slots=True)
class _Bucket:
    """One batch size of a slot, ready to run."""

    loaded: LoadedEngine
    context: Any
    graph: Graph | None = None


class Slot:
    """One stream with its buffers and contexts. One call at a time."""

    def __init__(
        self, cuda: CudaApi, interface: EngineInterface, plan: dict[int, EngineProfile], wait: Wait
    ) -> None:
        self._cuda, self._interface, self._plan, self._wait = cuda, interface, plan, wait
        self.max_batch = max(plan)
        self._buckets: dict[int, _Bucket] = {}
        self._sizes = sorted(plan)
        self.ungraphed: dict[int, str] = {}  # batch size to why its capture failed
        self._closers = contextlib.ExitStack()

    def open(self) -> None:
        """Allocate everything, warm every batch size up and capture its graph."""
        cuda, interface = self._cuda, self._interface
        # Where CPU and GPU share their memory (Jetson), a copy would move bytes from one place to the same place.
        mapped = cuda.properties.integrated and cuda.properties.can_map_host_memory
        self._stream: Stream = self._keep(cuda.create_stream())
        self._begin = self._keep(cuda.create_event(timing=True))
        self._end = self._keep(cuda.create_event(timing=True))
        in_bytes, out_bytes = self.max_batch * interface.frame_bytes, self.max_batch * interface.row_bytes
        self._host_in: PinnedMemory = self._keep(cuda.allocate_pinned(in_bytes, mapped=mapped))
        self._host_out: PinnedMemory = self._keep(cuda.allocate_pinned(out_bytes, mapped=mapped))
        self._device_in = None if mapped else self._keep(cuda.allocate_device(in_bytes))
        self._device_out = None if mapped else self._keep(cuda.allocate_device(out_bytes))
        size = max(served.workspace_bytes for served in self._plan.values())
        self._workspace = self._keep(cuda.allocate_device(size)) if size else None
        shape = (self.max_batch, interface.height, interface.width, 3)
        self._host_in.array[:] = 0
        self._frames = self._host_in.array.reshape(shape)
        self._logits = self._host_out.array.view(np.float32).reshape(self.max_batch, interface.classes)
        with settled(self._stream, self._wait):
            for batch in self._sizes:
                self._prepare(batch, self._plan[batch])

    def _keep(self, resource: Any) -> Any:
        self._closers.callback(getattr(resource, "free", None) or resource.close)
        return resource

    def _addresses(self) -> tuple[int, int]:
        if self._device_in is None or self._device_out is None:
            into, out = self._host_in.device_address, self._host_out.device_address
            assert into is not None
            assert out is not None  # both were allocated as mapped
            return into, out
        return self._device_in.address, self._device_out.address

    def _prepare(self, batch: int, served: EngineProfile) -> None:
        loaded = served.loaded
        bucket = self._buckets[batch] = _Bucket(
            loaded, loaded.create_context(served, batch, self._stream.handle)
        )
        self._closers.callback(setattr, bucket, "context", None)  # after its graph, before its memory
        loaded.bind(bucket.context, self._addresses(), self._workspace)
        self._enqueue(batch, bucket)  # the first run does work that cannot be captured
        self._stream.synchronize(self._wait)
        if not loaded.captures_graphs:
            bucket.graph = self._capture(batch, bucket)
        self._launch(batch)  # a graph is uploaded, or captured by the library, when it first runs
        self._stream.synchronize(self._wait)

    def _capture(self, batch: int, bucket: _Bucket) -> Graph | None:
        """A graph of one run. ``None`` where it cannot be captured: the batch then runs call by call, only slower."""
        try:
            graph: Graph = self._keep(self._cuda.capture(self._stream, lambda: self._enqueue(batch, bucket)))
        except (DeviceError, EngineError, ResourceError) as error:
            self.ungraphed[batch] = error.message
            return None
        return graph

    def _enqueue(self, batch: int, bucket: _Bucket, mark: Callable[[], None] = lambda: None) -> None:
        """Copy in, run, copy out; ``mark`` is called before, between and after these."""
        cuda, interface = self._cuda, self._interface
        mark()
        if self._device_in is not None:
            cuda.copy_to_device(self._device_in, self._host_in, batch * interface.frame_bytes, self._stream)
        mark()
        bucket.loaded.enqueue(bucket.context, self._stream.handle)
        mark()
        if self._device_out is not None:
            cuda.copy_to_host(self._host_out, self._device_out, batch * interface.row_bytes, self._stream)
        mark()

    def _launch(self, batch: int) -> None:
        bucket = self._buckets[batch]
        if bucket.graph is None:
            self._enqueue(batch, bucket)
        else:
            bucket.graph.launch(self._stream)

    def run(self, frames: Frames, logits: Logits) -> None:
        """Classify 1 to ``max_batch`` frames into ``logits``."""
        count = len(frames)
        self._frames[:count] = frames  # rows behind it hold an older batch: their answers are not read
        with settled(self._stream, self._wait):
            self._launch(choose_bucket(self._sizes, count))
            self._stream.synchronize(self._wait)
        logits[:] = self._logits[:count]

    def read(self, frames: object) -> DeviceFrames:
        """Frames of another library on the GPU, to be run here. Raises InputError where they are of another kind."""
        interface = self._interface
        return read_device_frames(frames, (interface.height, interface.width), self._cuda, self._stream)

    def run_array(self, frames: DeviceFrames, start: int, logits: Logits) -> None:
        """Classify frames that are on the GPU, from number ``start`` on, into ``logits``: as many as it has rows.

        They are copied into the slot's own buffer there, behind all that fills them, and run call by call: the graph
        begins with a copy from the host.
        """
        cuda, interface, count = self._cuda, self._interface, len(logits)
        batch = choose_bucket(self._sizes, count)
        bucket, (into, _) = self._buckets[batch], self._addresses()
        source = frames.address + start * interface.frame_bytes
        with settled(self._stream, self._wait):
            if frames.stream is not None:
                cuda.wait_for(self._stream, frames.stream)
            cuda.copy_on_device(into, source, count * interface.frame_bytes, self._stream)
            bucket.loaded.enqueue(bucket.context, self._stream.handle)
            if self._device_out is not None:
                cuda.copy_to_host(self._host_out, self._device_out, batch * interface.row_bytes, self._stream)
            self._stream.synchronize(self._wait)
        logits[:] = self._logits[:count]

    def keep_answers(self, target: int, count: int) -> None:
        """Copy the logits of the last call to a device address, and wait for it."""
        with settled(self._stream, self._wait):
            nbytes = count * self._interface.row_bytes
            self._cuda.copy_on_device(target, self._addresses()[1], nbytes, self._stream)
            self._stream.synchronize(self._wait)

    def measure_ms(self, frames: Frames) -> float:
        """GPU time of one call, from before its copy in to after its copy out.

        A call ahead of it keeps the GPU at work until the one that is timed is enqueued: else the time that the host
        takes to launch it would lie between the two events.
        """
        self._frames[: len(frames)] = frames
        batch = choose_bucket(self._sizes, len(frames))
        with settled(self._stream, self._wait):
            self._launch(batch)
            self._begin.record(self._stream)
            self._launch(batch)
            self._end.record(self._stream)
            self._end.synchronize()
        return float(self._end.elapsed_ms(self._begin))

    def measure_phases(self, frames: Frames) -> CallPhases:
        """Where the time of a call with 1 to ``max_batch`` frames goes.

        The GPU's parts are those of a call outside of any graph, which hides them; a call ahead of it keeps the GPU at
        work meanwhile, as in ``measure_ms``. How long that one takes to launch is what a call that serves takes.
        """
        with contextlib.ExitStack() as stack, settled(self._stream, self._wait):
            events = [self._cuda.create_event(timing=True) for _ in range(4)]
            for event in events:
                stack.callback(event.close)
            unused = iter(events)
            batch = choose_bucket(self._sizes, len(frames))
            begin = perf_counter_ns()
            self._frames[: len(frames)] = frames
            staged = perf_counter_ns()
            self._launch(batch)
            launched = perf_counter_ns()
            self._enqueue(batch, self._buckets[batch], lambda: next(unused).record(self._stream))
            events[-1].synchronize()
            ended = perf_counter_ns()
            self._logits[: len(frames)].copy()
            read = perf_counter_ns()
            parts = [float(last.elapsed_ms(first)) for first, last in pairwise(events)]
        copied = self._device_in is not None
        return CallPhases(
            host_ms=(staged - begin + read - ended) / 1e6,
            enqueue_ms=(launched - staged) / 1e6,
            copy_in_ms=parts[0] if copied else None,
            device_ms=parts[1],
            copy_out_ms=parts[2] if copied else None,
        )

    def close(self) -> None:
        """Free the graphs, then the contexts, then the memory that both use; a failure stops none of it.

        Every call has waited for its work, so none is under way.
        """
        self._closers.close()
