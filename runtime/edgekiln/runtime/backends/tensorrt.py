"""TensorRT, TensorRT-lean and TensorRT-RTX engines behind ``Session``: no allocation and no address change per call.

An engine is shared; each of its slots has one stream, one set of pinned and device buffers, and one execution context
per batch size (bucket), since changing a context's shape invalidates a CUDA graph captured from it
(NVIDIA/TensorRT#3798). A slot runs one call at a time, so its contexts share their working memory. With TensorRT a
call is one launch of a graph [copy in, run, copy out]; TensorRT-RTX captures graphs by itself.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.backends.engine_header import (
    HEADER_BYTES,
    EngineHeader,
    Flavour,
    explain_refusal,
    read_engine_header,
)
from edgekiln.runtime.backends.kernel_cache import KernelCache
from edgekiln.runtime.backends.tensorrt_library import LibraryLog, import_tensorrt, library_log
from edgekiln.runtime.cuda import CudaApi, DeviceMemory, Graph, PinnedMemory, Stream, Wait, open_cuda
from edgekiln.runtime.errors import (
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ResourceError,
    UsageError,
)
from edgekiln.runtime.spec import Frames, Logits, check_finite, check_frames

__all__ = ["TensorRTSession"]

DEFAULT_SLOTS = 2
"""One call copies on the host while another runs on the GPU; more only cost memory."""

# What TensorRT says of an engine of another version or GPU (texts of its plan reader, 10.x to 11.x and RTX).
_FOREIGN = re.compile(
    r"not compatible with this version|incompatible device|compute capability", re.IGNORECASE
)
_REBUILD = "Build it here from the bundle's ONNX file: edgekiln build BUNDLE --data FOLDER --out DIR"


class TensorRTSession:
    """Engines of one model, for one or several batch sizes. See ``Session``; safe from any number of threads."""

    def __init__(
        self,
        engines: Sequence[bytes],
        *,
        flavour: Flavour,
        slots: int = DEFAULT_SLOTS,
        wait: Wait = "spin",
        cuda: CudaApi | None = None,
        trt: ModuleType | None = None,
    ) -> None:
        """Load engines, whose digests the caller has checked, and warm all their batch sizes up.

        Args:
            engines: one engine with a batch range, or one per batch size.
            flavour: the library that built them.
            slots: calls that may run at once.
            wait: ``spin`` for the lowest latency, ``blocking`` to leave the core to others.
            cuda: CUDA to use, which the caller closes after the session; the session's own where ``None``.
            trt: the library; found where ``None``.

        Raises:
            DeviceError: no driver or GPU, or the engine was built for another library version or GPU.
            MissingExtraError: the library, or both of PyCUDA and cuda-bindings, are not installed.
            EngineError: the library refused the engine, or it is no classifier of edgekiln's.
            ResourceError: GPU memory ran out.
            UsageError: no engine, or no slot.
        """
        headers = [read_engine_header(data[:HEADER_BYTES]) for data in engines]
        if not headers:
            raise UsageError("A session needs at least one engine, got none.")
        if slots < 1:
            raise UsageError(f"slots must be at least 1, got {slots}.")
        self._owns_cuda = cuda is None
        # The driver is asked first: without one, the library's own objects wrap null pointers and crash.
        self._cuda = open_cuda() if cuda is None else cuda
        self._idle: queue.LifoQueue[_Slot | None] = queue.LifoQueue()  # None: the session is closed
        self._all_slots: list[_Slot] = []
        self._models: list[_Loaded] = []
        self._runtime: Any = None
        self._closed = False
        self._closing = threading.Lock()
        self._flavour = flavour
        try:
            self._trt = import_tensorrt(flavour, to_build=False) if trt is None else trt
            for header in headers:
                self._refuse_foreign(header)
            self._open(engines, slots, wait)
        except BaseException:
            with contextlib.suppress(EdgekilnError):  # the first failure is the one to tell
                self._release()
            raise

    def _refuse_foreign(self, header: EngineHeader) -> None:
        here = str(self._trt.__version__)
        reason = explain_refusal(header, self._flavour, here, self._cuda.properties.compute_capability)
        if reason is not None:
            raise DeviceError(
                f"This engine will not load here, because {reason}.",
                hint=_REBUILD,
            )

    def _open(self, engines: Sequence[bytes], slots: int, wait: Wait) -> None:
        log = library_log(self._trt)
        with self._cuda.activate():
            self._runtime = _create_runtime(self._trt, log)
            for data in engines:
                self._models.append(_Loaded(self._trt, log, self._runtime, data))
            self._interface = self._models[0].interface
            if any(other.interface != self._interface for other in self._models):
                raise EngineError("These engines differ in their input or output: they are not of one model.")
            plan = _plan_buckets(self._models)
            self._buckets = tuple(sorted(plan))
            caches = [
                KernelCache(data, self._cuda.properties.name).attach(loaded.runtime_config)
                for data, loaded in zip(engines, self._models, strict=True)
                if loaded.captures_graphs
            ]
            for _ in range(slots):
                slot = _Slot(self._cuda, self._interface, plan, wait)
                self._all_slots.append(slot)
                slot.open()
                self._idle.put(slot)
            for cache in caches:
                cache.save()

    @property
    def backend(self) -> str:
        return self._flavour

    @property
    def device(self) -> str:
        return f"cuda:{self._cuda.device}"

    @property
    def threads(self) -> int | None:
        return None

    @property
    def frame_shape(self) -> tuple[int, int]:
        return self._interface.height, self._interface.width

    @property
    def num_classes(self) -> int:
        return self._interface.classes

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are run as they are; others are padded up or split."""
        return self._buckets

    def run(self, frames: Frames) -> Logits:
        check_frames(frames, *self.frame_shape)
        logits = np.empty((len(frames), self.num_classes), np.float32)
        with self._borrow() as slot:
            for start in range(0, len(frames), slot.max_batch):
                slot.run(frames[start : start + slot.max_batch], logits[start : start + slot.max_batch])
        check_finite(logits, self.backend)
        return logits

    def measure_device_ms(self, frames: Frames, calls: int) -> list[float]:
        """Milliseconds of GPU time of ``calls`` runs of one batch, copies included, between CUDA events.

        Raises:
            UsageError: no frames, or more than the largest batch size.
        """
        check_frames(frames, *self.frame_shape)
        if not 1 <= len(frames) <= self._buckets[-1]:
            raise UsageError(f"One batch has 1 to {self._buckets[-1]} frames, got {len(frames)}.")
        with self._borrow() as slot:
            return [slot.measure_ms(frames) for _ in range(calls)]

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[_Slot]:
        """A slot that no other call has, with CUDA active."""
        self._refuse_closed()
        # Activated first: a forked child is told so before it touches memory of its parent's, or waits for threads
        # that it does not have.
        with self._cuda.activate():
            slot = self._idle.get()
            if slot is None:
                self._idle.put(None)  # wakes the next one that waits
                self._refuse_closed()
            assert slot is not None
            try:
                yield slot
            finally:
                self._idle.put(slot)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UsageError("This session is closed.", hint="Load the bundle again.")

    def close(self) -> None:
        """Wait for the calls under way, refuse later ones, free everything. Closing twice does nothing."""
        with self._closing:
            if self._closed:
                return
            with self._cuda.activate():  # as in `_borrow`
                self._closed = True
                for _ in self._all_slots:
                    self._idle.get()
            self._idle.put(None)
            self._release()

    def _release(self) -> None:
        """Free the slots, then the engines, then what they ran on; a failure stops none of it."""
        with contextlib.ExitStack() as last_first:
            if self._owns_cuda:
                last_first.callback(self._cuda.close)
            last_first.enter_context(self._cuda.activate())
            last_first.callback(self._drop_engines)
            for slot in self._all_slots:
                last_first.callback(slot.close)

    def _drop_engines(self) -> None:
        self._all_slots.clear()
        while self._models:
            self._models.pop().close()
        self._runtime = None


# --------------------------------------------------------------------------------------------------------------
# Engines


@dataclass(frozen=True, slots=True)
class _Interface:
    """Names and shape of the one input and the one output."""

    input: str
    output: str
    height: int
    width: int
    classes: int

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * 3

    @property
    def row_bytes(self) -> int:
        return self.classes * 4


def _create_runtime(trt: ModuleType, log: LibraryLog) -> Any:
    mark = log.mark()
    try:
        return trt.Runtime(log.logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EnvironmentProblem(
            f"{trt.__name__} {trt.__version__} does not start: {error}: {log.errors_since(mark)}",
            hint="Its libraries may be newer than the driver allows; nvidia-smi tells what that is.",
        ) from error


class _Loaded:
    """One deserialized engine, what it takes and gives, and how its contexts are made."""

    def __init__(self, trt: ModuleType, log: LibraryLog, runtime: Any, data: bytes) -> None:
        self._trt, self._log = trt, log
        mark = log.mark()
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._refusal(f"{trt.__name__} {trt.__version__} refused this engine", mark, _REBUILD)
        self.engine = engine
        self.interface = self._read_interface()
        self.min_batch, self.max_batch = self._read_batches()
        self.runtime_config = self._configure()

    def _read_interface(self) -> _Interface:
        trt, engine = self._trt, self.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        if len(inputs) == 1 and len(outputs) == 1:
            frame, row = tuple(engine.get_tensor_shape(inputs[0])), tuple(engine.get_tensor_shape(outputs[0]))
            types = engine.get_tensor_dtype(inputs[0]), engine.get_tensor_dtype(outputs[0])
            right = types == (trt.DataType.UINT8, trt.DataType.FLOAT)
            if right and len(frame) == 4 and frame[3] == 3 and len(row) == 2 and min(frame[1:] + row[1:]) > 0:
                return _Interface(inputs[0], outputs[0], frame[1], frame[2], row[1])
        told = ", ".join(
            f"{n}: {engine.get_tensor_dtype(n)} {tuple(engine.get_tensor_shape(n))}" for n in names
        )
        raise EngineError(
            f"The engine has [{told}], wanted one uint8 (N, H, W, 3) input and one float32 (N, C) output."
        )

    def _read_batches(self) -> tuple[int, int]:
        batch = int(self.engine.get_tensor_shape(self.interface.input)[0])
        if batch > 0:  # a static engine needs no profile, and may have none
            return batch, batch
        low, _, high = self.engine.get_tensor_profile_shape(self.interface.input, 0)
        return int(low[0]), int(high[0])

    def _configure(self) -> Any:
        """Settings of the contexts, where this library has such; TensorRT-RTX's own graphs are switched on here."""
        engine, trt = self.engine, self._trt
        if not hasattr(engine, "create_runtime_config"):
            return None
        mark = self._log.mark()
        runtime_config = engine.create_runtime_config()
        if runtime_config is None:
            raise self._refusal("The engine gave no configuration for its contexts", mark)
        if hasattr(runtime_config, "cuda_graph_strategy"):
            runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # Lazy specialization would compile in the background while a product serves.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        else:
            managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            runtime_config.set_execution_context_allocation_strategy(managed)
        return runtime_config

    @property
    def captures_graphs(self) -> bool:
        """Whether the library captures CUDA graphs itself."""
        return hasattr(self.runtime_config, "cuda_graph_strategy")

    @property
    def workspace_bytes(self) -> int:
        """Working memory that a context needs from us; none where the library keeps it."""
        return 0 if self.captures_graphs else int(self.engine.device_memory_size_v2)

    def create_context(self, batch: int) -> Any:
        engine, mark = self.engine, self._log.mark()
        if hasattr(engine, "create_runtime_config"):
            context = engine.create_execution_context(runtime_config=self.runtime_config)
        else:
            managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy=managed)
        if context is None:
            raise self._refusal(f"No execution context for batch {batch}", mark)
        interface = self.interface
        shape = (batch, interface.height, interface.width, 3)
        self.demand(context.set_input_shape(interface.input, shape), f"batch {batch}", mark)
        return context

    def bind(self, context: Any, addresses: tuple[int, int], workspace: DeviceMemory | None) -> None:
        """Give a context its buffers, once."""
        mark = self._log.mark()
        for name, address in zip((self.interface.input, self.interface.output), addresses, strict=True):
            self.demand(context.set_tensor_address(name, int(address)), f"the address of {name}", mark)
        if workspace is not None:
            context.set_device_memory(int(workspace.address), int(workspace.nbytes))

    def enqueue(self, context: Any, stream: int) -> None:
        mark = self._log.mark()
        self.demand(context.execute_async_v3(int(stream)), "to run", mark)

    def demand(self, granted: bool, what: str, mark: int) -> None:
        """TensorRT tells of failure by ``False``, and of its reason in its log."""
        if not granted:
            raise self._refusal(f"The engine refused {what}", mark)

    def _refusal(self, told: str, mark: int, hint: str | None = None) -> EdgekilnError:
        """The error for what the library said since ``mark``; that memory ran out is only in its words."""
        words = self._log.errors_since(mark)
        if "outofmemory" in words.lower().replace(" ", ""):
            hint = "Fewer slots, or an engine for smaller batches, need less memory of the GPU."
            return ResourceError(f"{told}: {words}", hint=hint)
        if _FOREIGN.search(
            words
        ):  # the file is right, and of another machine: `load` may try the next variant
            return DeviceError(f"{told}: {words}", hint=_REBUILD)
        return EngineError(f"{told}: {words}", hint=hint)

    def close(self) -> None:
        """Let the engine go; its contexts are gone before."""
        self.runtime_config = self.engine = None


def _plan_buckets(models: Sequence[_Loaded]) -> dict[int, _Loaded]:
    """Batch sizes to prepare, each with the engine that runs it.

    A static engine gives its one size, a range the powers of two in it and its ends. Where two engines serve one
    size, the one with the narrower range is faster.
    """
    plan: dict[int, _Loaded] = {}
    for loaded in sorted(models, key=lambda m: m.min_batch - m.max_batch):
        powers = (2**k for k in range(loaded.max_batch.bit_length()))
        sizes = {loaded.min_batch, loaded.max_batch, *(p for p in powers if p > loaded.min_batch)}
        plan |= dict.fromkeys(sizes, loaded)
    return plan


# --------------------------------------------------------------------------------------------------------------
# Slots


@dataclass(slots=True)
class _Bucket:
    """One batch size of a slot, ready to run."""

    loaded: _Loaded
    context: Any
    graph: Graph | None = None


class _Slot:
    """One stream with its buffers and contexts. One call at a time."""

    def __init__(self, cuda: CudaApi, interface: _Interface, plan: dict[int, _Loaded], wait: Wait) -> None:
        self._cuda, self._interface, self._engines, self._wait = cuda, interface, plan, wait
        self.max_batch = max(plan)
        self._buckets: dict[int, _Bucket] = {}
        self._sizes = sorted(plan)
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
        size = max(loaded.workspace_bytes for loaded in self._engines.values())
        self._workspace = self._keep(cuda.allocate_device(size)) if size else None
        shape = (self.max_batch, interface.height, interface.width, 3)
        self._host_in.array[:] = 0
        self._frames = self._host_in.array.reshape(shape)
        self._logits = self._host_out.array.view(np.float32).reshape(self.max_batch, interface.classes)
        with self._settled():
            for batch in self._sizes:
                self._prepare(batch, self._engines[batch])

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

    def _prepare(self, batch: int, loaded: _Loaded) -> None:
        bucket = self._buckets[batch] = _Bucket(loaded, loaded.create_context(batch))
        self._closers.callback(setattr, bucket, "context", None)  # after its graph, before its memory
        loaded.bind(bucket.context, self._addresses(), self._workspace)
        self._enqueue(batch, bucket)  # the first run does work that cannot be captured
        self._stream.synchronize(self._wait)
        if not loaded.captures_graphs:
            bucket.graph = self._keep(self._cuda.capture(self._stream, lambda: self._enqueue(batch, bucket)))
        self._launch(batch)  # a graph is uploaded, or captured by the library, when it first runs
        self._stream.synchronize(self._wait)

    def _enqueue(self, batch: int, bucket: _Bucket) -> None:
        cuda, interface = self._cuda, self._interface
        if self._device_in is not None:
            cuda.copy_to_device(self._device_in, self._host_in, batch * interface.frame_bytes, self._stream)
        bucket.loaded.enqueue(bucket.context, self._stream.handle)
        if self._device_out is not None:
            cuda.copy_to_host(self._host_out, self._device_out, batch * interface.row_bytes, self._stream)

    def _launch(self, batch: int) -> None:
        bucket = self._buckets[batch]
        if bucket.graph is None:
            self._enqueue(batch, bucket)
        else:
            bucket.graph.launch(self._stream)

    def _bucket_for(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)

    def run(self, frames: Frames, logits: Logits) -> None:
        """Classify 1 to ``max_batch`` frames into ``logits``."""
        count = len(frames)
        self._frames[:count] = frames  # rows behind it hold an older batch: their answers are not read
        with self._settled():
            self._launch(self._bucket_for(count))
            self._stream.synchronize(self._wait)
        logits[:] = self._logits[:count]

    def measure_ms(self, frames: Frames) -> float:
        """GPU time of one call, from before its copy in to after its copy out."""
        self._frames[: len(frames)] = frames
        with self._settled():
            self._begin.record(self._stream)
            self._launch(self._bucket_for(len(frames)))
            self._end.record(self._stream)
            self._end.synchronize()
        return float(self._end.elapsed_ms(self._begin))

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Leave nothing under way behind a failure: it may still use what is overwritten or freed next."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(EdgekilnError):
                self._stream.synchronize(self._wait)
            raise

    def close(self) -> None:
        """Free the graphs, then the contexts, then the memory that both use; a failure stops none of it.

        Every call has waited for its work, so none is under way.
        """
        self._closers.close()
