"""onnxruntime as if it had CUDA, for the session on CUDA without a GPU: it computes on the CPU's own memory."""

from __future__ import annotations

import gc
import threading
from typing import Any

import onnxruntime
from fake_cuda import FakeCuda

__all__ = ["FakeOnnxRuntime", "HostCuda"]

CUDA = "CUDAExecutionProvider"


class HostCuda(FakeCuda):
    """Its device memory has the addresses of the host's own: onnxruntime computes on it as it would on a GPU's."""

    def _allocate_device(self, nbytes: int) -> tuple[int, int]:
        token, _ = super()._allocate_device(nbytes)
        array = self._arrays[token]
        self._arrays[array.ctypes.data] = array
        return token, array.ctypes.data

    def _free_device(self, token: int) -> None:
        del self._arrays[self._arrays[token].ctypes.data]
        super()._free_device(token)


class FakeOnnxRuntime:
    """What stands in for ``import onnxruntime``.

    Attributes:
        events: what was asked of it and of CUDA, in order.
        gives: the provider that a session gets.
        refuses: words with which the next session is refused; empty for none.
        runs: of each run with bound buffers, the thread and whether the collector might run.
    """

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gives, self.refuses = CUDA, ""
        self.runs: list[tuple[int, bool]] = []

    def get_available_providers(self) -> list[str]:
        """CUDA alone."""
        return [CUDA]

    def InferenceSession(self, model: bytes, options: Any, providers: Any) -> FakeSession:
        """A session on the CPU that says that it is on CUDA."""
        self.events.append("session")
        if self.refuses:
            raise RuntimeError(self.refuses)
        return FakeSession(self, model, options)


class FakeSession:
    """As ``onnxruntime.InferenceSession``, what is used of it on CUDA."""

    def __init__(self, library: FakeOnnxRuntime, model: bytes, options: Any) -> None:
        self._library = library
        self._real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs

    def get_providers(self) -> list[str]:
        """As told."""
        return [self._library.gives]

    def run(self, *arguments: Any) -> Any:
        """Without bound buffers, which a session with graphs must not be run."""
        self._library.events.append("run without bound buffers")
        return self._real.run(*arguments)

    def io_binding(self) -> FakeBinding:
        """A binding."""
        return FakeBinding(self._real.io_binding())

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        """With bound buffers."""
        self._library.runs.append((threading.get_ident(), gc.isenabled()))
        self._real.run_with_iobinding(binding.real, options)


class FakeBinding:
    """As ``onnxruntime.IOBinding``; memory of the device is the host's."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_input(self, name: str, device: str, *rest: Any) -> None:
        """By its address."""
        assert device == "cuda"
        self.real.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, device: str, *rest: Any) -> None:
        """By its address."""
        assert device == "cuda"
        self.real.bind_output(name, "cpu", *rest)
