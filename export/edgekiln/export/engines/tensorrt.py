"""Builds TensorRT and TensorRT-RTX engines from ONNX files, on the machine that will run them or, for RTX, on any.

One code path for TensorRT 10.3 to 11 and TensorRT-RTX: precision is in the graph, networks are strongly typed, and
what a release lacks is asked for by name in the process that builds (``build_worker.py``). This module needs neither
torch nor onnx: it works on a Jetson that has numpy, Pillow and TensorRT only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekiln.export.engines.cache import EngineCache, engine_key
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.backends.tensorrt_library import find_version, import_tensorrt
from edgekiln.runtime.cuda.driver import DeviceProperties, probe_driver, require_device
from edgekiln.runtime.errors import BuildError, EnvironmentProblem, ResourceError, UsageError
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.spec import Precision

__all__ = ["BatchProfile", "BuildOptions", "BuiltEngine", "build_engine", "library_version"]

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
Typing = Literal["strong", "weak"]
Advance = Callable[[int, int, str], None]

MAX_BATCH = 1024
ENGINE_NAME, LAYERS_NAME, RESULT_NAME = "engine", "layers.json", "result.json"
_STOP_SECONDS = 10.0
_WORKER = "edgekiln.export.engines.build_worker"


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Batch sizes that one engine takes; kernels are chosen for ``opt``. All three equal make a static engine."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise UsageError(
                f"A batch profile needs 1 <= min <= opt <= max <= {MAX_BATCH}, got {self.min}, {self.opt}, {self.max}."
            )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        precision: what the graph was made for; decides about TF32 and, with weak typing, the builder's permissions.
        workspace_bytes: most memory a kernel may use while it runs; clamped to what is free. ``None``: the library's.
        optimization_level: 0 to 5, more is slower to build; ``None`` is the library's default. RTX ignores it.
        tf32: let FP32 products drop to 10 bits of mantissa.
        version_compatible: an engine that newer TensorRT versions and tensorrt-lean can run; TensorRT only.
        hardware_compatibility: run on other GPUs than the one that builds; TensorRT only, not on Jetson.
        capabilities: compute capabilities (86 is 8.6) to build for; RTX only; empty is its default, all but Turing.
        typing: ``weak`` only where strong typing fails, below TensorRT 10.12: the library may then choose float32.
    """

    flavour: Flavour
    precision: Precision
    batch: BatchProfile = BatchProfile()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    capabilities: tuple[int, ...] = ()
    typing: Typing = "strong"

    def __post_init__(self) -> None:
        rtx = self.flavour == "tensorrt-rtx"
        if self.capabilities and not rtx:
            raise UsageError("capabilities are for tensorrt-rtx; TensorRT builds for the GPU that is here.")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"workspace_bytes must be positive, got {self.workspace_bytes}.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level is 0 to 5, got {self.optimization_level}.")
        if rtx and (
            self.version_compatible or self.hardware_compatibility != "none" or self.typing == "weak"
        ):
            raise UsageError("tensorrt-rtx has no version or hardware compatibility and no weak typing.")


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and how it came to be.

    Attributes:
        path: the file in the cache, which somebody may prune.
        data: its bytes.
        version: of the library that built it.
        gpu: name of the GPU that it was built on; ``None`` where none was needed.
        declared: datatype that the network declares, by ONNX node.
        layers: the engine inspector's JSON; ``None`` where there is no GPU to load the engine on.
        log: everything that the library said, as (severity, text).
        cached: whether it had been built before.
    """

    path: Path
    data: bytes = field(repr=False)
    sha256: str
    version: str
    gpu: str | None
    options: BuildOptions
    declared: Mapping[str, str]
    layers: str | None
    log: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values for a manifest: everything but the log's small talk and the layers."""
        options = asdict(self.options) | {"precision": self.options.precision.value}
        return {
            "version": self.version,
            "gpu": self.gpu,
            "options": options,
            "seconds": self.seconds,
            "warnings": [text for severity, text in self.log if severity == "WARNING"],
            "notes": list(self.notes),
        }


def library_version(flavour: Flavour) -> str:
    """Version of the installed library, without loading it where its package says.

    Raises:
        MissingExtraError: it is not installed.
    """
    return find_version(flavour, to_build=True) or str(import_tensorrt(flavour, to_build=True).__version__)


def build_engine(
    model: bytes,
    options: BuildOptions,
    cache: EngineCache,
    *,
    advance: Advance = lambda done, total, what: None,
    tell: Callable[[str], None] = lambda text: None,
) -> BuiltEngine:
    """Build an engine, or take it from the cache.

    Args:
        model: bytes of an ONNX file that edgekiln exported; the precision is in the graph.
        options: how.
        cache: where engines are kept.
        advance: told of (steps done, steps in all, phase).
        tell: told once of what a person should know: a damaged entry, another builder.

    Raises:
        MissingExtraError: the library is not installed.
        DeviceError: TensorRT needs a GPU to build, and there is none.
        BuildError: the library refused; its words, the node and the likely cause are in the message.
        ResourceError: memory ran out.
        EngineError: the bytes are nothing that the library may be shown; see ``runtime.onnx_files.scan``.
    """
    check_onnx(model)
    installed = library_version(options.flavour)
    device = _device_for(options.flavour)
    identity = _identity(options, installed, device)
    key = engine_key(model=hashlib.sha256(model).hexdigest(), **identity)

    def build(folder: Path) -> Mapping[str, Any]:
        started = time.monotonic()
        result = _build_into(folder, model, options, device, cache, advance)
        return {**identity, "version": result["version"], "seconds": time.monotonic() - started}

    read: dict[str, Any] = {}
    folder, cached = cache.fetch(key, build, tell, lambda entry: read.update(_read_entry(entry)))
    return _describe_built(folder / ENGINE_NAME, read, options, device, cached=cached)


def _build_into(
    folder: Path,
    model: bytes,
    options: BuildOptions,
    device: DeviceProperties | None,
    cache: EngineCache,
    advance: Advance,
) -> dict[str, Any]:
    """Build into a new entry of the cache; returns what the worker told, which is written there too."""
    try:
        result = _run_worker(model, options, device, folder, cache.root, advance)
    except OSError as error:
        if str(error.filename or "").startswith(str(cache.root)):
            raise  # the cache tells of its own
        raise ResourceError(
            f"The engine could not be built: {error.filename or tempfile.gettempdir()}: {error.strerror}.",
            hint="Free space there, or set TMPDIR to a folder with room.",
        ) from error
    (folder / RESULT_NAME).write_text(json.dumps(result), "utf-8")
    return result


def _describe_built(
    path: Path,
    read: Mapping[str, Any],
    options: BuildOptions,
    device: DeviceProperties | None,
    *,
    cached: bool,
) -> BuiltEngine:
    """The engine of a cache entry, from what ``_read_entry`` found in it."""
    result = read["result"]
    return BuiltEngine(
        path=path,
        data=read["data"],
        sha256=hashlib.sha256(read["data"]).hexdigest(),
        version=result["version"],
        gpu=None if device is None else device.name,
        options=options,
        declared=result["declared"],
        layers=read["layers"],
        log=tuple((severity, text) for severity, text in result["log"]),
        notes=tuple(result["notes"]),
        seconds=read["seconds"],
        cached=cached,
    )


def _read_entry(folder: Path) -> dict[str, Any]:
    """All of a cache entry, read at once: a moment later it may be pruned."""
    layers = folder / LAYERS_NAME
    return {
        "data": (folder / ENGINE_NAME).read_bytes(),
        "result": json.loads((folder / RESULT_NAME).read_text("utf-8")),
        "layers": layers.read_text("utf-8") if layers.exists() else None,
        "seconds": EngineCache.read_about(folder)["seconds"],
    }


def _device_for(flavour: Flavour) -> DeviceProperties | None:
    """TensorRT times kernels on the GPU; RTX builds without one, and uses one only to inspect its engine."""
    if flavour == "tensorrt":
        return require_device()
    state = probe_driver()
    return state.devices[0] if state.devices else None


def _identity(options: BuildOptions, installed: str, device: DeviceProperties | None) -> dict[str, Any]:
    """Everything besides the model that determines an engine."""
    gpu: Any = None
    if device is not None and options.flavour == "tensorrt":
        gpu = [device.name, list(device.compute_capability), device.multiprocessors]
    return {
        "library": [options.flavour, installed],
        "platform": [sys.platform, os.uname().machine],
        "gpu": gpu,
        # An engine is the same with and without a GPU here, but only with one are its layers known.
        "inspected": device is not None,
        "options": asdict(options) | {"precision": options.precision.value},
    }


# --------------------------------------------------------------------------------------------------------------
# The process that builds


def _run_worker(
    model: bytes,
    options: BuildOptions,
    device: DeviceProperties | None,
    target: Path,
    cache: Path,
    advance: Advance,
) -> dict[str, Any]:
    """Build in a child; its files move to ``target``. Returns the child's result."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-build-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "request.json").write_text(json.dumps(_request(options, device, cache)), "utf-8")
        exit_code, complaints = _watch(folder, advance)
        result_file = folder / RESULT_NAME
        if not result_file.exists():
            raise _explain_death(exit_code, complaints)
        result: dict[str, Any] = json.loads(result_file.read_text("utf-8"))
        if not result["engine"]:
            raise _explain_failure(result, options, device)
        layers = result.pop("layers")
        if layers is not None:
            (target / LAYERS_NAME).write_text(layers, "utf-8")
        (target / ENGINE_NAME).write_bytes((folder / ENGINE_NAME).read_bytes())
        return result


def _request(options: BuildOptions, device: DeviceProperties | None, cache: Path) -> dict[str, Any]:
    timing_cache = None
    if (
        options.flavour == "tensorrt" and device is not None
    ):  # RTX: documented to do nothing but ask for a GPU
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{device.name}-{library_version('tensorrt')}")
        timing_cache = str((cache / f"timing-{name}.cache").resolve())
    return {
        **asdict(options),
        "precision": options.precision.value,
        "timing_cache": timing_cache,
        "inspect": device is not None,
    }


def _watch(folder: Path, advance: Advance) -> tuple[int, str]:
    """Run the child to its end; returns its exit code and the end of what it wrote to stderr."""
    paths = [str(Path(path).absolute()) for path in sys.path]  # the child works elsewhere; "" means here
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", _WORKER, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            cwd=folder,
        )
    assert child.stdout is not None
    with child.stdout:
        try:
            for line in child.stdout:
                _pass_on(line, advance)
            code = child.wait()
        except BaseException:  # Ctrl-C above all: the child must not go on building for nobody
            _stop(child)
            raise
    return code, (folder / "stderr").read_text("utf-8", errors="replace")[-4000:]


def _pass_on(line: bytes, advance: Advance) -> None:
    try:
        values = json.loads(line)
        done, total, phase = int(values["step"]), max(1, int(values["steps"])), str(values["phase"])
    except (ValueError, KeyError, TypeError):
        return  # a library that prints
    advance(done, total, phase)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()  # its progress monitor then tells the builder to stop
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where a second Ctrl-C ends the waiting
        child.kill()
        child.wait()


def _explain_death(code: int, complaints: str) -> Exception:
    last = complaints.strip().splitlines()[-1] if complaints.strip() else ""
    if code == -signal.SIGKILL:
        return ResourceError(
            "The process that builds the engine was killed, which is what the system does when memory runs out.",
            hint="Lower build.workspace_mib (--workspace), the largest batch or the optimization level.",
        )
    if code < 0:
        known = -code in signal.valid_signals()
        name = signal.Signals(-code).name if known else f"signal {-code}"
        return BuildError(
            f"The engine library crashed while building ({name}). {last}".rstrip(),
            hint="Build again with --debug; a newer driver or library usually mends it.",
        )
    return EnvironmentProblem(f"The engine builder ended with exit code {code}: {last or 'no message'}")


_OPTION_FAILURES = {
    "hardware-compatibility": "This TensorRT has no hardware compatibility of that level.",
    "capabilities": "This library cannot build for those compute capabilities.",
    "weak-typing": "This TensorRT has no weak typing; its networks are always strongly typed.",
    "profile": "The library refused the batch profile.",
}
_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(
            r"out of memory|OutOfMemory|insufficient (?:device )?memory|Could not find any implementation",
            re.I,
        ),
        "memory",
        "Memory, most likely: lower build.workspace_mib (--workspace) or the largest batch, or close other programs.",
    ),
    (
        re.compile(
            r"Turing \(SM75\)|not supported (?:on|for) (?:this|the target)|HW-specific datatypes|"
            r"Cannot compile (?:operation|for target)|Unsupported (?:data )?type",
            re.I,
        ),
        "type unsupported on this SM",
        "That GPU generation lacks this number format: build an FP16 variant, or for other GPUs.",
    ),
    (
        re.compile(r"driver|cudaError ?35|CUDA initialization failure", re.I),
        "driver",
        "The NVIDIA driver is missing or too old for this library; `nvidia-smi` tells its version.",
    ),
)
_NODE = re.compile(r"(?:node |ForeignNode\[|operation )['\"\[]?([\w./:+-]+)")


def _explain_failure(
    result: Mapping[str, Any], options: BuildOptions, device: DeviceProperties | None
) -> BaseException:
    log = tuple((severity, text) for severity, text in result["log"])
    if result["failure"] == "cancelled":
        return KeyboardInterrupt()
    errors = [text.strip() for severity, text in log if severity in {"ERROR", "INTERNAL_ERROR"}]
    words = " | ".join(dict.fromkeys(errors)) or _OPTION_FAILURES.get(result["failure"], "it gave no reason.")
    node = result["node"] or next((match[1] for text in errors if (match := _NODE.search(text))), None)
    cause, hint = _likely_cause(words) or (
        result["failure"],
        "The words after the colon are the library's own." if errors else None,
    )
    where = f"for {device.name}" if device is not None and options.flavour == "tensorrt" else "without a GPU"
    return BuildError(
        f"{options.flavour} could not build the {options.precision.value} engine {where} "
        f"({cause}{f', node {node}' if node else ''}): {words}",
        hint=hint,
        node=node,
        log=log,
    )


def _likely_cause(words: str) -> tuple[str, str | None] | None:
    return next(((cause, hint) for pattern, cause, hint in _CAUSES if pattern.search(words)), None)
