"""OpenVINO on CPUs: the ONNX files that onnxruntime runs too, FP32, BF16 and INT8, in the precision that was asked for.

BF16 is the library's own way to compute an FP32 graph, on CPUs that have it: the file's metadata asks for it.

The library is never imported plainly (that would report to Intel), reads ONNX only and only what ``scan.py`` let pass.
A single image has a model of static shape to itself, which its CPU plugin plans memory and kernels for, and which may
be kept on disk (``kernel_cache.py``), and so has each batch size that the file's metadata names; other batches share
one of dynamic shape, compiled when the first of them comes. On ARM an INT8 model has that of single images alone, and
answers batches picture by picture: OpenVINO 2026.4 gives wrong logits there for dynamic batches (its FullyConnected
takes the first channel's weight scale for all).
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.arguments import check_threads
from edgekiln.runtime.backends.session_base import HomeSession, SessionFacts
from edgekiln.runtime.errors import DeviceError, EdgekilnError, EngineError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.limits import call_in_a_passing_thread
from edgekiln.runtime.onnx_files.metadata import PRECISION_KEY, read_metadata, read_static_batches
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.processes import keep_in_forks
from edgekiln.runtime.spec import DLPackArray, Frames, Logits, check_finite
from edgekiln.runtime.telemetry import hide_package, import_when_asked

__all__ = ["OpenVinoSession", "RuntimeLayer", "import_openvino", "read_layers"]

MAX_CHUNK = 64
"""Images per call of the library: bounds the memory of activations, whatever batch the caller hands in."""

_ARM = frozenset({"aarch64", "arm64"})
_NO_BF16 = (
    "Take the FP32 or INT8 variant here. On x86 BF16 needs AVX-512, and is fast with AVX-512 BF16 or AMX."
)
_CONVERTER, _TELEMETRY = "openvino.tools.ovc", "openvino_telemetry"
_importing = threading.Lock()
_log = logging.getLogger("edgekiln.runtime")


def import_openvino() -> ModuleType:
    """Import OpenVINO without its conversion tool and its telemetry.

    The tool, half of the import's time, sends an event to Google Analytics and writes an identifier below the user's
    home, both by ``openvino_telemetry``. ``openvino.convert_model`` imports it when asked for, with that hidden, for
    which it keeps a stub. Nothing is changed for a process that has imported OpenVINO already.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with _importing, hide_package(_CONVERTER), hide_package(_TELEMETRY):
        library = import_extra("openvino", "openvino")
        import_when_asked(library, "convert_model", _CONVERTER, hidden=_TELEMETRY)
        return library


class OpenVinoSession(HomeSession):
    """An ONNX file under OpenVINO: uint8 (N, H, W, 3) in, float32 (N, C) out. See ``Session``.

    Attributes:
        static_batches: batch sizes above 1 that have a model of their own, ascending.
    """

    def __init__(
        self,
        model: bytes,
        threads: int | None = None,
        allow_operators: Collection[str] = (),
        *,
        profiled: bool = False,
        keep_compiled: bool = False,
    ) -> None:
        """Load a model; with ``profiled`` its layers are timed, which slows every call."""
        check_threads(threads)
        library = import_openvino()
        allowed = frozenset(allow_operators)
        # The CPU plugin gives the thread that loads it a stack for signal handlers, and unmaps that stack when the last
        # model is freed. It takes it back from the thread only where that is the same one, and where the models went in
        # the reverse order of their coming. After a reload, or a `close` in another thread, the next signal would find
        # no memory there and end the process: Python runs its own handlers, that of Ctrl-C included, on such a stack.
        engine = call_in_a_passing_thread(
            lambda: _Engine(library, model, threads, allowed, profiled, keep_compiled),
            "edgekiln-openvino-load",
        )
        super().__init__(SessionFacts("openvino", "cpu", threads, engine.frame_shape, engine.num_classes))
        self.static_batches = engine.static_batches
        self._engine: _Engine | None = engine
        keep_in_forks(engine)

    def run(self, frames: Frames | DLPackArray) -> Logits:
        engine, frames = self._admit(self._engine, frames)
        try:
            if 0 < len(frames) <= MAX_CHUNK:
                logits = engine.answer(frames)
            else:
                parts = (engine.answer(frames[i : i + MAX_CHUNK]) for i in range(0, len(frames), MAX_CHUNK))
                logits = np.concatenate([np.empty((0, self.num_classes), np.float32), *parts])
        except EngineError:
            raise
        except Exception as error:  # no context manager: with cold caches one costs a call dear
            raise _converted(error, "failed while running") from error
        check_finite(logits, self.backend)
        return logits

    def bare_call(self, frames: Frames) -> Callable[[], object]:
        """The library's call alone: what a benchmark's boundary ``engine`` times. Not for several threads."""
        assert self._engine is not None
        return self._engine.bare_call(frames)

    def layers(self, batch: int = 1) -> tuple[RuntimeLayer, ...]:
        """What a static model really runs, layer by layer; of a session that is profiled, with their times."""
        assert self._engine is not None
        return self._engine.layers(batch)

    def close(self) -> None:
        self._engine = None


@dataclass(frozen=True, slots=True)
class RuntimeLayer:
    """One layer of the graph that OpenVINO executes, as its runtime model describes it.

    Attributes:
        kind: ``Convolution``, ``FullyConnected``, ``Reorder``, ``Subgraph`` and so on.
        precision: in which it computes: ``f32``, ``bf16``, ``u8`` and so on.
        primitive: the kernel, for example ``brgconv_avx2_1x1_I8``; its end names the weights' precision.
        origins: names that its ONNX nodes have in OpenVINO: the node's or its output's, some with a ``/`` and more.
        microseconds: mean over all calls so far; ``None`` where it did no work, or nothing was timed.
    """

    name: str
    kind: str
    precision: str
    primitive: str
    origins: tuple[str, ...]
    microseconds: int | None = None


def read_layers(model: bytes) -> dict[int, tuple[RuntimeLayer, ...]]:
    """Compile a model as a session does, and tell what would run for each static batch size, 1 first, layer by layer.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: the model asks for BF16, and this CPU has none.
        EngineError: it refuses the model.
    """
    session = OpenVinoSession(model)
    try:
        return {batch: session.layers(batch) for batch in (1, *session.static_batches)}
    finally:
        session.close()


class _Engine:
    """The compiled models of one ONNX file. Everything in it is immutable but the pools and the late model."""

    def __init__(
        self,
        library: ModuleType,
        model: bytes,
        threads: int | None,
        allowed: frozenset[str],
        profiled: bool,
        keep_compiled: bool,
    ) -> None:
        self._library, self._model, self._allowed = library, model, allowed
        self._settings = settings = _settings(threads, _read_precision(model))
        with _converted_errors("cannot load this model"):
            self._core = library.Core()
            single = self._compile_once(1, profiled, keep_compiled)
            self.frame_shape, self.num_classes = _read_frame_shape(single), _read_output(single)
            self._one_by_one = platform.machine().lower() in _ARM and _is_quantized(self._read_graph())
            self.static_batches = read_static_batches(model)
            if self._one_by_one and self.static_batches:
                _log.warning("on ARM an INT8 model of OpenVINO answers picture by picture: no static batches")
                self.static_batches = ()
            others = {b: self._compile_once(b, profiled, keep_compiled) for b in self.static_batches}
        self._static = {batch: _StaticModel(compiled) for batch, compiled in {1: single, **others}.items()}
        if settings["INFERENCE_PRECISION_HINT"] == "bf16":
            for batch in self._static:
                _refuse_missing_bf16(self.layers(batch))
        self._dynamic: Any = None
        self._free_dynamic: list[Any] = []
        self._compiling = threading.Lock()
        self._bare: Any = None

    def _compile_once(self, batch: int, profiled: bool, keep_compiled: bool) -> Any:
        compile_static = partial(self._compile_static, batch, profiled)
        if not keep_compiled:
            return compile_static()
        from edgekiln.runtime.backends.kernel_cache import compile_once

        about = (f"batch {batch}", *sorted(self._allowed))
        return compile_once(self._library, self._core, self._model, about, self._settings, compile_static)

    def _read_graph(self) -> Any:
        """The library's graph of the file, which is looked at first. What was compiled of one that passed is kept."""
        check_onnx(self._model, allow_operators=self._allowed)
        return _read_graph(self._library, self._model)

    def _compile_static(self, batch: int, profiled: bool) -> Any:
        graph = self._read_graph()
        graph.reshape([batch, *_read_input(graph), 3])
        _read_output(graph, batch)
        profiling = {"PERF_COUNT": True} if profiled else {}
        with _converted_refusal(self._settings):
            return self._core.compile_model(graph, "CPU", self._settings | profiling)

    def answer(self, frames: Frames) -> Logits:
        """float32 (N, C) for uint8 (N, H, W, 3), N from 1 to ``MAX_CHUNK``. Safe from any thread.

        Each call has a request to itself, so answers cannot mix; one that failed is not used again.
        """
        if (static := self._static.get(len(frames))) is not None:
            return static.answer(frames)
        if self._one_by_one:
            return np.concatenate([self.answer(frames[i : i + 1]) for i in range(len(frames))])
        request = _take(self._free_dynamic) or self._dynamic_model().create_infer_request()
        logits: Logits = request.infer([np.ascontiguousarray(frames)], share_outputs=True)[0].copy()
        self._free_dynamic.append(request)
        return logits

    def _dynamic_model(self) -> Any:
        with self._compiling:
            if self._dynamic is None:
                graph = self._read_graph()
                _fix_known_shapes(self._library, graph)
                self._dynamic = self._core.compile_model(graph, "CPU", self._settings)
            return self._dynamic

    def bare_call(self, frames: Frames) -> Callable[[], object]:
        if self._bare is None:
            self._bare = self._static[1].compiled.create_infer_request()
        tensor = self._library.Tensor(np.ascontiguousarray(frames))  # a copy, in memory that is aligned
        return partial(self._bare.infer, [tensor], share_inputs=True, share_outputs=True)

    def layers(self, batch: int) -> tuple[RuntimeLayer, ...]:
        with _converted_errors("cannot tell what it runs"):
            operations = self._static[batch].compiled.get_runtime_model().get_ordered_ops()
            return tuple(_describe(operation) for operation in operations)


class _StaticModel:
    """A compiled model of one batch size, and its requests that are free."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._free: list[_Slot] = []

    def answer(self, frames: Frames) -> Logits:
        slot = _take(self._free) or _Slot.of(self.compiled.create_infer_request())
        slot.frames[:] = frames
        slot.request.infer()
        logits = slot.logits.copy()
        self._free.append(slot)
        return logits


@dataclass(frozen=True, slots=True)
class _Slot:
    """A request of a static model, with views of its own input and output, which never move."""

    request: Any
    frames: Frames
    logits: Logits

    @classmethod
    def of(cls, request: Any) -> _Slot:
        return cls(request, request.get_input_tensor(0).data, request.get_output_tensor(0).data)


def _take(free: list[Any]) -> Any:
    """The last one, or ``None``; in one step, so that no two threads get the same."""
    try:
        return free.pop()
    except IndexError:
        return None


def _read_precision(model: bytes) -> str:
    """OpenVINO's name of what a file asks its products to be computed in."""
    asked = read_metadata(model, PRECISION_KEY)
    if asked not in {None, "bf16"}:
        raise EngineError(
            f"The model asks for {asked!r}, which OpenVINO is not asked for.",
            hint="Of ONNX files for OpenVINO the metadata may ask for bf16 alone; export it again.",
        )
    return asked or "f32"


@contextlib.contextmanager
def _converted_refusal(settings: Mapping[str, Any]) -> Iterator[None]:
    """A model that was read and does not compile in BF16 has a CPU that lacks it."""
    try:
        yield
    except Exception as error:  # the library's errors share no base class
        if settings["INFERENCE_PRECISION_HINT"] != "bf16":
            raise
        said = " ".join(str(error).split())
        raise DeviceError(
            f"OpenVINO {_version()} cannot compute this model in BF16 on this CPU: {said}", hint=_NO_BF16
        ) from error


def _refuse_missing_bf16(layers: Iterable[RuntimeLayer]) -> None:
    """Where a CPU has no BF16 the library computes in FP32 and tells nobody. What it will run is asked, not the CPU."""
    if not any(layer.precision == "bf16" for layer in layers):
        raise DeviceError(
            f"The model asks for BF16, and OpenVINO {_version()} computes none of it in BF16 on this CPU.",
            hint=_NO_BF16,
        )


def _settings(threads: int | None, precision: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself it computes FP32 models in bfloat16 on CPUs that have it.
        "INFERENCE_PRECISION_HINT": precision,
        # Two processes would pin their threads to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    return settings if threads is None else {**settings, "INFERENCE_NUM_THREADS": threads}


def _read_graph(library: ModuleType, model: bytes) -> Any:
    """Its ONNX reader alone is asked: ``Core.read_model`` guesses the format, and takes its own XML too."""
    with _converted_errors("cannot load this model"):
        reader = library.frontend.FrontEndManager().load_by_framework("onnx")
        return reader.convert(reader.load(io.BytesIO(model)))


@contextlib.contextmanager
def _converted_errors(what: str) -> Iterator[None]:
    try:
        yield
    except EdgekilnError:
        raise
    except Exception as error:
        raise _converted(error, what) from error


def _converted(error: Exception, what: str) -> EngineError:
    """The error for what the library raised; its errors share no base class."""
    return EngineError(f"OpenVINO {_version()} {what}: {' '.join(str(error).split())}")


def _version() -> str:
    """Of the library that is loaded, as 2026.4.1."""
    return str(sys.modules["openvino"].__version__).partition("-")[0]


def _fix_known_shapes(library: ModuleType, graph: Any) -> None:
    """Write shapes that do not depend on the batch into the ``Reshape`` operations that compute them.

    The reader of ONNX reshapes a convolution's bias by the rank of the convolution's result, which it asks for when
    the model runs. Where a network reads the size of its batch (the class token of a ViT), OpenVINO 2026.4 asks that
    of the same result, keeps the convolution apart from its bias for it, and drops the bias.
    """
    for operation in graph.get_ops():
        if operation.get_type_name() != "Reshape":
            continue
        shape = operation.output(0).get_partial_shape()
        if shape.is_static and operation.input_value(1).get_node().get_type_name() != "Constant":
            constant = library.opset13.constant(np.array(list(shape.to_shape()), np.int64))
            operation.input(1).replace_source_output(constant.output(0))


def _is_quantized(graph: Any) -> bool:
    """Whether it holds quantized values; the reader makes one such operation of each ``QuantizeLinear``."""
    return any(operation.get_type_name() == "FakeQuantize" for operation in graph.get_ops())


def _read_input(graph: Any) -> tuple[int, int]:
    inputs = graph.inputs
    if len(inputs) == 1 and inputs[0].element_type.get_type_name() == "u8":
        batch, *rest = _dimensions(inputs[0])
        match rest:
            case [int(height), int(width), 3] if batch is None:
                return height, width
    raise EngineError(
        f"The model's inputs are [{_listed(inputs)}], wanted one u8 [N, H, W, 3] with a dynamic N."
    )


def _read_frame_shape(single: Any) -> tuple[int, int]:
    """(height, width) of the model of single images, whose graph ``_read_input`` has looked at."""
    _, height, width, _ = single.inputs[0].shape
    return height, width


def _read_output(graph: Any, batch: int = 1) -> int:
    outputs = graph.outputs
    if len(outputs) == 1 and outputs[0].element_type.get_type_name() == "f32":
        match _dimensions(outputs[0]):
            case [int(rows), int(classes)] if rows == batch:
                return classes
    images = "one image" if batch == 1 else f"{batch} images"
    raise EngineError(
        f"For {images} the model's outputs are [{_listed(outputs)}], wanted one f32 [{batch}, classes]."
    )


def _dimensions(port: Any) -> list[int | None]:
    """``None`` for a dynamic one; a shape of unknown rank has none."""
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return [None]
    return [None if dimension.is_dynamic else dimension.get_length() for dimension in shape]


def _listed(ports: Any) -> str:
    return ", ".join(
        f"{', '.join(sorted(port.names)) or 'unnamed'}: {port.element_type.get_type_name()} {port.partial_shape}"
        for port in ports
    )


def _describe(node: Any) -> RuntimeLayer:
    about = node.get_rt_info()

    def read(key: str) -> str:
        return str(about[key].value) if key in about else ""

    spent = read("execTimeMcs")
    return RuntimeLayer(
        name=node.get_friendly_name(),
        kind=read("layerType"),
        precision=read("runtimePrecision"),
        primitive=read("primitiveType"),
        origins=tuple(filter(None, read("originalLayersNames").split(","))),
        microseconds=int(spent) if spent.isdecimal() else None,
    )
