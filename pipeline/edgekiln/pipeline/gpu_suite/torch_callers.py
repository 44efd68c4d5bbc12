"""PyTorch in the ways that people run it, each from pixels on the host to logits on the host.

All stage their pixels and logits in pinned memory, so a ratio to them is one of computing and launching, and not of
how memory was allocated.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekiln.pipeline.gpu_suite.models import CLASSES
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["GraphCaller", "PixelNetwork", "TorchCaller", "compile_network"]

_WARM_UP_CALLS = 5


class PixelNetwork(nn.Module):
    """uint8 (N, H, W, 3) to float32 logits: normalization (x - 127) / 128 and the network in one number format."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, channels_last: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(dtype).to(memory_format=self.layout)
        self.dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        pixels = frames.permute(0, 3, 1, 2).to(self.dtype).contiguous(memory_format=self.layout)
        # Exact in FP16 too: both products are multiples of 1/128 below 2.
        logits: Tensor = self.network(pixels * (1 / 128) - 127 / 128)
        return logits.float()


class TorchCaller:
    """Calls a module; its kernels are launched one by one."""

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        batch: int,
        size: int,
        *,
        device: str,
        tf32: bool = False,
        search: bool = False,
    ) -> None:
        """Allocate buffers and warm up.

        Args:
            module: on ``device``.
            tf32: let float32 products and convolutions drop to 10 bits of mantissa.
            search: let cuDNN time its algorithms and take the fastest.
        """
        self._module, self._tf32, self._search, self._cuda = module, tf32, search, device == "cuda"
        pinned = self._cuda
        self._host_in = torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        self._host_out = torch.empty((batch, CLASSES), dtype=torch.float32, pin_memory=pinned)
        self._device_in = torch.zeros_like(self._host_in, device=device)
        self.begin()
        self._host_in.zero_()
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

    def __init__(self, module: Callable[[Tensor], Tensor], batch: int, size: int) -> None:
        super().__init__(module, batch, size, device="cuda", search=True)
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
        """See ``Caller``."""
        self._host_in.numpy()[:] = frames
        times = []
        for _ in range(calls):
            # The ignore: torch leaves its Event untyped.
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
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
