"""Opens an engine's bytes with the library that runs them. Each library is imported in its module alone.

May import: ``runtime``, ``runtime/cuda``, ``runtime/onnx_files``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.limits import default_threads
from edgekiln.runtime.session import Session

if TYPE_CHECKING:
    from edgekiln.runtime.cuda import Wait

__all__ = [
    "CPU_BACKENDS",
    "LATE_BATCH_BACKENDS",
    "ONNX_BACKENDS",
    "SLOT_BACKENDS",
    "Backend",
    "open_session",
]

Backend = Literal["onnxruntime-cpu", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]

CPU_BACKENDS: frozenset[Backend] = frozenset({"onnxruntime-cpu", "openvino"})
"""Those that run on the CPU, with a choice of threads; all others need a GPU."""

ONNX_BACKENDS: frozenset[Backend] = CPU_BACKENDS | {"onnxruntime-cuda"}
"""Those that load ONNX files; all others load engines that were built from one."""

LATE_BATCH_BACKENDS: frozenset[Backend] = frozenset({"openvino"})
"""Those that compile a second model for batches when the first of them comes, which takes as long as loading."""

SLOT_BACKENDS: frozenset[Backend] = frozenset({"tensorrt", "tensorrt-rtx"})
"""Those whose calls may run at once on the GPU, each in a slot of its own."""


def open_session(
    backend: Backend,
    model: bytes | Sequence[bytes],
    *,
    threads: int | None = None,
    allow_operators: Collection[str] = (),
    device: int = 0,
    slots: int | None = None,
    wait: Wait | None = None,
    keep_compiled: bool = False,
) -> Session:
    """Load an engine.

    Args:
        backend: which library and device.
        model: the engine's bytes, whose digest the caller has checked; for TensorRT also several, by batch size.
        threads: CPU worker threads; ``None`` leaves it to the library, within ``limits.default_threads``.
        allow_operators: operators of other domains than ONNX's that an ONNX file may hold; see ``onnx_files/scan.py``.
        device: number of the GPU, among those that ``CUDA_VISIBLE_DEVICES`` shows; a CPU backend has none.
        slots, wait: of the TensorRT backends only: calls that may run at once, ``None`` for the backend's own default,
            and how a call waits for the GPU, ``spin`` or ``blocking``.
        keep_compiled: keep on disk what OpenVINO compiled, and take it from there; see ``kernel_cache.py``.

    Raises:
        UsageError: no such backend, or one that has no slots.
        EnvironmentProblem, EngineError: the library or device is not here, or refused the bytes.
    """
    engines = [model] if isinstance(model, bytes) else list(model)
    chosen, threads = _choose_slots(backend, slots, wait), _count(threads, backend)
    match backend:
        case "onnxruntime-cpu" | "onnxruntime-cuda":
            from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession

            kind = backend.removeprefix("onnxruntime-")
            return OnnxRuntimeSession(_only(engines), kind, threads, allow_operators, device)
        case "openvino":
            from edgekiln.runtime.backends.openvino import OpenVinoSession

            return OpenVinoSession(_only(engines), threads, allow_operators, keep_compiled=keep_compiled)
        case "tensorrt" | "tensorrt-rtx":
            from edgekiln.runtime.backends.tensorrt import TensorRTSession

            return TensorRTSession(engines, flavour=backend, device=device, **chosen)
        case _:
            raise UsageError(f"Unknown backend {backend!r}; known: {', '.join(get_args(Backend))}.")


def _count(threads: int | None, backend: Backend) -> int | None:
    """``threads``, or where nobody chose what the system's limits ask for; on a GPU they do not matter."""
    return default_threads() if threads is None and backend in CPU_BACKENDS else threads


def _choose_slots(backend: str, slots: int | None, wait: Wait | None) -> dict[str, Any]:
    """Those of the two that were chosen; refuses them where the backend runs one call after the other."""
    chosen = {name: value for name, value in (("slots", slots), ("wait", wait)) if value is not None}
    if chosen and backend not in SLOT_BACKENDS:
        raise UsageError(f"{backend} has no {' and no '.join(chosen)}: only TensorRT's engines run in slots.")
    return chosen


def _only(engines: Sequence[bytes]) -> bytes:
    if len(engines) != 1:
        raise UsageError(f"ONNX files serve all batch sizes: wanted one, got {len(engines)}.")
    return engines[0]
