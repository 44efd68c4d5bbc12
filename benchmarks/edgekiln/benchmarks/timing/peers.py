"""Other libraries as people call them, without edgekiln's sessions: what ours are seen against.

Each has its own best preparation inside: from uint8 (N, H, W, 3) to logits, as our engines. Files of LiteRT and ncnn
are made elsewhere (``pipeline/proof/peer_files.py``).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.spec import Frames, Logits

__all__ = [
    "BareLiteRt",
    "BareNcnn",
    "BareOnnxRuntime",
    "open_litert",
    "open_ncnn",
    "open_onnxruntime",
    "output_to",
]

_ERRORS_ONLY = 3
_SIGN_BIT = 0x80


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


class BareLiteRt:
    """LiteRT's interpreter with XNNPACK, its default on CPUs, on a file whose input is float32 or int8 NHWC.

    The input is written where the library reads it. Pixels become int8 by the input's own scale and zero point: one
    flipped bit where these make a step of a pixel a step of the input, else a table of 256 values for each channel.
    A file whose layers have the batch written into them takes one picture after the other (``one_by_one``).
    """

    device = "cpu"

    def __init__(  # what its factory is given
        self, path: str, scale: Sequence[float], offset: Sequence[float], threads: int, one_by_one: bool
    ) -> None:
        litert = import_extra("ai_edge_litert.interpreter", "litert")
        self._scale, self._offset = np.asarray(scale, np.float32), np.asarray(offset, np.float32)
        with output_to(os.devnull):  # it says that it has made its delegate
            self._engine: Any = litert.Interpreter(path, num_threads=threads)
            self._engine.allocate_tensors()
        (self._input,), (self._output,) = self._engine.get_input_details(), self._engine.get_output_details()
        self._batch, self._one_by_one = int(self._input["shape"][0]), one_by_one
        self._table = self._pixel_table() if self._input["dtype"] is np.int8 else None
        signed = np.arange(256).astype(np.uint8) ^ _SIGN_BIT
        self._is_shift = self._table is not None and bool(
            (self._table == signed.view(np.int8)[:, None]).all()
        )

    def run(self, frames: Frames) -> Logits:
        """uint8 (N, H, W, 3) to float32 (N, C); another N than before makes room anew."""
        if self._one_by_one and len(frames) > 1:
            return np.concatenate([self.run(frames[i : i + 1]) for i in range(len(frames))])
        if len(frames) != self._batch:
            self._make_room(len(frames))
        self._write(frames, self._engine.tensor(self._input["index"])())
        self._engine.invoke()
        answer = self._engine.get_tensor(self._output["index"])
        if answer.dtype == np.float32:
            return np.asarray(answer)
        step, zero = self._output["quantization"]
        return np.asarray((answer.astype(np.float32) - zero) * np.float32(step))

    def takes_batches(self) -> bool:
        """Whether two pictures in a call are answered as one by one; afterwards it may be of no use."""
        frames = np.random.default_rng(0).integers(0, 256, (2, *self._input["shape"][1:]), np.uint8)
        alone = np.concatenate([self.run(frames[i : i + 1]) for i in range(2)])
        try:
            return bool(np.allclose(self.run(frames), alone, rtol=0, atol=1e-3 * float(np.abs(alone).max())))
        except EngineError:
            return False

    def close(self) -> None:
        """Free the engine."""
        self._engine = None

    def _pixel_table(self) -> NDArray[np.int8]:
        """int8 (256, 3): what each value of a pixel becomes in each channel."""
        step, zero = self._input["quantization"]
        values = np.arange(256, dtype=np.float32)[:, None] * self._scale + self._offset
        return np.asarray(np.clip(np.round(values / step) + zero, -128, 127).astype(np.int8))

    def _make_room(self, batch: int) -> None:
        try:
            self._engine.resize_tensor_input(self._input["index"], [batch, *self._input["shape"][1:]])
            self._engine.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"LiteRT takes no batch of {batch} of this file: {error}") from error
        self._batch = batch

    def _write(self, frames: Frames, place: NDArray[Any]) -> None:
        if self._table is None:
            np.multiply(frames, self._scale, out=place)
            np.add(place, self._offset, out=place)
        elif self._is_shift:
            np.bitwise_xor(frames, np.uint8(_SIGN_BIT), out=place.view(np.uint8))
        else:
            for channel in range(3):
                np.take(self._table[:, channel], frames[..., channel], out=place[..., channel])


def open_litert(
    *, path: str, scale: Sequence[float], offset: Sequence[float], threads: int, one_by_one: bool = False
) -> BareLiteRt:
    """The factory of LiteRT on one ``.tflite`` file; the input is a pixel times ``scale`` plus ``offset``."""
    return BareLiteRt(path, scale, offset, threads, one_by_one)


class BareNcnn:
    """ncnn's extractor on one image after the other: the library knows no batch."""

    device = "cpu"

    def __init__(self, path: str, scale: Sequence[float], offset: Sequence[float], threads: int) -> None:
        self._ncnn: Any = import_extra("ncnn", "ncnn")
        self._norm = [float(value) for value in scale]
        self._mean = [-shift / value for shift, value in zip(offset, self._norm, strict=True)]
        self._engine: Any = self._ncnn.Net()
        self._engine.opt.num_threads = threads
        self._engine.opt.use_vulkan_compute = False  # the CPU is what is compared
        weights = str(Path(path).with_suffix(".bin"))
        if self._engine.load_param(path) or self._engine.load_model(weights):
            raise EngineError(
                f"ncnn does not load {path}.", hint="Another version of pnnx may write it better."
            )
        (self._input,), (self._output,) = self._engine.input_names(), self._engine.output_names()

    def run(self, frames: Frames) -> Logits:
        """uint8 (N, H, W, 3) to float32 (N, C)."""
        return np.stack([self._run_one(frame) for frame in frames])

    def takes_batches(self) -> bool:
        """Each picture has a call of its own, so any number of them is taken."""
        return True

    def _run_one(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = frame.shape[:2]
        pixels = self._ncnn.Mat.from_pixels(frame, self._ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        pixels.substract_mean_normalize(self._mean, self._norm)
        extractor = self._engine.create_extractor()
        extractor.input(self._input, pixels)
        code, answer = extractor.extract(self._output)
        if code:
            raise EngineError(f"ncnn ends a call with {code}.")
        return np.array(answer, np.float32)

    def close(self) -> None:
        """Free the engine."""
        self._engine = None


def open_ncnn(*, path: str, scale: Sequence[float], offset: Sequence[float], threads: int) -> BareNcnn:
    """The factory of ncnn on ``NAME.param``, beside which ``NAME.bin`` lies; else as ``open_litert``."""
    return BareNcnn(path, scale, offset, threads)


@contextlib.contextmanager
def output_to(path: str) -> Iterator[None]:
    """What this process writes to stdout and stderr goes into a file meanwhile, from C and C++ too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(file)
