"""The PyTorch model that every engine is compared with, behind the same Session interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from edgekiln.export.onnx import PixelModel, normalize
from edgekiln.pipeline.checkpoint import load_checkpoint
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Frames, Logits, check_finite, check_frames

__all__ = ["TorchSession", "open_baseline"]


class TorchSession:
    """Eager FP32 PyTorch on the CPU: uint8 (N, H, W, 3) in, float32 (N, C) out. See ``runtime.Session``."""

    def __init__(
        self, model: PixelModel, size: tuple[int, int], num_classes: int, *, threads: int, channels_last: bool
    ) -> None:
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._model: PixelModel | None = model.eval().to(memory_format=self._layout)
        self._size, self._num_classes, self._threads = size, num_classes, threads
        torch.set_num_threads(threads)

    @property
    def backend(self) -> str:
        """See Session."""
        return "pytorch-cpu"

    @property
    def device(self) -> str:
        """See Session."""
        return "cpu"

    @property
    def threads(self) -> int | None:
        """See Session."""
        return self._threads

    @property
    def frame_shape(self) -> tuple[int, int]:
        """See Session."""
        return self._size

    @property
    def num_classes(self) -> int:
        """See Session."""
        return self._num_classes

    @torch.inference_mode()
    def run(self, frames: Frames) -> Logits:
        """See Session."""
        if self._model is None:
            raise UsageError("This session is closed.")
        check_frames(frames, *self._size)
        pixels = torch.from_numpy(frames).float().permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
        output = self._model.network(normalize(pixels, self._model.scale, self._model.offset))
        logits: Logits = output.float().numpy()
        check_finite(logits, self.backend)
        return logits

    def bare_call(self, frames: Frames) -> Callable[[], object]:
        """The network alone, its input ready: what a benchmark's boundary ``engine`` times."""
        model = self._model
        if model is None:
            raise UsageError("This session is closed.")
        pixels = torch.from_numpy(frames).float().permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
        values = normalize(pixels, model.scale, model.offset)

        @torch.inference_mode()
        def call() -> object:
            return model.network(values)

        return call

    def close(self) -> None:
        """See Session."""
        self._model = None


def open_baseline(
    *, checkpoint: str, backbone: dict[str, str], threads: int, channels_last: bool
) -> TorchSession:
    """The factory that benchmark workers call; all arguments are JSON values."""
    settings = BackboneSettings.model_validate(backbone)
    model, contract = load_checkpoint(Path(checkpoint), settings)
    return TorchSession(
        model,
        (contract.height, contract.width),
        len(contract.classes),
        threads=threads,
        channels_last=channels_last,
    )
