"""Builds TensorRT and TensorRT-RTX engines from ONNX files, on the machine that will run them or, for RTX, on any.

One code path for TensorRT 10.3 to 11 and TensorRT-RTX: precision is in the graph, networks are strongly typed, and
what a release lacks is asked for by name in the processes that build and inspect (``build_worker.py`` and
``inspect_worker.py``, started and watched by ``worker_process.py``). This module takes from the cache what was built or
told before. It needs neither torch nor onnx: it works on a Jetson that has numpy, Pillow and TensorRT only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekiln.export.engines.cache import EngineCache, engine_key
from edgekiln.export.engines.options import BuildOptions
from edgekiln.export.engines.worker_process import (
    ENGINE_NAME,
    RESULT_NAME,
    Advance,
    Inspection,
    inspect_in_child,
    run_worker,
)
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.backends.tensorrt_library import find_version, import_tensorrt
from edgekiln.runtime.bundles.machine import read_power_mode
from edgekiln.runtime.cuda.driver import DeviceProperties, probe_driver, require_device
from edgekiln.runtime.errors import DeviceError, EngineError, ResourceError
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.spec import Precision

__all__ = ["BuiltEngine", "build_engine", "inspect_bytes", "inspect_engine", "library_version"]

_LAYERS_NAME = "layers.json"


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and how it came to be.

    Attributes:
        path: the file in the cache, which somebody may prune.
        data: its bytes.
        version: of the library that built it.
        gpu: name of the GPU that it was built on; ``None`` where none was needed.
        declared: datatype that the network declares, by ONNX node.
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
    log: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values for a manifest: everything but the log's small talk."""
        return {
            "version": self.version,
            "gpu": self.gpu,
            "options": self.options.to_dict(),
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
        tell: told once of what a person should know: a damaged entry, another builder, little memory.

    Raises:
        MissingExtraError: the library is not installed.
        DeviceError: TensorRT needs a GPU to build, and there is none.
        EnvironmentProblem: the library does not start; a DeviceError where the driver is missing or too old.
        BuildError: the library refused; its words, the node and the likely cause are in the message.
        ResourceError: memory ran out.
        EngineError: the bytes are nothing that the library may be shown; see ``runtime.onnx_files.scan``.
    """
    check_onnx(model)
    installed = library_version(options.flavour)
    device = _device_for(options.flavour)
    _refuse_old_gpu(options, device)
    identity = _identity(options, installed, device)
    key = engine_key(model=hashlib.sha256(model).hexdigest(), **identity)

    def build(folder: Path) -> Mapping[str, Any]:
        started = time.monotonic()
        result = _build_into(folder, model, options, device, cache, advance)
        for note in result["notes"]:
            tell(note)
        return {**identity, "version": result["version"], "seconds": time.monotonic() - started}

    read: dict[str, Any] = {}
    folder, cached = cache.fetch(key, build, tell, lambda entry: read.update(_read_entry(entry)))
    return _describe_built(folder / ENGINE_NAME, read, options, device, cached=cached)


def inspect_engine(
    built: BuiltEngine, cache: EngineCache, *, tell: Callable[[str], None] = lambda text: None
) -> Inspection:
    """Ask the library of an engine's layers, in a child process, or take from the cache what it told before.

    What failed, and what was told of less than all, is not kept: the next request asks again.

    Args:
        built: of ``build_engine``, here: without a GPU nothing can be asked, and nothing is.
        cache: that it is in.
        tell: told once of what a person should know.

    Raises:
        UntrustedError, ResourceError: the cache cannot be used.
    """
    if built.gpu is None:
        return Inspection(None, None)
    inspected: list[Inspection] = []

    def inspect() -> str | None:
        inspected.append(inspect_in_child(built.data, built.options.flavour))
        return inspected[0].layers if inspected[0].note is None else None

    kept = cache.supplement(built.path.parent.name, _LAYERS_NAME, inspect, tell)
    return inspected[0] if inspected else Inspection(kept, None)


def inspect_bytes(engine: bytes, flavour: Flavour, *, timed: bool) -> Inspection:
    """Ask the library of the layers of any engine, in a child process and past the cache.

    Args:
        engine: its bytes, which somebody trusts: they are deserialized.
        flavour: the library that built it.
        timed: also how long each layer takes.

    Raises:
        DeviceError: no driver or GPU.
        MissingExtraError: the library is not installed.
        EngineError: it tells nothing of the engine, or could not time it.
    """
    require_device()
    library_version(flavour)
    told = inspect_in_child(engine, flavour, timed=timed)
    if told.layers is None or (timed and told.times is None):
        what = "tells no layers" if told.layers is None else "could not time the layers"
        raise EngineError(
            f"{flavour} {what}: {told.note}.",
            hint="Build the engine here, with `edgekiln build`: an engine runs on the GPU and the version it is of.",
        )
    return told


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
        timing_cache = _timing_cache(options, device, cache.root)
        result = run_worker(model, options, device, folder, timing_cache, advance)
    except OSError as error:
        if str(error.filename or "").startswith(str(cache.root)):
            raise  # the cache tells of its own
        raise ResourceError(
            f"The engine could not be built: {error.filename or tempfile.gettempdir()}: {error.strerror}.",
            hint="Free space there, or set TMPDIR to a folder with room.",
        ) from error
    (folder / RESULT_NAME).write_text(json.dumps(result), "utf-8")
    return result


def _timing_cache(options: BuildOptions, device: DeviceProperties | None, root: Path) -> str | None:
    """TensorRT's file of kernel times for this GPU, its power mode and version.

    RTX is documented to do nothing with one but ask for a GPU.
    """
    if options.flavour != "tensorrt" or device is None:
        return None
    mode = _power_mode()
    known = [device.name, *([f"mode {mode}"] if mode else []), library_version("tensorrt")]
    name = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(known))
    return str((root / f"timing-{name}.cache").resolve())


def _power_mode() -> str | None:
    """``2 15W``: number and name of a Jetson's power mode. Kernels that are best at 15 W may not be at full power."""
    mode = read_power_mode()
    return None if mode is None else " ".join(filter(None, mode))


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
        log=tuple((severity, text) for severity, text in result["log"]),
        notes=tuple(result["notes"]),
        seconds=read["seconds"],
        cached=cached,
    )


def _read_entry(folder: Path) -> dict[str, Any]:
    """All of a cache entry, read at once: a moment later it may be pruned."""
    return {
        "data": (folder / ENGINE_NAME).read_bytes(),
        "result": json.loads((folder / RESULT_NAME).read_text("utf-8")),
        "seconds": EngineCache.read_about(folder)["seconds"],
    }


def _device_for(flavour: Flavour) -> DeviceProperties | None:
    """TensorRT times kernels on the GPU; RTX builds without one, and uses one only to inspect its engine."""
    if flavour == "tensorrt":
        return require_device()
    state = probe_driver()
    return state.devices[0] if state.devices else None


def _refuse_old_gpu(options: BuildOptions, device: DeviceProperties | None) -> None:
    """TensorRT builds for the GPU that is here; BF16 came with Ampere."""
    if options.flavour != "tensorrt" or device is None or options.precision is not Precision.BF16:
        return
    if device.compute_capability < (8, 0):
        found = ".".join(map(str, device.compute_capability))
        raise DeviceError(
            f"{device.name} has compute capability {found} and no BF16, which begins with 8.0 (Ampere).",
            hint="Take an FP16 variant on this GPU.",
        )


def _identity(options: BuildOptions, installed: str, device: DeviceProperties | None) -> dict[str, Any]:
    """Everything besides the model that determines an engine."""
    gpu: Any = None
    if device is not None and options.flavour == "tensorrt":
        gpu = [device.name, list(device.compute_capability), device.multiprocessors, _power_mode()]
    return {
        "library": [options.flavour, installed],
        "platform": [sys.platform, os.uname().machine],
        "gpu": gpu,
        "options": options.to_dict(),
    }
