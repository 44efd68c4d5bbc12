"""A fake TensorRT that builds and inspects, for the processes that do: it stands in for ``import tensorrt`` there.

``FAKE_TENSORRT_FAULTS`` names what fails, parted by blanks. Constructors fail as those of real releases were seen to:
they log an error and return an object that wraps a null pointer, and whoever uses or drops that one dies by SIGSEGV.
Inspected without a context of set shapes, an engine of several batch sizes tells no formats, as the real one.
"""

from __future__ import annotations

import enum
import json
import os
import signal
from pathlib import Path
from typing import Any

__version__ = "10.16.1.11"
NO_DRIVER = "createInfer: Error Code 6: API Usage Error (CUDA initialization failure with error: 35.)"
FIXTURES = Path(__file__).parent / "data" / "inspector"


def fails(what: str) -> bool:
    """Whether it was told to fail."""
    return what in os.environ.get("FAKE_TENSORRT_FAULTS", "").split()


class ILogger:
    """As ``trt.ILogger``."""

    class Severity(enum.Enum):
        """As its own."""

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None:
        """For subclasses."""


class Null:
    """What wraps a null pointer: alive as long as nobody touches it."""

    def __getattr__(self, name: str) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Constructed:
    """An object of the library that a constructor gives, from its logger as the last argument."""

    def __new__(cls, *arguments: Any) -> Any:
        if fails(cls.__name__):
            arguments[-1].log(ILogger.Severity.ERROR, NO_DRIVER)
            return Null()
        if fails(f"{cls.__name__}:crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if fails(f"{cls.__name__}:type-error"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        made = super().__new__(cls)
        made.logger = arguments[-1]
        return made

    def __init__(self, *arguments: Any) -> None:
        """Nothing more."""


class Free:
    """Has whatever is set on it, and methods that do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """As its own."""

    STRONGLY_TYPED = 1


class Names:
    """An enumeration of which only the names matter."""

    def __getattr__(self, name: str) -> str:
        return name


BuilderFlag, MemoryPoolType, ProfilingVerbosity, LayerInformationFormat, LayerType = (
    Names() for _ in range(5)
)


class HardwareCompatibilityLevel:
    """As its own."""

    AMPERE_PLUS = "AMPERE_PLUS"
    if not fails("level"):  # which 10.3 has not
        SAME_COMPUTE_CAPABILITY = "SAME_COMPUTE_CAPABILITY"


if not fails("tiling"):  # which 10.3 has not
    TilingOptimizationLevel = Names()


class TensorIOMode(enum.Enum):
    """As its own."""

    NONE, INPUT, OUTPUT = range(3)


class IProgressMonitor:
    """As its own."""


class Profile(Free):
    """As ``trt.IOptimizationProfile``."""

    shapes: tuple[tuple[int, ...], ...] = ()

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Least, best and most."""
        self.shapes = shapes


class TimingCache(Free):
    """As ``trt.ITimingCache``, always empty."""

    def serialize(self) -> bytes:
        """No times."""
        return b""


class Config(Free):
    """As ``trt.IBuilderConfig``."""

    def __init__(self) -> None:
        self.profiles: list[tuple[tuple[int, ...], ...]] = []
        self.flags: set[str] = set()

    def set_flag(self, flag: str) -> None:
        """Permit something."""
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        """The index."""
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, times: bytes) -> TimingCache:
        """Of any times."""
        return TimingCache()

    def get_timing_cache(self) -> TimingCache:
        """Its own."""
        return TimingCache()

    def set_timing_cache(self, timing_cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Always of this GPU."""
        return True


class Network(Free):
    """One input and no layer."""

    num_layers = 0

    def get_input(self, index: int) -> Any:
        """The image."""
        tensor = Free()
        tensor.name, tensor.shape = "image", (-1, 32, 32, 3)
        return tensor


class Builder(Constructed):
    """As ``trt.Builder``."""

    def create_network(self, flags: int) -> Network:
        """A network."""
        return Network()

    def create_builder_config(self) -> Config:
        """Options."""
        return Config()

    def create_optimization_profile(self) -> Profile:
        """A profile."""
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        """A plan that holds its profiles; what was set on the configuration is told in the log."""
        self.logger.log(ILogger.Severity.INFO, f"config {vars(config)}")
        if "SPARSE_WEIGHTS" in config.flags and not fails("dense"):
            self.logger.log(ILogger.Severity.INFO, "(Sparsity) Found 2 layer(s) eligible, chose 1.")
        if fails("build"):
            self.logger.log(ILogger.Severity.ERROR, "Could not find any implementation for node /a/Conv.")
            return None
        return json.dumps(config.profiles).encode()


class OnnxParser(Constructed):
    """As ``trt.OnnxParser``."""

    def parse(self, model: bytes) -> bool:
        """Always."""
        return True


class Runtime(Constructed):
    """As ``trt.Runtime``."""

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        """``None`` where it fails."""
        if fails("engine"):
            self.logger.log(ILogger.Severity.ERROR, "the plan is of another device")
            return None
        return Engine(self.logger, json.loads(plan))


class Engine:
    """As ``trt.ICudaEngine``, with one input and one output."""

    num_io_tensors = 2

    def __init__(self, logger: ILogger, profiles: list[list[list[int]]]) -> None:
        self.logger, self.profiles = logger, [[tuple(shape) for shape in shapes] for shapes in profiles]
        self.shapes = self.profiles[0]
        self.dynamic = len(profiles) > 1 or self.shapes[0] != self.shapes[2]

    @property
    def num_optimization_profiles(self) -> int:
        """A static engine has one too."""
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        """Its name."""
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input or output."""
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """With -1 where the profile leaves it open."""
        return (-1 if self.dynamic else self.shapes[0][0], *self.shapes[0][1:])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Of the input alone."""
        assert name == "image"
        return self.profiles[profile_index] if self.dynamic else [(), (), ()]

    def create_execution_context(self) -> Any:
        """``None`` where there is no memory."""
        if fails("context"):
            self.logger.log(ILogger.Severity.ERROR, "Requested amount of GPU memory could not be allocated.")
            return None
        return Context(self)

    def create_engine_inspector(self) -> Any:
        """``None`` where it fails."""
        return None if fails("inspector") else Inspector(self)


class Context:
    """As ``trt.IExecutionContext``, what an inspector needs of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shape: tuple[int, ...] | None = None if engine.dynamic else engine.shapes[0]

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Shapes belong to their profile: they must be set anew."""
        if fails("profile"):
            return False
        self.profile, self.shape = profile_index, None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Of the input."""
        if fails("shape"):
            return False
        self.shape = shape
        return True


class Inspector:
    """As ``trt.EngineInspector``."""

    execution_context: Context | None = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, kind: str) -> str:
        """Formats are told for the shape that kernels were chosen for, or where there is one shape only.

        All profiles' layers are listed, those of the second with names as real plans of TensorRT-RTX have them; formats
        are told of the context's profile alone.
        """
        if fails("text"):
            return ""
        context = self.execution_context
        layers = []
        for index, shapes in enumerate(self.engine.profiles):
            here = context is not None and (context.profile, context.shape) == (index, shapes[1])
            told = here or not self.engine.dynamic
            document = json.loads((FIXTURES / f"v10_{'fp16' if told else 'dynamic_shapes'}.json").read_text())
            mark = f" [profile {index}]" if index else ""
            layers += [{**layer, "Name": layer["Name"] + mark} for layer in document["Layers"]]
        return json.dumps({**document, "Layers": layers})
