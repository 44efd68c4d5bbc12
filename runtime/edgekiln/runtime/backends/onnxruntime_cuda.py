"""onnxruntime on CUDA without copies through pageable memory or launches one by one: fixed buffers, CUDA graphs.

Each batch size (a power of two) has its input and output on the device, bound once by their addresses, and page-locked
memory of the host to copy from and to; onnxruntime's own ``update_inplace`` and ``numpy`` copy from and to whatever
memory there is. onnxruntime captures a CUDA graph on the first run of a size and replays it afterwards ("Using CUDA
Graphs" in the CUDA provider's documentation). Such runs of one session must not overlap. It also keeps a set of
graphs, a cuBLAS and a cuDNN handle for each thread that calls it, and captures in a mode that other threads disturb.
So one thread makes all of its calls, in the order in which they came.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.backends.session_base import closed_error
from edgekiln.runtime.backends.settling import again, settled
from edgekiln.runtime.cuda import CudaApi, DeviceMemory, PinnedMemory
from edgekiln.runtime.cuda.collector import collector_held_off
from edgekiln.runtime.errors import DeviceError, DeviceLostError
from edgekiln.runtime.limits import explain_no_thread
from edgekiln.runtime.processes import HomeProcess
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["MAX_BUCKET", "BoundRunner", "cuda_options"]

MAX_BUCKET = 64
"""Images in the largest batch that has buffers of its own; larger ones are split."""


_UNGRAPHED = "-1"
"""The ``gpu_graph_id`` of a run that is neither captured nor replayed (the provider's documentation)."""

_THREAD = "edgekiln-onnxruntime-cuda"
_log = logging.getLogger("edgekiln.runtime")


def cuda_options(*, graphs: bool, device: int = 0) -> dict[str, str]:
    """Options of the CUDA provider on the GPU of that number."""
    return {
        "device_id": str(device),
        "use_tf32": "0",  # TF32 would make an FP32 engine compute with 10 bits of mantissa
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape, and there are few shapes
        "enable_cuda_graph": "1" if graphs else "0",
    }


@dataclass(slots=True)
class _Bucket:
    """One batch size: staging on the host, buffers on the device, and the options that name its graph."""

    staging: PinnedMemory
    answers: PinnedMemory
    input: DeviceMemory
    output: DeviceMemory
    frames: Frames
    logits: Logits
    binding: Any
    options: Any
    warm: bool = False


class BoundRunner:
    """Runs one onnxruntime session on buffers that never move. Safe from any thread."""

    def __init__(
        self,
        ort: ModuleType,
        session: Any,
        cuda: CudaApi,
        *,
        names: tuple[str, str],
        frame_shape: tuple[int, int],
        classes: int,
        device: str = "cuda",
    ) -> None:
        """Bind nothing yet; a batch size gets its buffers on its first run.

        Args:
            ort: the library.
            session: of the library, on the device of ``cuda``.
            cuda: whose memory is used; ``close`` closes it.
            names: of the input and the output.
            frame_shape: (height, width).
            classes: length of a row of logits.
            device: what onnxruntime calls the kind of device that the buffers are on.
        """
        self._ort, self._session, self._cuda, self._device = ort, session, cuda, device
        self._input, self._output = names
        self._frame_shape, self._classes = frame_shape, classes
        self._buckets: dict[int, _Bucket] = {}
        self._home = HomeProcess()
        self._worker = ThreadPoolExecutor(1, _THREAD)  # its thread starts with the first call
        self._stream = cuda.create_stream()
        self._lost: DeviceLostError | None = None

    def run(self, frames: Frames) -> Logits:
        """float32 (N, C) for uint8 (N, H, W, 3), N from 1 on.

        Raises:
            DeviceError: CUDA failed; DeviceLostError where it will fail for good.
            ForkedError: this is a fork.
            ResourceError: memory ran out, or no thread can be started.
            UsageError: it is closed.
        """
        self._home.check()  # a fork has no worker: it would wait for ever
        try:
            turn = self._worker.submit(self._run, frames)
        except RuntimeError as error:  # closed, or no thread: the interpreter ends, or there are too many
            if self._session is None:
                raise closed_error() from None
            raise explain_no_thread(_THREAD, error) from error
        return turn.result()

    def _run(self, frames: Frames) -> Logits:
        if self._session is None:  # closed while this call waited for its turn
            raise closed_error()
        logits = np.empty((len(frames), self._classes), np.float32)
        with self._watched():
            for start in range(0, len(frames), MAX_BUCKET):
                part = frames[start : start + MAX_BUCKET]
                self._run_bucket(part, logits[start : start + len(part)])
        return logits

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """CUDA is active inside; a GPU that is lost is told at once by every later call."""
        if self._lost is not None:
            raise again(self._lost)
        try:
            with self._cuda.activate(), settled(self._stream):
                yield
        except DeviceLostError as error:
            self._lost = again(error)  # without its frames, and all that they hold
            raise

    def _run_bucket(self, frames: Frames, logits: Logits) -> None:
        count = len(frames)
        size = 1 << (count - 1).bit_length()
        bucket = self._buckets.get(size)
        if bucket is None:
            bucket = self._buckets[size] = self._make_bucket(size)
        bucket.frames[:count] = frames  # what stands behind is an older batch's: its answers are not read
        cuda, stream = self._cuda, self._stream
        cuda.copy_to_device(bucket.input, bucket.staging, bucket.staging.nbytes, stream)
        stream.synchronize()  # onnxruntime runs on a stream of its own, and has waited for it when it returns
        self._run_session(bucket, size)
        cuda.copy_to_host(bucket.answers, bucket.output, bucket.answers.nbytes, stream)
        stream.synchronize()
        logits[:] = bucket.logits[:count]

    def _run_session(self, bucket: _Bucket, size: int) -> None:
        """Run what is bound; a graph that cannot be captured is only slower without."""
        if bucket.warm:
            self._session.run_with_iobinding(bucket.binding, bucket.options)
            return
        with collector_held_off:  # the first run captures: nobody may free CUDA's memory meanwhile
            self._run_first(bucket, size)
        bucket.warm = True

    def _run_first(self, bucket: _Bucket, size: int) -> None:
        try:
            self._session.run_with_iobinding(bucket.binding, bucket.options)
        except Exception as error:  # the library's errors share no base class
            if "captur" not in str(error).lower():
                raise
            _log.warning("no CUDA graph for batch size %d, as onnxruntime says: %s", size, error)
            bucket.options = self._make_options(_UNGRAPHED)
            self._session.run_with_iobinding(bucket.binding, bucket.options)

    def _make_bucket(self, size: int) -> _Bucket:
        cuda, frame, row = self._cuda, (size, *self._frame_shape, 3), (size, self._classes)
        in_bytes, out_bytes = int(np.prod(frame)), size * self._classes * 4
        with (
            contextlib.ExitStack() as unfinished
        ):  # a call that fails for lack of memory may be made again and again
            memory: list[Any] = []
            for allocate in (cuda.allocate_pinned, cuda.allocate_device):
                for nbytes in (in_bytes, out_bytes):
                    memory.append(allocate(nbytes))
                    unfinished.callback(memory[-1].free)
            staging, answers, given, wanted = memory
            binding = self._session.io_binding()
            binding.bind_input(self._input, self._device, cuda.device, np.uint8, frame, given.address)
            binding.bind_output(self._output, self._device, cuda.device, np.float32, row, wanted.address)
            staging.array[:] = 0
            bucket = _Bucket(
                staging,
                answers,
                given,
                wanted,
                staging.array.reshape(frame),
                answers.array.view(np.float32).reshape(row),
                binding,
                self._make_options(str(size)),  # one captured graph for each size
            )
            unfinished.pop_all()
        return bucket

    def _make_options(self, graph: str) -> Any:
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph)
        return options

    def close(self) -> None:
        """Free the buffers, after the calls that came before. Later calls are refused."""
        try:
            done = self._worker.submit(self._close)
        except RuntimeError:  # no thread, or no longer one: at the end of the interpreter, or closed before
            self._close()
        else:
            done.result()
        finally:
            self._worker.shutdown()

    def _close(self) -> None:
        self._buckets.clear()
        self._session = None
        try:
            self._cuda.close()
        except DeviceError:
            if self._lost is None:
                raise
