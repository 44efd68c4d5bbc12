"""Other libraries as people call them, without edgekiln's sessions: what the runtime's own cost is seen against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["BareOnnxRuntime", "open_onnxruntime"]

_ERRORS_ONLY = 3


class BareOnnxRuntime:
    """``InferenceSession.run`` and nothing else: no check of what goes in or comes out."""

    device = "cpu"

    def __init__(self, path: str, threads: int | None) -> None:
        ort = import_onnxruntime("cpu")
        ort.set_default_logger_severity(
            _ERRORS_ONLY
        )  # of the process: the session's options stay the defaults
        options = ort.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        model = Path(path).read_bytes()
        self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, frames: Frames) -> Logits:
        """uint8 (N, H, W, 3) to float32 (N, C)."""
        logits: Logits = self._session.run(None, {self._input: frames})[0]
        return logits

    def close(self) -> None:
        """Free the engine."""
        self._session = None


def open_onnxruntime(*, path: str, threads: int | None) -> BareOnnxRuntime:
    """The factory of plain onnxruntime on one ONNX file; ``None`` leaves threads to the library."""
    return BareOnnxRuntime(path, threads)
