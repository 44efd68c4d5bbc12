"""The one interface of a loaded engine. Backends implement it; nothing else knows which library runs."""

from __future__ import annotations

from typing import Protocol

from edgekiln.runtime.spec import DLPackArray, Frames, Logits

__all__ = ["Session"]


class Session(Protocol):
    """A loaded engine. ``run`` may be called from any thread and never writes to its input.

    It belongs to the process that opened it. A backend says so itself (``HomeProcess`` of ``processes.py``), and keeps
    a library's object whose destructor waits for threads from being freed in a fork (``keep_in_forks`` there).
    """

    @property
    def backend(self) -> str:
        """Name of the backend, for example ``onnxruntime-cpu``."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``: where it really runs."""

    @property
    def threads(self) -> int | None:
        """Worker threads asked for; ``None`` where the engine chose or where it has no meaning."""

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames it takes."""

    @property
    def num_classes(self) -> int:
        """Length of a row of logits."""

    def run(self, frames: Frames | DLPackArray) -> Logits:
        """uint8 (N, height, width, 3) to float32 (N, num_classes), for any N from 0 on.

        Frames of another library are read without a copy where their layout allows: in the host's memory by DLPack;
        TensorRT's sessions also take arrays on their GPU, and ``run_on_device`` there leaves the answers on it.

        Raises:
            InputError: wrong dtype or shape.
            NonFiniteError: an output is NaN or infinite.
            UsageError: the session is closed.
            ForkedError: this is a fork of the process that opened it.
        """

    def close(self) -> None:
        """Free the engine. Closing twice does nothing."""
