"""A fake TensorRT run-time on ``FakeCuda``, for tests on machines without a GPU: onnxruntime computes its answers.

It offers the part of the API that edgekiln's session uses, in four flavours: ``10.3`` (no runtime configuration),
``11.4``, ``lean`` (11.4 that only runs) and ``rtx``. Its engines are a plan's header and an ONNX model. Where the real
library would crash or answer wrongly, it raises ``FakeTensorRTFault``, which nothing in edgekiln catches.
"""

from __future__ import annotations

import enum
import json
import operator
import struct
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import FakeCuda
from trt_surface import FLAVOURS

__all__ = ["FakeTensorRT", "FakeTensorRTFault", "make_engine", "make_header"]

VERSIONS = {flavour.name: flavour.version for flavour in FLAVOURS}
MAGICS = {"10.3": b"ftrt", "11.4": b"ftrt", "lean": b"ftrt", "rtx": b"vtrt"}
DEFAULT_MASK = 0x3E  # of TensorRT-RTX: every compute capability but Turing's
WORKSPACE = 512
HEADER = 64
RTX_KERNELS = b"kernels of the fake RTX"


class FakeTensorRTFault(AssertionError):
    """What a real library would answer with a crash, a hang or wrong results."""


def make_header(
    flavour: str, version: tuple[int, int, int, int] | None = None, mask: int = DEFAULT_MASK
) -> bytes:
    """The first 64 bytes of a plan of a flavour, by default of the version that the fake has."""
    if version is None:
        numbers = [int(part) for part in VERSIONS[flavour].split(".")]
        version = (*numbers, 0, 0, 0, 0)[:4]
    head = bytearray(HEADER)
    head[:4] = MAGICS[flavour]
    head[24:28] = bytes(version)
    if flavour == "rtx":
        struct.pack_into("<I", head, 32, mask)
    return bytes(head)


def make_engine(
    model: bytes,
    flavour: str,
    batch: tuple[int, int] | Sequence[tuple[int, int, int]] = (1, 4),
    *,
    workspace: int | Sequence[int] = WORKSPACE,
    header: bytes = b"",
) -> bytes:
    """An engine of the fake: header, length of what follows, profiles with working memory, ONNX model.

    ``batch`` is the range of its one profile, tuned for the largest, or (min, opt, max) of each of several.
    """
    several = batch if isinstance(batch[0], Sequence) else [(batch[0], batch[1], batch[1])]
    sizes = [workspace] * len(several) if isinstance(workspace, int) else workspace
    about = json.dumps({"profiles": several, "workspace": sizes}).encode()
    return (header or make_header(flavour)) + struct.pack("<I", len(about)) + about + model


# ------------------------------------------------------------------------------------------- enumerations


class Severity(enum.Enum):
    """As ``trt.ILogger.Severity``."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class TensorIOMode(enum.Enum):
    """As ``trt.TensorIOMode``."""

    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    """As ``trt.DataType``, what the tests need of it."""

    FLOAT, HALF, INT32, UINT8 = range(4)


class ExecutionContextAllocationStrategy(enum.Enum):
    """As ``trt.ExecutionContextAllocationStrategy``."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(enum.Enum):
    """As ``trt.CudaGraphStrategy`` of TensorRT-RTX."""

    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    """As the one of TensorRT-RTX."""

    LAZY, EAGER, NONE = range(3)


class ILogger:
    """As ``trt.ILogger``: to be subclassed, and its constructor to be called."""

    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._constructed = True


class IProfiler:
    """As ``trt.IProfiler``: to be subclassed, and its constructor to be called."""

    def __init__(self) -> None:
        self._constructed = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Told of each layer of a run."""


LAYER_TIMES = (
    ("Reformatting CopyNode for Input Tensor 0 to /stem/Conv", 0.25),
    ("/stem/Conv", 1.0),
    ("/fc/Gemm", 0.5),
)
"""What a profiler is told of every run, ms; the second run of a context takes twice that, the third three times."""

TYPES = {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF}


# ------------------------------------------------------------------------------------------- the library


class FakeTensorRT:
    """One fake library, bound to one fake CUDA.

    Attributes:
        module: what stands in for ``import tensorrt``.
        calls: how often each method was called, by its name; ``Runtime`` for its construction.
        fail_at: name of such a method to the number, from 1, of the call that fails in the library's own way.
        fail_words: what a call that was told to fail says to the logger.
        alive: contexts, engines and runtimes that are not destroyed.
        destroyed_unprotected: what was destroyed where no CUDA context was current.
        own_memory: bytes of working memory that live contexts allocated for themselves.
        no_cuda: what the library says where CUDA does not start; its ``Runtime`` then is hollow, as the bindings of
            10.16 and 11.4 make it, and may be neither used nor freed.
        hollow_freed: how many such objects were freed, which ends a real process.
    """

    def __init__(self, cuda: FakeCuda, flavour: str, fail_at: Mapping[str, int] | None = None) -> None:
        self.cuda, self.flavour = cuda, flavour
        self.fail_at = dict(fail_at or {})
        self.fail_words = "told to fail"
        self.calls: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.destroyed_unprotected: list[str] = []
        self.own_memory = 0
        self.no_cuda = ""
        self.hollow_freed = 0
        self.logger: Any = None
        self.configs: list[IRuntimeConfig] = []
        self.module = self._make_module()

    def _make_module(self) -> ModuleType:
        classes: dict[str, type] = {
            "Runtime": type("Runtime", (Runtime,), {"_library": self}),
            "ICudaEngine": ICudaEngine if self.flavour == "10.3" else ConfigurableEngine,
            "IExecutionContext": IExecutionContext,
        }
        for kind in (ILogger, IProfiler, TensorIOMode, DataType, ExecutionContextAllocationStrategy):
            classes[kind.__name__] = kind
        if self.flavour in ("11.4", "lean"):
            classes["IRuntimeConfig"] = IRuntimeConfig
        if self.flavour == "rtx":
            classes["IRuntimeConfig"] = RtxRuntimeConfig
            for kind in (IRuntimeCache, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy):
                classes[kind.__name__] = kind
        module = ModuleType(f"fake_tensorrt_{self.flavour.replace('.', '_')}", "A fake.")
        vars(module).update(classes, __version__=VERSIONS[self.flavour])
        return module

    def enter(self, method: str) -> bool:
        """Count a call, see that CUDA is active, and tell whether the call may succeed."""
        if not self.cuda.active:
            raise FakeTensorRTFault(f"{method} was called where no CUDA context is current")
        self.calls[method] += 1
        if self.fail_at.get(method) != self.calls[method]:
            return True
        self.error(f"{method}: {self.fail_words}")
        return False

    def error(self, text: str) -> None:
        """Say something to the logger, as an error."""
        self.logger.log(Severity.ERROR, text)

    def integer(self, value: Any, what: str) -> int:
        """Old bindings take ints only, newer ones whatever has an index."""
        if self.flavour == "10.3" and type(value) is not int:
            raise TypeError(f"{what}: incompatible function arguments: {type(value).__name__}")
        return operator.index(value)


class Native:
    """Something that the library owns memory for, and that is destroyed with its last reference."""

    def __init__(self, library: FakeTensorRT) -> None:
        self._library = library
        library.alive[type(self).__name__] += 1

    def __del__(self) -> None:
        if "_library" not in vars(self):
            return  # its construction failed
        library = self._library
        library.alive[type(self).__name__] -= 1
        library.own_memory -= getattr(self, "_own_memory", 0)
        if not library.cuda.active:
            library.destroyed_unprotected.append(type(self).__name__)


class Runtime(Native):
    """As ``trt.Runtime``."""

    _library: FakeTensorRT

    def __init__(self, logger: Any) -> None:
        library = self._library
        if not isinstance(logger, ILogger) or not getattr(logger, "_constructed", False):
            raise TypeError("incompatible constructor arguments: no ILogger")
        library.logger = logger
        if library.no_cuda:
            library.error(library.no_cuda)
            vars(self)["told"] = library
            self.__class__ = HollowRuntime  # type: ignore[assignment] # its layout is the same
            return
        if not library.enter("Runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        super().__init__(library)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """``None``, and words in the log, for what is no engine of this library."""
        library = self._library
        if not library.enter("deserialize_cuda_engine"):
            return None
        if serialized_engine[:4] != MAGICS[library.flavour] or len(serialized_engine) <= HEADER + 4:
            library.error("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.")
            return None
        (length,) = struct.unpack_from("<I", serialized_engine, HEADER)
        try:
            about = json.loads(serialized_engine[HEADER + 4 : HEADER + 4 + length])
            model = _load_model(serialized_engine[HEADER + 4 + length :])
        except Exception as error:
            library.error(f"Deserialization failed: {type(error).__name__}")
            return None
        return library.module.ICudaEngine(self, about, model)


class HollowRuntime:
    """What the bindings of 10.16 and 11.4 return where CUDA does not start: an object around no object."""

    def __getattr__(self, name: str) -> Any:
        raise FakeTensorRTFault(f"{name} of a hollow Runtime was used")

    def __del__(self) -> None:
        vars(self)["told"].hollow_freed += 1


@cache  # threads may share a session of onnxruntime, and so may engines
def _load_model(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# ------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Tensor:
    """One input or output; the first dimension is -1 where the engine takes several batch sizes."""

    name: str
    mode: TensorIOMode
    dtype: DataType
    shape: tuple[int, ...]


class ICudaEngine(Native):
    """As ``trt.ICudaEngine`` of TensorRT 10.3."""

    def __init__(self, runtime: Runtime, about: dict[str, Any], model: Any) -> None:
        super().__init__(runtime._library)
        self._runtime = runtime
        self._model = model
        self._profiles = [tuple(sizes) for sizes in about["profiles"]]
        self._workspace = about["workspace"]
        low, _, high = self._profiles[0]
        first = low if low == high and len(self._profiles) == 1 else -1
        ends = [(TensorIOMode.INPUT, value) for value in model.get_inputs()]
        ends += [(TensorIOMode.OUTPUT, value) for value in model.get_outputs()]
        self._tensors = [
            Tensor(value.name, mode, TYPES[value.type], (first, *value.shape[1:])) for mode, value in ends
        ]

    def _find(self, name: str) -> Tensor:
        return next(tensor for tensor in self._tensors if tensor.name == name)

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        self._library.enter("num_io_tensors")
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        """Working memory of a context, in bytes: the most that a profile needs."""
        self._library.enter("device_memory_size_v2")
        return max(self._workspace)

    @property
    def num_optimization_profiles(self) -> int:
        """A static engine has one too."""
        self._library.enter("num_optimization_profiles")
        return len(self._profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """Working memory of a context of that profile, in bytes."""
        self._library.enter("get_device_memory_size_for_profile_v2")
        return self._workspace[profile_index]

    def get_tensor_name(self, index: int) -> str:
        """Inputs come first."""
        self._library.enter("get_tensor_name")
        return self._tensors[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input or output."""
        self._library.enter("get_tensor_mode")
        return self._find(name).mode

    def get_tensor_dtype(self, name: str) -> DataType:
        """Its type."""
        self._library.enter("get_tensor_dtype")
        return self._find(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Its shape, with -1 for what the profile leaves open."""
        self._library.enter("get_tensor_shape")
        return self._find(name).shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Least, best and most; a static engine has no profile, and nothing is known of it."""
        self._library.enter("get_tensor_profile_shape")
        first, *rest = self._find(name).shape
        if first > 0 or not 0 <= profile_index < len(self._profiles):
            return [(), (), ()]
        return [(size, *rest) for size in self._profiles[profile_index]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        """``None``, and words in the log, where it fails."""
        if not self._library.enter("create_execution_context"):
            return None
        return IExecutionContext(self, strategy)


class ConfigurableEngine(ICudaEngine):
    """As ``trt.ICudaEngine`` of TensorRT 10.13 and later."""

    def create_runtime_config(self) -> IRuntimeConfig | None:
        """Settings of contexts."""
        library = self._library
        if not library.enter("create_runtime_config"):
            return None
        config = library.module.IRuntimeConfig(library)
        library.configs.append(config)
        return config

    def create_execution_context(  # the two overloads of the bindings
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
        *,
        runtime_config: IRuntimeConfig | None = None,
    ) -> IExecutionContext | None:
        """As above; a configuration holds the strategy."""
        return super().create_execution_context(runtime_config._strategy if runtime_config else strategy)


class IRuntimeConfig:
    """As ``trt.IRuntimeConfig`` of TensorRT."""

    def __init__(self, library: FakeTensorRT) -> None:
        self._library = library
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        """Who gives a context its working memory."""
        self._library.enter("set_execution_context_allocation_strategy")
        self._strategy = strategy


class RtxRuntimeConfig(IRuntimeConfig):
    """As ``trt.IRuntimeConfig`` of TensorRT-RTX."""

    def __init__(self, library: FakeTensorRT) -> None:
        super().__init__(library)
        self._graphs = CudaGraphStrategy.DISABLED
        self._kernels = DynamicShapesKernelSpecializationStrategy.LAZY
        self._cache: IRuntimeCache | None = None

    @property
    def cuda_graph_strategy(self) -> CudaGraphStrategy:
        """Whether contexts capture graphs of their own."""
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: CudaGraphStrategy) -> None:
        self._graphs = CudaGraphStrategy(value)

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> DynamicShapesKernelSpecializationStrategy:
        """When kernels are compiled."""
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(
        self, value: DynamicShapesKernelSpecializationStrategy
    ) -> None:
        self._kernels = DynamicShapesKernelSpecializationStrategy(value)

    def create_runtime_cache(self) -> IRuntimeCache | None:
        """An empty cache."""
        return IRuntimeCache(self._library) if self._library.enter("create_runtime_cache") else None

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        """Let contexts use it."""
        self._cache = cache
        return self._library.enter("set_runtime_cache")


class IRuntimeCache:
    """As ``trt.IRuntimeCache`` of TensorRT-RTX."""

    def __init__(self, library: FakeTensorRT) -> None:
        self._library = library

    def deserialize(self, blob: bytes) -> bool:
        """``False`` for what another library or GPU wrote."""
        return self._library.enter("deserialize") and bytes(blob) == RTX_KERNELS

    def serialize(self) -> memoryview | None:
        """What was compiled; the real one is an ``IHostMemory``, a buffer."""
        return memoryview(RTX_KERNELS) if self._library.enter("serialize") else None


# ------------------------------------------------------------------------------------------- contexts


class IExecutionContext(Native):
    """As ``trt.IExecutionContext``."""

    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        super().__init__(engine._library)
        self._engine, self._strategy = engine, strategy
        managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._own_memory = 0 if managed else max(engine._workspace)
        self._library.own_memory += self._own_memory
        self._generation = 0
        self._batch: int | None = None
        self._profile = 0
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._profiler: IProfiler | None = None
        self._emits = True
        self._runs = 0
        self._untold = False

    @property
    def profiler(self) -> IProfiler | None:
        """Told of the layers of each run."""
        return self._profiler

    @profiler.setter
    def profiler(self, value: IProfiler) -> None:
        if not isinstance(value, IProfiler) or not getattr(value, "_constructed", False):
            raise TypeError("incompatible function arguments: no IProfiler")
        self._profiler = value

    @property
    def enqueue_emits_profile(self) -> bool:
        """Whether ``execute_async_v3`` waits, and tells; else ``report_to_profiler`` does."""
        return self._emits

    @enqueue_emits_profile.setter
    def enqueue_emits_profile(self, value: bool) -> None:
        self._emits = value

    def report_to_profiler(self) -> bool:
        """Tell of the run before; ``False`` where there is none to tell of."""
        if not self._library.enter("report_to_profiler") or self._profiler is None or not self._untold:
            return False
        self._untold = False
        for name, ms in LAYER_TIMES:
            self._profiler.report_layer_time(name, ms * self._runs)
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """``False`` for a profile that is none. A shape belongs to its profile: it must be set anew."""
        library = self._library
        index, handle = (
            library.integer(value, "set_optimization_profile_async")
            for value in (profile_index, stream_handle)
        )
        if not library.enter("set_optimization_profile_async"):
            return False
        if handle == 0:
            raise FakeTensorRTFault("a profile was chosen on the default stream")
        if not 0 <= index < len(self._engine._profiles):
            library.error(f"Profile index {index} is out of range.")
            return False
        self._generation += 1
        self._profile, self._batch = index, None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """``False``, and words in the log, for a shape beyond the profile."""
        library, engine = self._library, self._engine
        if not library.enter("set_input_shape"):
            return False
        low, _, high = engine._profiles[self._profile]
        if tuple(shape[1:]) != engine._find(name).shape[1:] or not low <= shape[0] <= high:
            library.error(f"Set dimension {tuple(shape)} for tensor {name} does not satisfy the profile.")
            return False
        self._generation += 1
        self._batch = shape[0]
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor is."""
        memory = self._library.integer(memory, "set_tensor_address")
        if not self._library.enter("set_tensor_address"):
            return False
        self._generation += 1
        self._addresses[self._engine._find(name).name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        """Working memory, for a context that has none of its own."""
        library = self._library
        memory, size = (
            library.integer(memory, "set_device_memory"),
            library.integer(size, "set_device_memory"),
        )
        if library.enter("set_device_memory"):
            self._generation += 1
            self._memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue a run. ``False``, and words in the log, where something is missing."""
        library = self._library
        handle = library.integer(stream_handle, "execute_async_v3")
        missing = self._missing()
        if not library.enter("execute_async_v3") or missing:
            library.error(f"enqueueV3: {missing or library.fail_words}")
            return False
        if handle == 0:
            raise FakeTensorRTFault("the default stream is slow and cannot be captured")
        self._runs += 1
        if self._profiler is not None:
            self._refuse_graphs(handle)
            self._untold = True
        if library.cuda.enqueue(handle, _Run(self, handle)) is False:  # a driver that was made to fail
            library.error("enqueueV3: Cuda Runtime (unknown error)")
            return False
        return True

    def _refuse_graphs(self, handle: int) -> None:
        configs = self._library.configs
        by_library = any(
            getattr(c, "_graphs", None) is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE for c in configs
        )
        if by_library or self._library.cuda.is_capturing(handle):
            raise FakeTensorRTFault("a profiler sees nothing of a captured graph")

    def _missing(self) -> str:
        if self._batch is None:
            return "input dimensions are not specified"
        if len(self._addresses) < len(self._engine._tensors):
            return "an address is not set"
        if self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED:
            size = self._engine._workspace[self._profile]
            if size and (self._memory is None or self._memory[1] < size):
                return f"{size} bytes of device memory are not set"
        return ""


class _Run:
    """Work of a stream: one run of an engine, at the addresses of its context when it was enqueued."""

    def __init__(self, context: IExecutionContext, handle: int) -> None:
        engine = context._engine
        self.context = weakref.ref(context)
        self.library, self.handle = context._library, handle
        self.generation, self.batch = context._generation, context._batch
        self.captured = self.library.cuda.is_capturing(handle)
        self.ends = [(tensor, context._addresses[tensor.name]) for tensor in engine._tensors]
        self.memory = context._memory

    def __call__(self) -> None:
        context = self.context()
        if context is None:
            raise FakeTensorRTFault("a context was destroyed before its work was done")
        if self.captured and context._generation != self.generation:
            raise FakeTensorRTFault("a graph is replayed whose context was changed after the capture")
        self._check_alone()
        if self.memory is not None:
            self._view(*self.memory)[:] = 0xEE  # and it must be there
        (given,) = [pair for pair in self.ends if pair[0].mode is TensorIOMode.INPUT]
        (wanted,) = [pair for pair in self.ends if pair[0].mode is TensorIOMode.OUTPUT]
        shape = (self.batch, *given[0].shape[1:])
        frames = self._view(given[1], int(np.prod(shape))).reshape(shape)
        (answer,) = context._engine._model.run(None, {given[0].name: frames})
        raw = np.ascontiguousarray(answer).view(np.uint8).reshape(-1)
        self._view(wanted[1], raw.size)[:] = raw

    def _view(self, address: int, nbytes: int) -> Any:
        return self.library.cuda.view(address, nbytes)

    def _resources(self) -> set[object]:
        """What only one run at a time may use."""
        memory = {("memory", self.memory[0])} if self.memory is not None else set()
        return {("context", id(self.context())), *memory, *(("tensor", address) for _, address in self.ends)}

    def _check_alone(self) -> None:
        """Work that waits on another stream could be running at this moment."""
        for handle, works in list(self.library.cuda._queues.items()):
            for work in list(works):
                if handle != self.handle and isinstance(work, _Run) and work._resources() & self._resources():
                    shared = sorted(kind for kind, _ in work._resources() & self._resources())
                    raise FakeTensorRTFault(f"runs on two streams share {', '.join(shared)}")
