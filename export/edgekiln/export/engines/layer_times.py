"""How long each layer of an engine takes on the GPU, by the library's own profiler. For a process of its own.

The profiler sees no captured graph: layers are timed call by call, each with a wait behind it, in a context of their
own. So is the whole call that they are held against, in another context without a profiler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.backends.tensorrt_engine import EngineProfile, LoadedEngine, create_runtime
from edgekiln.runtime.backends.tensorrt_library import LibraryLog
from edgekiln.runtime.cuda import CudaApi
from edgekiln.runtime.errors import EngineError

__all__ = ["time_layers"]

_WARM_UP_CALLS = 3
_CALLS = 50


def time_layers(trt: ModuleType, log: LibraryLog, cuda: CudaApi, plan: bytes) -> dict[str, Any]:
    """Milliseconds of GPU time of each layer, at the batch size that its kernels were chosen for.

    Of an engine with several optimization profiles the first one is timed.

    Returns:
        JSON values: ``batch``, ``calls``, ``layers`` (pairs of a layer's name and its median; a name that comes more
        than once in a call has the sum), ``call_ms`` and ``profiled_ms``: medians of the call without and with the
        profiler, both without copies.

    Raises:
        EngineError: the library refuses the engine, or a call.
        DeviceError, ResourceError: of CUDA.
    """
    with cuda.activate():  # what the library made goes with the frame of the call below
        return _time_layers(trt, log, cuda, plan)


def _time_layers(trt: ModuleType, log: LibraryLog, cuda: CudaApi, plan: bytes) -> dict[str, Any]:
    runtime = create_runtime(trt, log)
    loaded = LoadedEngine(trt, log, runtime, plan)
    if hasattr(trt, "CudaGraphStrategy") and loaded.captures_graphs:  # TensorRT-RTX
        loaded.runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    with contextlib.ExitStack() as stack:
        served = loaded.read_profiles()[0]
        calls = _Calls(stack, cuda, served)
        plain = calls.time(calls.create_context())
        times = _Times()
        profiler = _make_profiler(trt, times.add)
        context = calls.create_context()
        context.profiler = profiler
        context.enqueue_emits_profile = False

        def ask() -> None:
            mark = log.mark()
            if not context.report_to_profiler():  # of the last call
                raise EngineError(f"The library tells no times of its layers: {log.errors_since(mark)}.")
            times.end_call()

        profiled = calls.time(context, after_each=ask)
    return {
        "batch": served.opt_batch,
        "calls": _CALLS,
        "layers": times.medians(),
        "call_ms": median(plain),
        "profiled_ms": median(profiled),
    }


class _Calls:
    """Buffers for the batch that a profile was built for, and the GPU's time for a context's calls on them."""

    def __init__(self, stack: contextlib.ExitStack, cuda: CudaApi, served: EngineProfile) -> None:
        def keep(resource: Any) -> Any:
            stack.callback(getattr(resource, "free", None) or resource.close)
            return resource

        self._served, self._loaded, batch = served, served.loaded, served.opt_batch
        interface = self._loaded.interface
        self._stream = keep(cuda.create_stream())
        self._begin, self._end = (keep(cuda.create_event(timing=True)) for _ in range(2))
        host = keep(cuda.allocate_pinned(batch * interface.frame_bytes))
        host.array[:] = np.random.default_rng(0).integers(0, 256, host.array.shape, np.uint8)
        self._into = keep(cuda.allocate_device(batch * interface.frame_bytes))
        self._out = keep(cuda.allocate_device(batch * interface.row_bytes))
        self._workspace = (
            keep(cuda.allocate_device(served.workspace_bytes)) if served.workspace_bytes else None
        )
        cuda.copy_to_device(self._into, host, batch * interface.frame_bytes, self._stream)
        self._stream.synchronize()

    def create_context(self) -> Any:
        """One for this batch."""
        return self._loaded.create_context(self._served, self._served.opt_batch, self._stream.handle)

    def time(self, context: Any, after_each: Callable[[], None] = lambda: None) -> list[float]:
        """Milliseconds of each call after the warm-up; ``after_each`` is called after these alone."""
        self._loaded.bind(context, (self._into.address, self._out.address), self._workspace)
        for _ in range(_WARM_UP_CALLS):
            self._run(context)
        times = []
        for _ in range(_CALLS):
            times.append(self._run(context))
            after_each()
        return times

    def _run(self, context: Any) -> float:
        self._begin.record(self._stream)
        self._loaded.enqueue(context, self._stream.handle)
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._end.elapsed_ms(self._begin))


class _Times:
    """What a profiler was told, call by call."""

    def __init__(self) -> None:
        self._call: dict[str, float] = {}
        self._calls: list[dict[str, float]] = []

    def add(self, name: str, milliseconds: float) -> None:
        self._call[name] = self._call.get(name, 0.0) + milliseconds

    def end_call(self) -> None:
        self._calls.append(self._call)
        self._call = {}

    def medians(self) -> list[tuple[str, float]]:
        names = dict.fromkeys(name for call in self._calls for name in call)
        return [(name, median(call.get(name, 0.0) for call in self._calls)) for name in names]


def _make_profiler(trt: ModuleType, add: Callable[[str, float], None]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined] # the module is found at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            add(layer_name, ms)

    return Profiler()
