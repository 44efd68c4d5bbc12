"""TensorRT-RTX compiles kernels when an engine first runs; kept on disk, the next start skips that.

Compiled kernels are code: a file is read only where nobody else could have written it. Losing the cache costs time,
nothing else, so trouble with it is logged and never raised.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from edgekiln.runtime.backends.tensorrt_library import refuse_hollow
from edgekiln.runtime.cuda import probe_driver

__all__ = ["KernelCache", "kernel_cache_folder"]

_MAX_BYTES = 100 * 2**20  # what NVIDIA advises for a runtime cache

_log = logging.getLogger("edgekiln.runtime")


def kernel_cache_folder() -> Path:
    """``$EDGEKILN_CACHE/kernels``, or ``edgekiln/kernels`` below ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    chosen = os.environ.get("EDGEKILN_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgekiln" / "kernels"


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
