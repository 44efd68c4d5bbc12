"""Opens an engine's bytes with the library that runs them. Each library is imported in its module alone."""

from __future__ import annotations

from typing import Literal, get_args

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.session import Session

__all__ = ["Backend", "open_session"]

Backend = Literal["onnxruntime-cpu", "onnxruntime-cuda"]


def open_session(backend: Backend, model: bytes, *, threads: int | None = None) -> Session:
    """Load an engine.

    Args:
        backend: which library and device.
        model: the engine's bytes, whose digest the caller has checked.
        threads: CPU worker threads; ``None`` leaves it to the library.

    Raises:
        UsageError: no such backend.
        EnvironmentProblem: the library or device is not here.
        EngineError: the library refused the bytes.
    """
    match backend:
        case "onnxruntime-cpu" | "onnxruntime-cuda":
            from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(model, device=backend.removeprefix("onnxruntime-"), threads=threads)
        case _:
            raise UsageError(f"Unknown backend {backend!r}; known: {', '.join(get_args(Backend))}.")
