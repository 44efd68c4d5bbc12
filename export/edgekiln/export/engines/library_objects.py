"""Makes TensorRT's own objects, and refuses what only looks like one. Knows no option and no engine.

Where CUDA fails, a constructor of the bindings may return an object that wraps a null pointer. Using it ends the
process, and in some releases so does dropping it. What the library logs meanwhile tells of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

from edgekiln.runtime.backends.tensorrt_library import LibraryLog
from edgekiln.runtime.errors import EnvironmentProblem

__all__ = ["DRIVER_HINT", "create_object"]

DRIVER_HINT = "The NVIDIA driver is missing or too old for this library; `nvidia-smi` tells its version."
_ERRORS = frozenset({"ERROR", "INTERNAL_ERROR"})


def create_object(trt: ModuleType, log: LibraryLog, construct: Callable[[], Any]) -> Any:
    """What ``construct`` makes: a ``trt.Builder``, ``trt.Runtime`` or another object that a constructor gives.

    Raises:
        EnvironmentProblem: the library gave none, or logged an error while it made it. The object is then kept for
            good, since it may wrap a null pointer and must not even be dropped.
    """
    mark = log.mark()
    try:
        made = construct()
    except TypeError as error:  # what the bindings make of a null pointer that they see
        raise _refusal(trt, f"{error}: {log.errors_since(mark)}") from error
    if any(severity in _ERRORS for severity, _ in log.since(mark)):
        # One reference more than there are names for it: a list would be emptied when the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        raise _refusal(trt, log.errors_since(mark))
    return made


def _refusal(trt: ModuleType, words: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{trt.__name__} {trt.__version__} does not start: {words}", hint=DRIVER_HINT)
