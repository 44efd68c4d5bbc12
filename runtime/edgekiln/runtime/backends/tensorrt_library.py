"""Finds TensorRT in its three distributions, and keeps what it says.

``tensorrt`` builds and runs, ``tensorrt_lean`` runs version-compatible engines only, ``tensorrt_rtx`` is the one for
RTX GPUs. They share one Python API; what one of them lacks is asked with ``hasattr``, never by version.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.errors import EnvironmentProblem, MissingExtraError

__all__ = ["LibraryLog", "find_version", "import_tensorrt", "library_log"]

_KEPT_LINES = 20_000
_PACKAGES: dict[tuple[Flavour, bool], tuple[str, ...]] = {
    ("tensorrt", True): ("tensorrt",),
    ("tensorrt", False): ("tensorrt", "tensorrt_lean"),
    ("tensorrt-rtx", True): ("tensorrt_rtx",),
    ("tensorrt-rtx", False): ("tensorrt_rtx",),
}
_DISTRIBUTIONS: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-lean"),  # the last one only runs
    "tensorrt-rtx": ("tensorrt-rtx",),
}
_HINTS: dict[Flavour, str] = {
    "tensorrt": "On a Jetson: sudo apt install nvidia-jetpack, and a venv made with --system-site-packages. Elsewhere: "
    "pip install 'edgekiln[tensorrt]' (from NVIDIA's package index), or 'edgekiln[lean]' to run only.",
    "tensorrt-rtx": "Run: pip install 'edgekiln[rtx]'",
}


def import_tensorrt(flavour: Flavour, *, to_build: bool) -> ModuleType:
    """Import the library of that flavour.

    Args:
        flavour: which of the two products.
        to_build: whether a builder and parser are needed; to run, ``tensorrt_lean`` will do.

    Raises:
        MissingExtraError: it is not installed.
        EnvironmentProblem: it is, and its shared libraries do not load; its own words are in the message.
    """
    packages = _PACKAGES[flavour, to_build]
    for name in packages:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except Exception as error:  # a missing shared library is an ImportError, OSError or RuntimeError here
            raise EnvironmentProblem(
                f"{name} is installed and cannot be imported: {type(error).__name__}: {error}",
                hint="Its shared libraries are missing or of another version: install it again.",
            ) from error
    raise MissingExtraError(f"{flavour} is not installed ({', '.join(packages)}).", hint=_HINTS[flavour])


def find_version(flavour: Flavour, *, to_build: bool = False) -> str | None:
    """Version of the installed distribution, without loading it; ``None`` where no distribution tells."""
    for name in _DISTRIBUTIONS[flavour][: 3 if to_build else None]:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None


class LibraryLog:
    """The messages of a library, oldest first. TensorRT keeps one logger per process, so all threads share it.

    Attributes:
        logger: the ``trt.ILogger`` to hand to the library.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._lines: deque[tuple[int, str, str]] = deque(maxlen=_KEPT_LINES)
        self._count = 0
        self._lock = threading.Lock()
        self.logger = _make_logger(trt, self._add)

    def _add(self, severity: str, text: str) -> None:
        with self._lock:
            self._count += 1
            self._lines.append((self._count, severity, text))

    def mark(self) -> int:
        """A position to ask ``since`` with."""
        with self._lock:
            return self._count

    def since(self, mark: int) -> list[tuple[str, str]]:
        """(severity, text) of everything after a mark; severity is ERROR, WARNING, INFO and so on."""
        with self._lock:
            return [(severity, text) for number, severity, text in self._lines if number > mark]

    def errors_since(self, mark: int) -> str:
        """The errors after a mark in one line, for a message; a fixed text where there were none."""
        errors = [text for severity, text in self.since(mark) if severity in {"ERROR", "INTERNAL_ERROR"}]
        return " | ".join(errors) or "the library gave no reason"


def _make_logger(trt: ModuleType, add: Callable[[str, str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined] # the module is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:  # called from any thread of the library
            name = str(severity).rpartition(".")[2]
            if name != "VERBOSE":
                add(name, msg)

    return Logger()


def library_log(trt: ModuleType) -> LibraryLog:
    """The one log of a library in this process."""
    with _making:  # the library keeps the first logger it is given: a second one would hear nothing
        return _make_log(trt)


_make_log = cache(LibraryLog)
_making = threading.Lock()
