"""TensorRT-RTX compiles kernels when an engine first runs, and OpenVINO a model when it loads; kept on disk, the next
start skips that.

What is compiled is code: a file is read only where nobody else could have written it. Losing the cache costs time,
nothing else, so trouble with it is logged and never raised.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekiln.runtime.version import __version__

__all__ = ["CompiledModel", "KernelCache", "compile_once", "compiled_folder", "kernel_cache_folder"]

_MAX_BYTES = 100 * 2**20  # what NVIDIA advises for a runtime cache
_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger("edgekiln.runtime")


def kernel_cache_folder() -> Path:
    """Where TensorRT-RTX's kernels lie: see ``compiled_folder``."""
    return compiled_folder("kernels")


def compiled_folder(kind: str) -> Path:
    """``$EDGEKILN_CACHE/KIND``, or ``edgekiln/KIND`` below ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    chosen = os.environ.get("EDGEKILN_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgekiln" / kind


def probe_driver() -> Any:
    """As ``cuda.probe_driver``, which a CPU need not import."""
    from edgekiln.runtime import cuda

    return cuda.probe_driver()


def refuse_hollow(made: Any) -> Any:
    """As ``tensorrt_library.refuse_hollow``, which a CPU need not import."""
    from edgekiln.runtime.backends import tensorrt_library

    return tensorrt_library.refuse_hollow(made)


def compile_once(
    library: ModuleType,
    core: Any,
    model: bytes,
    about: Iterable[str],
    settings: Mapping[str, Any],
    compile_model: Callable[[], Any],
) -> Any:
    """A model that OpenVINO compiled for CPUs: what was kept of it, or else a new one, which is kept.

    Args:
        library: OpenVINO.
        core: its ``Core``.
        model: the ONNX file.
        about: what else decides: the batch size, and what edgekiln let pass of the file, whose look at it is saved.
        settings: of its compilation. With the library and the processor they decide what comes out.
        compile_model: compiles it; what that raises is raised.
    """
    kept = CompiledModel(
        model,
        str(library.__version__),
        str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        str(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        str(sorted(settings.items())),
        __version__,
        *about,
    )
    if stored := kept.read():
        try:
            return core.import_model(stored, "CPU", settings)
        except Exception as error:  # the library's errors share no base class
            _log.warning("OpenVINO refuses what it had compiled, and compiles it again: %s", error)
    compiled = compile_model()
    try:
        kept.keep(compiled.export_model().getvalue())
    except Exception as error:  # the same; it costs the next start its time
        _log.info("OpenVINO cannot write what it compiled: %s", error)
    return compiled


class CompiledModel:
    """What a library compiled of one model, in a file that begins with the digest of the rest.

    Args:
        model: what was compiled.
        about: all that decides what comes out: the library's version, the processor, settings.
    """

    def __init__(self, model: bytes, *about: str) -> None:
        key = hashlib.sha256(hashlib.sha256(model).digest())
        for part in about:
            key.update(b"\0" + part.encode())
        self._name = f"{key.hexdigest()[:32]}.bin"

    def read(self) -> bytes:
        """What was kept; empty where nothing was, or where it is not what was kept."""
        try:
            data = _read_own(compiled_folder("compiled") / self._name)
        except FileNotFoundError:
            return b""
        except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
            _log.info("no compiled model was read: %s", error)
            return b""
        digest, compiled = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if data and hashlib.sha256(compiled).digest() != digest:
            _log.warning("%s is damaged: the model is compiled again", self._name)
            return b""
        return compiled

    def keep(self, compiled: bytes) -> None:
        """Write it for the next start."""
        if len(compiled) > _MAX_BYTES - _DIGEST_BYTES:
            _log.info("a compiled model of %d bytes was not kept", len(compiled))
            return
        try:
            _write_whole(
                compiled_folder("compiled") / self._name, hashlib.sha256(compiled).digest() + compiled
            )
        except (OSError, RuntimeError) as error:  # a container whose disk is read-only is no news each time
            _log.info("a compiled model was not kept: %s", error)


class KernelCache:
    """The compiled kernels of one engine on one GPU and driver."""

    def __init__(self, engine: bytes, gpu: str) -> None:
        driver = ".".join(map(str, probe_driver().version or ("none",)))
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{hashlib.sha256(engine).hexdigest()[:32]}-{gpu}-{driver}")
        self._name = f"{name}.bin"
        self._runtime_cache: Any = None

    def attach(self, runtime_config: Any) -> KernelCache:
        """Let the contexts of this configuration use the cache, where the library has one; returns itself."""
        if not hasattr(runtime_config, "create_runtime_cache"):
            return self
        runtime_cache = refuse_hollow(runtime_config.create_runtime_cache())
        if runtime_cache is None:
            _log.warning("the library made no cache for compiled kernels")
            return self
        data = self._read()
        if data and not runtime_cache.deserialize(data):
            _log.warning("%s is of another GPU, driver or library: kernels are compiled again", self._name)
        runtime_config.set_runtime_cache(runtime_cache)
        self._runtime_cache = runtime_cache
        return self

    def save(self) -> None:
        """Write what was compiled since."""
        runtime_cache = self._runtime_cache
        if not hasattr(runtime_cache, "serialize"):
            return
        serialized = runtime_cache.serialize()
        data = b"" if serialized is None else bytes(serialized)
        if not data or len(data) > _MAX_BYTES:
            _log.warning("compiled kernels were not kept: they are %d bytes", len(data))
            return
        try:
            _write_whole(kernel_cache_folder() / self._name, data)
        except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
            _log.warning("compiled kernels were not kept: %s", error)

    def _read(self) -> bytes:
        try:
            return _read_own(kernel_cache_folder() / self._name)
        except FileNotFoundError:
            return b""
        except (OSError, RuntimeError) as error:
            _log.warning("compiled kernels were not read: %s", error)
            return b""


def _write_whole(path: Path, data: bytes) -> None:
    """The file under its name is never half-written, and its temporary names are nobody else's."""
    for folder in (
        path.parent.parent,
        path.parent,
    ):  # the upper one may be the engine cache's, which asks for 0700
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _read_own(path: Path) -> bytes:
    """A file's bytes; empty, with a warning, where others could have written it or it is too long."""
    # Not blocking: a pipe in its place would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or others_write:
            _log.warning("%s can be written by others and was not read", path)
            return b""
        if status.st_size > _MAX_BYTES:
            _log.warning("%s has %d bytes and was not read", path, status.st_size)
            return b""
        return file.read(status.st_size)  # a read reserves as much memory as it is asked for
