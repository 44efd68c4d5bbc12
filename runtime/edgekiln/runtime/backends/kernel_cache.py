"""TensorRT-RTX compiles kernels when an engine first runs; kept on disk, the next start skips that.

Compiled kernels are code: a file is read only where nobody else could have written it. Losing the cache costs time,
nothing else, so trouble with it is logged and never raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

from edgekiln.runtime.cuda import probe_driver

__all__ = ["KernelCache", "kernel_cache_folder"]

_MAX_BYTES = 100 * 2**20  # what NVIDIA advises for a runtime cache

_log = logging.getLogger("edgekiln.runtime")


def kernel_cache_folder() -> Path:
    """``$EDGEKILN_CACHE/kernels``, or ``edgekiln/kernels`` below ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    chosen = os.environ.get("EDGEKILN_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgekiln" / "kernels"


class KernelCache:
    """The compiled kernels of one engine on one GPU and driver."""

    def __init__(self, engine: bytes, gpu: str) -> None:
        driver = ".".join(map(str, probe_driver().version or ("none",)))
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{hashlib.sha256(engine).hexdigest()[:32]}-{gpu}-{driver}")
        self._path = kernel_cache_folder() / f"{name}.bin"
        self._runtime_cache: Any = None

    def attach(self, runtime_config: Any) -> KernelCache:
        """Let the contexts of this configuration use the cache, where the library has one; returns itself."""
        if not hasattr(runtime_config, "create_runtime_cache"):
            return self
        runtime_cache = runtime_config.create_runtime_cache()
        data = self._read()
        if data and not runtime_cache.deserialize(data):
            _log.warning("%s is of another GPU, driver or library: kernels are compiled again", self._path)
        runtime_config.set_runtime_cache(runtime_cache)
        self._runtime_cache = runtime_cache
        return self

    def save(self) -> None:
        """Write what was compiled since."""
        runtime_cache = self._runtime_cache
        if not hasattr(runtime_cache, "serialize"):
            return
        data = bytes(runtime_cache.serialize())
        if not data or len(data) > _MAX_BYTES:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = self._path.with_suffix(f".{os.getpid()}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            beside.replace(self._path)
        except OSError as error:
            _log.warning("compiled kernels were not kept in %s: %s", self._path.parent, error.strerror)

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise
            except OSError as error:
                _log.warning("%s was not read: %s", self._path, error.strerror)
                return b""
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                foreign = status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if foreign:
                    _log.warning("%s can be written by others and was not read", self._path)
                    return b""
                return file.read(_MAX_BYTES + 1)
        return b""
