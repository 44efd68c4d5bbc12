"""One TensorRT engine: deserialized, its input and output read, and its execution contexts made and run.

All calls of the library's engines and contexts stand here. It knows nothing of streams, buffers or graphs: a context
is given addresses, and a stream by its handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from edgekiln.runtime.backends.tensorrt_errors import REBUILD, convert_refusal
from edgekiln.runtime.backends.tensorrt_library import LibraryLog, refuse_hollow, start_library
from edgekiln.runtime.cuda import DeviceMemory
from edgekiln.runtime.errors import EdgekilnError, EngineError

__all__ = ["EngineInterface", "EngineProfile", "LoadedEngine", "create_runtime"]

_OTHER_RELEASE = (
    "The words after the colon are the library's own; another release of it, or an engine built anew, may do."
)


@dataclass(frozen=True, slots=True)
class EngineInterface:
    """Names and shape of the one input and the one output."""

    input: str
    output: str
    height: int
    width: int
    classes: int

    @property
    def frame_bytes(self) -> int:
        """Of one uint8 frame."""
        return self.height * self.width * 3

    @property
    def row_bytes(self) -> int:
        """Of one float32 row of logits."""
        return self.classes * 4


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One optimization profile of an engine: batch sizes with kernels of their own.

    Attributes:
        loaded: the engine, which does not hold its profiles: it would outlive a failure to open it.
        index: of the profile in its engine.
        workspace_bytes: working memory that a context of it needs from us, for its largest batch.
    """

    loaded: LoadedEngine
    index: int
    min_batch: int
    opt_batch: int
    max_batch: int
    workspace_bytes: int


def create_runtime(trt: ModuleType, log: LibraryLog) -> Any:
    """The library's ``Runtime``, which deserializes engines.

    Raises:
        DeviceError: CUDA does not start: no driver, one that is too old, or no device.
        EnvironmentProblem: the library does not start.
    """
    return start_library(trt, log, lambda: trt.Runtime(log.logger))


class LoadedEngine:
    """One deserialized engine, what it takes and gives, and how its contexts are made."""

    def __init__(self, trt: ModuleType, log: LibraryLog, runtime: Any, data: bytes) -> None:
        self._trt, self._log = trt, log
        mark = log.mark()
        engine = refuse_hollow(runtime.deserialize_cuda_engine(data))
        if engine is None:
            raise self._refusal(f"{trt.__name__} {trt.__version__} refused this engine", mark, REBUILD)
        self.engine = engine
        self.interface = self._read_interface()
        self.runtime_config = self._configure()

    def _read_interface(self) -> EngineInterface:
        trt, engine = self._trt, self.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        if len(inputs) == 1 and len(outputs) == 1:
            frame, row = tuple(engine.get_tensor_shape(inputs[0])), tuple(engine.get_tensor_shape(outputs[0]))
            types = engine.get_tensor_dtype(inputs[0]), engine.get_tensor_dtype(outputs[0])
            right = types == (trt.DataType.UINT8, trt.DataType.FLOAT)
            if right and len(frame) == 4 and frame[3] == 3 and len(row) == 2 and min(frame[1:] + row[1:]) > 0:
                return EngineInterface(inputs[0], outputs[0], frame[1], frame[2], row[1])
        told = ", ".join(
            f"{n}: {engine.get_tensor_dtype(n)} {tuple(engine.get_tensor_shape(n))}" for n in names
        )
        raise EngineError(
            f"The engine has [{told}], wanted one uint8 (N, H, W, 3) input and one float32 (N, C) output.",
            hint=REBUILD,
        )

    def read_profiles(self) -> list[EngineProfile]:
        """Its optimization profiles; a static engine counts as one."""
        engine, name = self.engine, self.interface.input
        batch = int(engine.get_tensor_shape(name)[0])
        if batch > 0:  # it needs no profile, and may have none
            return [EngineProfile(self, 0, batch, batch, batch, int(engine.device_memory_size_v2))]
        profiles = []
        for index in range(engine.num_optimization_profiles):
            least, best, most = (int(shape[0]) for shape in engine.get_tensor_profile_shape(name, index))
            needed = int(engine.get_device_memory_size_for_profile_v2(index))
            profiles.append(EngineProfile(self, index, least, best, most, needed))
        return profiles

    def _configure(self) -> Any:
        """Settings of the contexts, where this library has such; TensorRT-RTX's own graphs are switched on here.

        Contexts get their working memory from us: each of them would allocate the most that it may ever need.
        """
        engine, trt = self.engine, self._trt
        if not hasattr(engine, "create_runtime_config"):
            return None
        mark = self._log.mark()
        runtime_config = refuse_hollow(engine.create_runtime_config())
        if runtime_config is None:
            raise self._refusal("The engine gave no configuration for its contexts", mark)
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        runtime_config.set_execution_context_allocation_strategy(managed)
        if hasattr(runtime_config, "cuda_graph_strategy"):
            runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # Lazy specialization would compile in the background while a product serves.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        return runtime_config

    @property
    def captures_graphs(self) -> bool:
        """Whether the library captures CUDA graphs itself."""
        return hasattr(self.runtime_config, "cuda_graph_strategy")

    def create_context(self, served: EngineProfile, batch: int, stream: int) -> Any:
        """An execution context for one batch size, whose profile and shape are set for good.

        Args:
            served: a profile of this engine.
            batch: in its range.
            stream: handle of the stream that the context will run on; choosing a profile puts work on it.
        """
        engine, mark = self.engine, self._log.mark()
        if hasattr(engine, "create_runtime_config"):
            context = engine.create_execution_context(runtime_config=self.runtime_config)
        else:
            managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy=managed)
        if refuse_hollow(context) is None:
            raise self._refusal(f"No execution context for batch {batch}", mark)
        if engine.num_optimization_profiles > 1:  # else a new context has the only one
            chosen = context.set_optimization_profile_async(served.index, int(stream))
            self.demand(chosen, f"profile {served.index}", mark)
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
        """Put one run of a context on a stream, by its handle, and return."""
        mark = self._log.mark()
        self.demand(context.execute_async_v3(int(stream)), "to run", mark)

    def demand(self, granted: bool, what: str, mark: int) -> None:
        """TensorRT tells of failure by ``False``, and of its reason in its log."""
        if not granted:
            raise self._refusal(f"The engine refused {what}", mark)

    def _refusal(self, told: str, mark: int, hint: str = _OTHER_RELEASE) -> EdgekilnError:
        """The error for what the library said since ``mark``."""
        return convert_refusal(told, self._log.errors_since(mark), hint)

    def close(self) -> None:
        """Let the engine go; its contexts are gone before."""
        self.runtime_config = self.engine = None
