"""Builds one engine, in a process of its own: a crash or an out-of-memory kill here costs the caller nothing.

``python -m edgekiln.export.engines.build_worker FOLDER`` reads ``request.json`` and ``model.onnx`` in FOLDER, prints
progress as JSON lines, and writes ``engine`` and ``result.json``. It decides nothing: ``tensorrt.py`` does, and
``inspect_worker.py`` looks at what was built. What only some releases of the library have is asked with ``hasattr``;
numbers of enums changed between majors and are never used.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekiln.export.engines.workspace import limit_workspace
from edgekiln.runtime.backends.tensorrt_library import LibraryLog, import_tensorrt, library_log, start_library
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["main"]

_PROGRESS_SECONDS = 0.2
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class _Failure(Exception):
    """The library said no; ``stage`` is where."""

    def __init__(self, stage: str, node: str | None = None) -> None:
        super().__init__(stage)
        self.stage, self.node = stage, node


class _Cancelled(Exception):
    """A signal asked to stop."""


class _Progress:
    """Tells the caller how far the build is, at most five times a second, and whether a signal came."""

    def __init__(self) -> None:
        self.cancelled = False
        self._steps: dict[str, int] = {}
        self._told = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._cancel)

    def _cancel(self, *_: object) -> None:
        self.cancelled = True

    def begin(self, phase: str, steps: int) -> None:
        self._steps[phase] = steps
        self._tell(phase, 0)

    def step(self, phase: str, step: int) -> bool:
        self._tell(phase, step + 1)
        return not self.cancelled

    def _tell(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            print(json.dumps({"phase": phase, "step": step, "steps": self._steps.get(phase, 0)}), flush=True)


def main(arguments: list[str]) -> int:
    """Entry point of the process; returns 0 when ``result.json`` tells of an engine, 1 when of a failure."""
    folder = Path(arguments[0])
    request = json.loads((folder / "request.json").read_text("utf-8"))
    result: dict[str, Any] = {"engine": False, "failure": None, "node": None, "notes": [], "version": None}
    log: LibraryLog | None = None
    try:
        trt = import_tensorrt(request["flavour"], to_build=True)
        result["version"] = str(trt.__version__)
        log = library_log(trt)
        result |= _build(trt, log, request, folder, result["notes"])
    except _Cancelled:
        result["failure"] = "cancelled"
    except EdgekilnError as error:  # the graph was not tried: the library, the driver or memory is missing
        result |= {"failure": "start", "problem": error.message, "hint": error.hint, "code": error.code}
    except _Failure as failure:
        result |= {"failure": failure.stage, "node": failure.node}
    result["log"] = [] if log is None else log.since(0)
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    return 0 if result["engine"] else 1


def _build(
    trt: ModuleType, log: LibraryLog, request: dict[str, Any], folder: Path, notes: list[str]
) -> dict[str, Any]:
    """Write the engine; returns what is known of it. What a person should know, also of a failure, goes to ``notes``.

    Raises:
        EnvironmentProblem: the library does not start, or its driver tells nothing.
        ResourceError: there is no memory to start with.
    """
    progress = _Progress()
    builder = start_library(trt, log, lambda: trt.Builder(log.logger))
    network = builder.create_network(_network_flags(trt, request["typing"]))
    declared = _parse(trt, network, log, (folder / "model.onnx").read_bytes())
    config = builder.create_builder_config()
    _set_options(trt, config, request, notes)
    batch = request["batch"]
    for sizes in batch if isinstance(batch, list) else [batch]:
        _add_profile(builder, network, config, sizes)
    config.progress_monitor = _make_monitor(trt, progress)
    with _timing_cache(config, request["timing_cache"], notes):
        plan = builder.build_serialized_network(network, config)
        if progress.cancelled:
            raise _Cancelled
        if plan is None:
            raise _Failure("build")
    if request.get("sparsity"):
        told = [text.strip() for _, text in log.since(0) if text.lstrip().startswith("(Sparsity)")]
        notes.extend(told or ["sparsity: the library told of no weights that are 2:4 sparse"])
    (folder / "engine").write_bytes(plan)
    return {"engine": True, "declared": declared}


def _network_flags(trt: ModuleType, typing: str) -> int:
    """Strongly typed: the types in the graph are the types in the engine. TensorRT 11 knows nothing else."""
    flags = 0
    if typing == "strong":
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    if explicit is not None and typing == "weak":
        flags |= 1 << int(explicit)
    return flags


def _parse(trt: ModuleType, network: Any, log: LibraryLog, model: bytes) -> dict[str, str]:
    """Read the graph into the network; returns the type that each ONNX node's layer takes in."""
    parser = start_library(trt, log, lambda: trt.OnnxParser(network, log.logger))
    if not parser.parse(model):
        node = None
        for index in range(parser.num_errors):
            parser_error = parser.get_error(index)
            node = node or parser_error.node_name() or None
        raise _Failure("parse", node)
    return _declared_types(trt, network)


def _declared_types(trt: ModuleType, network: Any) -> dict[str, str]:
    """What the network declares, by ONNX node: ``int8`` where the input comes from a DequantizeLinear."""
    dequantized = set()
    declared: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensor = layer.get_input(0) if layer.num_inputs else None
        if tensor is None:
            continue
        kind = "int8" if tensor.name in dequantized else _short_type(tensor.dtype)
        moves = layer.type in {trt.LayerType.SHUFFLE, trt.LayerType.IDENTITY, trt.LayerType.CAST}
        if layer.type == trt.LayerType.DEQUANTIZE or (moves and kind == "int8"):
            dequantized.add(layer.get_output(0).name)
        for origin in _ORIGIN.findall(layer.metadata) or [layer.name]:
            # A Gemm becomes several layers; the product among them says what it computes in.
            if origin not in declared or layer.type == trt.LayerType.MATRIX_MULTIPLY:
                declared[origin] = kind
    return declared


def _short_type(dtype: Any) -> str:
    names = {"FLOAT": "fp32", "HALF": "fp16"}
    name = str(dtype).rpartition(".")[2]
    return names.get(name, name.lower())


def _set_options(trt: ModuleType, config: Any, request: dict[str, Any], notes: list[str]) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells names only
    if not request["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    limit, note = limit_workspace(request["workspace_bytes"], request["flavour"], _available_memory)
    notes.extend([note] if note else [])
    if limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    if request["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # an engine that brings no host code
    if request["hardware_compatibility"] == "ampere-plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif request["hardware_compatibility"] == "same-compute-capability":
        _set_same_compute_capability(trt, config)
    if request["capabilities"]:
        _set_capabilities(trt, config, request["capabilities"])
    _set_tuning(trt, config, request)
    if request["typing"] == "weak":
        _set_weak_precision(trt, config, request["precision"])


def _available_memory() -> int:
    from edgekiln.runtime.cuda.driver import free_memory

    return free_memory()


def _set_same_compute_capability(trt: ModuleType, config: Any) -> None:
    level = getattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None)
    if level is None:
        raise _Failure("hardware-compatibility")
    config.hardware_compatibility_level = level


def _set_capabilities(trt: ModuleType, config: Any, capabilities: list[int]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise _Failure("capabilities")
    config.num_compute_capabilities = len(capabilities)
    for index, number in enumerate(capabilities):
        capability = getattr(trt.ComputeCapability, f"SM{number}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise _Failure("capabilities")


def _set_tuning(trt: ModuleType, config: Any, request: dict[str, Any]) -> None:
    """How the search for kernels goes; what is not in the request is left to the library."""
    if "max_aux_streams" in request:
        config.max_aux_streams = request["max_aux_streams"]
    if "avg_timing_iterations" in request:
        config.avg_timing_iterations = request["avg_timing_iterations"]
    if request.get("sparsity"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if "tiling" in request:
        levels = getattr(trt, "TilingOptimizationLevel", None)
        if levels is None:
            raise _Failure("tiling")
        config.tiling_optimization_level = getattr(levels, request["tiling"].upper())


def _set_weak_precision(trt: ModuleType, config: Any, precision: str) -> None:
    """Permission, not an order: the library may still choose float32, which is why the audit must look."""
    wanted = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("FP16", "INT8")}[precision]
    for name in wanted:
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise _Failure("weak-typing")
        config.set_flag(flag)


def _add_profile(builder: Any, network: Any, config: Any, batch: dict[str, int]) -> None:
    tensor = network.get_input(0)
    frame = tuple(tensor.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((batch[key], *frame) for key in ("min", "opt", "max")))
    if config.add_optimization_profile(profile) < 0:
        raise _Failure("profile")


def _make_monitor(trt: ModuleType, progress: _Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined] # the module is found at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.begin(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to tell: the next phase says that this one is over."""

    return Monitor()


@contextmanager
def _timing_cache(config: Any, file: str | None, notes: list[str]) -> Iterator[None]:
    """Kernel timings of earlier builds in, and this build's added to them after it. ``None`` leaves it alone."""
    if file is None:
        yield
        return
    path = Path(file)
    timing_cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if timing_cache is None or not config.set_timing_cache(timing_cache, ignore_mismatch=False):
        notes.append("the timing cache was of another GPU, driver or version and was begun anew")
        timing_cache = config.create_timing_cache(b"")
        config.set_timing_cache(timing_cache, ignore_mismatch=False)
    yield
    with _alone(path.with_suffix(".lock")):
        if path.exists():  # another build may have added to it meanwhile
            _add_timings(config, path.read_bytes())
        timing_cache = config.get_timing_cache()
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(timing_cache.serialize())
        beside.rename(path)


def _add_timings(config: Any, others: bytes) -> None:
    timing_cache = config.create_timing_cache(others)
    if timing_cache is not None:  # else damaged meanwhile: what this build measured is kept instead
        config.get_timing_cache().combine(timing_cache, ignore_mismatch=False)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
