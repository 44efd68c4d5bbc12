"""Opens an engine's bytes with the library that runs them. Each library is imported in its module alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.session import Session

__all__ = ["CPU_BACKENDS", "ONNX_BACKENDS", "Backend", "open_session"]

Backend = Literal["onnxruntime-cpu", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]

CPU_BACKENDS: frozenset[Backend] = frozenset({"onnxruntime-cpu", "openvino"})
"""Those that run on the CPU, with a choice of threads; all others need a GPU."""

ONNX_BACKENDS: frozenset[Backend] = CPU_BACKENDS | {"onnxruntime-cuda"}
"""Those that load ONNX files; all others load engines that were built from one."""


def open_session(
    backend: Backend,
    model: bytes | Sequence[bytes],
    *,
    threads: int | None = None,
    allow_operators: Collection[str] = (),
) -> Session:
    """Load an engine.

    Args:
        backend: which library and device.
        model: the engine's bytes, whose digest the caller has checked; for the TensorRT backends also several
            engines of one model, one for each batch size.
        threads: CPU worker threads; ``None`` leaves it to the library.
        allow_operators: operators of other domains than ONNX's that an ONNX file may hold; see ``onnx_files/scan.py``.

    Raises:
        UsageError: no such backend.
        EnvironmentProblem: the library or device is not here.
        EngineError: the library refused the bytes.
    """
    engines = [model] if isinstance(model, bytes) else list(model)
    match backend:
        case "onnxruntime-cpu" | "onnxruntime-cuda":
            from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(
                _only(engines),
                device=backend.removeprefix("onnxruntime-"),
                threads=threads,
                allow_operators=allow_operators,
            )
        case "openvino":
            from edgekiln.runtime.backends.openvino import OpenVinoSession

            return OpenVinoSession(_only(engines), threads=threads, allow_operators=allow_operators)
        case "tensorrt" | "tensorrt-rtx":
            from edgekiln.runtime.backends.tensorrt import TensorRTSession

            return TensorRTSession(engines, flavour=backend)
        case _:
            raise UsageError(f"Unknown backend {backend!r}; known: {', '.join(get_args(Backend))}.")


def _only(engines: Sequence[bytes]) -> bytes:
    if len(engines) != 1:
        raise UsageError(f"ONNX files serve all batch sizes: wanted one, got {len(engines)}.")
    return engines[0]
