"""PyTorch in the ways that people run it on a GPU, each from pixels on the host to logits on the host.

All stage their pixels and logits in pinned memory, so a ratio to them is one of computing and launching, and not of
how memory was allocated. Both the GPU suite and the recipes' benchmark time these. They were written and tested with
``device="cpu"`` and against fakes; ``make gpu-test`` runs them on a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.runtime.spec import Frames, Logits

__all__ = ["GraphCaller", "PixelNetwork", "TorchCaller", "compile_network", "time_opening"]

_WARM_UP_CALLS = 5


class PixelNetwork(nn.Module):
    """uint8 (N, H, W, 3) to float32 logits: normalization and the network in one number format.

    ``normalization`` is (scale, offset) of x * scale + offset, numbers or tensors (1, 3, 1, 1); by default
    (x - 127) / 128.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        *,
        channels_last: bool,
        normalization: tuple[Tensor | float, Tensor | float] = (1 / 128, -127 / 128),
    ) -> None:
        super().__init__()
        for name, value in zip(("scale", "offset"), normalization, strict=True):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).to(dtype))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(dtype).to(memory_format=self.layout)
        self.dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        pixels = frames.permute(0, 3, 1, 2).to(self.dtype).contiguous(memory_format=self.layout)
        # By 1/128 exact in FP16 too: both products are multiples of 1/128 below 2.
        logits: Tensor = self.network(pixels * self.scale + self.offset)
        return logits.float()


class TorchCaller:
    """Calls a module; its kernels are launched one by one."""

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        *,
        device: str,
        tf32: bool = False,
        search: bool = False,
    ) -> None:
        """Allocate buffers and warm up.

        Args:
            module: on ``device``.
            shape: (batch, height, width) of every call.
            tf32: let float32 products and convolutions drop to 10 bits of mantissa.
            search: let cuDNN time its algorithms and take the fastest.
        """
        self._module, self._tf32, self._search, self._cuda = module, tf32, search, device == "cuda"
        pinned = self._cuda
        self._host_in = torch.zeros((*shape, 3), dtype=torch.uint8, pin_memory=pinned)
        self._device_in = torch.zeros_like(self._host_in, device=device)
        self.begin()
        with torch.inference_mode():
            answer = self._module(self._device_in)
        self._host_out = torch.empty(answer.shape, dtype=torch.float32, pin_memory=pinned)
        for _ in range(_WARM_UP_CALLS if self._cuda else 1):
            self._work()
        self._wait()

    def begin(self) -> None:
        """See ``Caller``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these switches have newer names, which older releases lack
            torch.backends.cuda.matmul.allow_tf32 = self._tf32
            torch.backends.cudnn.allow_tf32 = self._tf32
        torch.backends.cudnn.benchmark = self._search

    @torch.inference_mode()
    def _work(self) -> None:
        self._device_in.copy_(self._host_in, non_blocking=True)
        self._host_out.copy_(self._module(self._device_in), non_blocking=True)

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.current_stream().synchronize()

    def run(self, frames: Frames) -> Logits:
        """See ``Caller``."""
        self._host_in.numpy()[:] = frames
        self._work()
        self._wait()
        return self._host_out.numpy().copy()

    def device_ms(self, frames: Frames, calls: int) -> list[float] | None:
        """See ``Caller``; with launches one by one the GPU's time has the host's in it, and is not told."""
        return None

    def close(self) -> None:
        """See ``Caller``."""
        del self._module


class GraphCaller(TorchCaller):
    """The copies and the network in one CUDA graph."""

    def __init__(self, module: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
        super().__init__(module, shape, device="cuda", search=True)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # PyTorch's notes on CUDA graphs: warm up on the side
            for _ in range(_WARM_UP_CALLS):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._work()
        self._graph: Any = graph
        # The ignore: from here on the work is the replay of what was captured.
        self._work = graph.replay  # type: ignore[method-assign]

    def device_ms(self, frames: Frames, calls: int) -> list[float] | None:
        """See ``Caller``. A replay ahead keeps the GPU at work while the one that is timed is launched."""
        self._host_in.numpy()[:] = frames
        times = []
        for _ in range(calls):
            # The ignore: torch leaves its Event untyped.
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._graph.replay()
            begin.record()
            self._graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return times

    def close(self) -> None:
        """See ``Caller``."""
        self._graph.reset()
        super().close()


def compile_network(module: PixelNetwork, mode: str) -> Callable[[Tensor], Tensor]:
    """``torch.compile`` for fixed shapes; the compiler runs at the first call."""
    compiled: Callable[[Tensor], Tensor] = torch.compile(module, mode=mode, dynamic=False)
    return compiled


def time_opening(open_caller: Callable[[], Any]) -> tuple[Any, float]:
    """What was opened, and the seconds that it took."""
    started = time.perf_counter()
    opened = open_caller()
    return opened, float(np.round(time.perf_counter() - started, 3))
