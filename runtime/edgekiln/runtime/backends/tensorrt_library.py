"""Finds TensorRT in its three distributions, and keeps what it says.

``tensorrt`` builds and runs, ``tensorrt_lean`` runs version-compatible engines only, ``tensorrt_rtx`` is the one for
RTX GPUs. They share one Python API; what one of them lacks is asked with ``hasattr``, never by version.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from edgekiln.runtime.backends.cuda_needs import needed_cuda
from edgekiln.runtime.backends.cuda_words import tells_of_old_driver
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.backends.tensorrt_errors import convert_no_start
from edgekiln.runtime.cuda.driver import explain_old_driver, supported_cuda
from edgekiln.runtime.errors import DeviceError, EdgekilnError, EnvironmentProblem, MissingExtraError

__all__ = ["LibraryLog", "find_version", "import_tensorrt", "library_log", "refuse_hollow", "start_library"]

_log = logging.getLogger("edgekiln.runtime")

_KEPT_LINES = 20_000
_TOLD_WARNINGS = 200
"""Different ones of one library that are logged; a text that has a number in it may never come twice."""
_ERRORS = {"ERROR", "INTERNAL_ERROR"}
_FIRST_PAGE = 4096
"""No object lies below this address: the first page of a process is never mapped."""
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
        self._lines: deque[tuple[int, int, str, str]] = deque(maxlen=_KEPT_LINES)
        self._count = 0
        # The collector may run while it is held, and a destructor of the library's may log in this thread.
        self._lock = threading.RLock()
        self._name = trt.__name__
        self._tells = False
        self._told: set[str] = set()
        self.logger = _make_logger(trt, self._add)

    def _add(self, severity: str, text: str) -> None:
        with self._lock:
            self._count += 1
            self._lines.append((self._count, threading.get_ident(), severity, text))
            tells = self._tells and severity == "WARNING" and text not in self._told
            if tells:
                self._told.add(text)
                self._tells = len(self._told) < _TOLD_WARNINGS
        if tells:
            with contextlib.suppress(
                Exception
            ):  # a handler's; the library that calls here is not written in Python
                _log.warning("%s: %s", self._name, text)

    def tell_warnings(self) -> None:
        """From now on each warning of the library goes to the logger ``edgekiln.runtime`` too, once in a process."""
        with self._lock:
            self._tells = len(self._told) < _TOLD_WARNINGS

    def mark(self) -> int:
        """A position to ask ``since`` with."""
        with self._lock:
            return self._count

    def since(self, mark: int) -> list[tuple[str, str]]:
        """(severity, text) of everything after a mark; severity is ERROR, WARNING, INFO and so on."""
        with self._lock:
            lines = self._lines.copy()  # in one step: see the lock
        return [(severity, text) for number, _, severity, text in lines if number > mark]

    def errors_since(self, mark: int) -> str:
        """The errors after a mark in one line, for a message; a fixed text where there were none."""
        errors = [text for severity, text in self.since(mark) if severity in _ERRORS]
        return " | ".join(errors) or "the library gave no reason"

    def has_own_errors(self, mark: int) -> bool:
        """Whether the library said an error in this thread after a mark; another thread's are not meant."""
        me = threading.get_ident()
        with self._lock:
            lines = self._lines.copy()
        return any(
            number > mark and thread == me and severity in _ERRORS for number, thread, severity, _ in lines
        )


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


def start_library(trt: ModuleType, log: LibraryLog, make: Callable[[], Any]) -> Any:
    """Construct a ``Runtime``, ``Builder``, ``OnnxParser`` or ``Refitter``, all of which start CUDA or may do so.

    Where CUDA does not start, the bindings of 10.16 and 11.4 return an object around an address that is none, having
    said an error to the logger. Any use of it ends the process, and so does its destruction in 10.16. So such an object
    is never used and never freed.

    Args:
        trt: the library.
        log: its log, whose logger ``make`` hands over.
        make: constructs the object, in this thread.

    Raises:
        DeviceError: CUDA does not start: no driver, one that is too old, or no device.
        EnvironmentProblem: the library does not start.
        ResourceError: memory of the GPU ran out.
    """
    mark = log.mark()
    try:
        made = make()
    except TypeError as error:  # what the bindings make of a null pointer
        raise _no_start(trt, f"{error}: {log.errors_since(mark)}") from error
    if log.has_own_errors(mark) or _is_hollow(made):
        _keep_forever(made)
        raise _no_start(trt, log.errors_since(mark))
    return made


def _no_start(trt: ModuleType, words: str) -> EdgekilnError:
    """A driver that is too old is told with both versions, where it tells its own."""
    name, has = f"{trt.__name__} {trt.__version__}", supported_cuda()
    if has is None or not tells_of_old_driver(words):
        return convert_no_start(name, words)
    old = explain_old_driver(name, needed_cuda(trt.__name__), has)
    return DeviceError(f"{old.message} It says: {words}", hint=old.hint)


def refuse_hollow(made: Any) -> Any:
    """What a method of the library returned, or ``None`` where that is an object around an address that is none."""
    if not _is_hollow(made):
        return made
    _keep_forever(made)
    return None


def _is_hollow(made: Any) -> bool:
    """Whether an object of the bindings wraps no address that could be an object's (0x228 was seen).

    pybind11 keeps the address right behind Python's own header of an object (``struct instance``); where it keeps more
    than one, an address of a table stands there, which is never small.
    """
    if type(type(made)).__name__ != "pybind11_type":
        return False
    return ctypes.c_size_t.from_address(id(made) + object.__basicsize__).value < _FIRST_PAGE


def _keep_forever(made: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
