"""onnxruntime on CUDA without copies through pageable memory or launches one by one: fixed buffers, CUDA graphs.

Each batch size (a power of two) has its input and output on the device, bound once; onnxruntime captures a CUDA graph
of it on its first run and replays it afterwards ("Using CUDA Graphs" in the CUDA provider's documentation). Such runs
of one session must not overlap, so a lock orders them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.spec import Frames, Logits

__all__ = ["MAX_BUCKET", "BoundRunner", "cuda_options"]

MAX_BUCKET = 64
"""Images in the largest batch that has buffers of its own; larger ones are split."""


def cuda_options(*, graphs: bool) -> dict[str, str]:
    """Options of the CUDA provider."""
    return {
        "use_tf32": "0",  # TF32 would make an FP32 engine compute with 10 bits of mantissa
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape, and there are few shapes
        "enable_cuda_graph": "1" if graphs else "0",
    }


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One batch size: host staging, device buffers, and the options that name its graph."""

    staging: Frames
    input: Any
    output: Any
    binding: Any
    options: Any


class BoundRunner:
    """Runs one onnxruntime session on buffers that never move. Safe from any thread."""

    def __init__(
        self,
        ort: ModuleType,
        session: Any,
        *,
        names: tuple[str, str],
        frame_shape: tuple[int, int],
        classes: int,
        device: str = "cuda",
    ) -> None:
        self._ort, self._session, self._device = ort, session, device
        self._input, self._output = names
        self._frame_shape, self._classes = frame_shape, classes
        self._buckets: dict[int, _Bucket] = {}
        self._lock = threading.Lock()

    def run(self, frames: Frames) -> Logits:
        """float32 (N, C) for uint8 (N, H, W, 3), N from 1 on."""
        logits = np.empty((len(frames), self._classes), np.float32)
        with self._lock:
            for start in range(0, len(frames), MAX_BUCKET):
                part = frames[start : start + MAX_BUCKET]
                logits[start : start + len(part)] = self._run_bucket(part)
        return logits

    def _run_bucket(self, frames: Frames) -> Logits:
        count = len(frames)
        size = 1 << (count - 1).bit_length()
        bucket = self._buckets.get(size)
        if bucket is None:
            bucket = self._buckets[size] = self._make_bucket(size)
        bucket.staging[:count] = frames  # what stands behind is an older batch's: its answers are not read
        bucket.input.update_inplace(bucket.staging)
        self._session.run_with_iobinding(bucket.binding, bucket.options)
        logits: Logits = bucket.output.numpy()[:count]
        return logits

    def _make_bucket(self, size: int) -> _Bucket:
        ort, shape = self._ort, (size, *self._frame_shape, 3)
        staging = np.zeros(shape, np.uint8)
        value = ort.OrtValue.ortvalue_from_numpy(staging, self._device, 0)
        output = ort.OrtValue.ortvalue_from_shape_and_type((size, self._classes), np.float32, self._device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, value)
        binding.bind_ortvalue_output(self._output, output)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(size))  # one captured graph for each size
        return _Bucket(staging, value, output, binding, options)
