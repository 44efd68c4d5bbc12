"""The PyTorch model that every engine is compared with, behind the same Session interface.

On the CPU it is TorchSession. On a GPU it is one of the callers that the GPU suite times too, behind StagedSession;
that part was tested on the CPU only (``device="cpu"`` takes the same path but for the CUDA graph), and was not run on
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgekiln.export.to_onnx import PixelModel, normalize
from edgekiln.pipeline.proof.torch_callers import GraphCaller, PixelNetwork, TorchCaller
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.checkpoint import load_checkpoint
from edgekiln.pipeline.training.reparameterization import fuse_branches
from edgekiln.runtime.backends.session_base import DescribedSession, SessionFacts
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import DeviceError, UsageError
from edgekiln.runtime.spec import Frames, Logits, check_finite, check_frames

__all__ = [
    "GPU_WAYS",
    "GpuWay",
    "StagedSession",
    "TorchSession",
    "fold_batchnorm",
    "load_fused",
    "open_baseline",
    "open_gpu_baseline",
]


class TorchSession(DescribedSession):
    """Eager FP32 PyTorch on the CPU: uint8 (N, H, W, 3) in, float32 (N, C) out. See ``runtime.Session``."""

    def __init__(
        self, model: PixelModel, size: tuple[int, int], num_classes: int, *, threads: int, channels_last: bool
    ) -> None:
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._model: PixelModel | None = model.eval().to(memory_format=self._layout)
        self._facts = SessionFacts("pytorch-cpu", "cpu", threads, size, num_classes)
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self, frames: Frames) -> Logits:
        """See Session."""
        if self._model is None:
            raise UsageError("This session is closed.")
        check_frames(frames, *self.frame_shape)
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
    *,
    checkpoint: str,
    backbone: dict[str, str],
    threads: int,
    channels_last: bool,
    folded: bool = False,
    compiled: bool = False,
) -> TorchSession:
    """The factory that benchmark workers call; all arguments are JSON values.

    ``folded`` folds BatchNorm into the convolutions before it, ``compiled`` passes the network through torch.compile
    with frozen weights. Branches that only training needs are fused in all of them, as in what is exported.
    """
    model, contract = load_fused(checkpoint, backbone)
    if folded:
        fold_batchnorm(model.eval().network, torch.zeros(1, 3, contract.height, contract.width))
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are constants, so layouts and BatchNorm are folded
        model.network = torch.compile(model.eval().network)  # type: ignore[assignment] # it wraps the module
    return TorchSession(
        model,
        (contract.height, contract.width),
        len(contract.classes),
        threads=threads,
        channels_last=channels_last,
    )


def load_fused(checkpoint: str, backbone: dict[str, str]) -> tuple[PixelModel, Contract]:
    """The network of a checkpoint with its branches fused, as it is exported; arguments as ``open_baseline``'s."""
    settings = BackboneSettings.model_validate(backbone)
    model, contract = load_checkpoint(Path(checkpoint), settings)
    model.network = fuse_branches(model.network, settings.model, contract.height).network
    return model, contract


@dataclass(frozen=True, slots=True)
class GpuWay:
    """A way to run PyTorch on a GPU.

    Attributes:
        dtype: of weights and activations.
        precision: for tables.
        tf32: float32 products and convolutions may drop to 10 bits of mantissa.
        channels_last: the layout that FP16 tensor cores want.
        graph: copies and network replayed as one CUDA graph, instead of launched kernel by kernel.
    """

    dtype: torch.dtype
    precision: str
    tf32: bool = False
    channels_last: bool = False
    graph: bool = False


GPU_WAYS = {
    "fp32": GpuWay(torch.float32, "fp32"),
    "tf32": GpuWay(torch.float32, "tf32", tf32=True),
    "fp16": GpuWay(torch.float16, "fp16", channels_last=True),
    "fp16-graph": GpuWay(torch.float16, "fp16", channels_last=True, graph=True),
}
"""``fp32`` is strict: TF32 stays off. It is the baseline of a benchmark in which engines run on the GPU."""


class StagedSession(DescribedSession):
    """PyTorch with pinned buffers on both sides, one image a call; see ``torch_callers`` and ``runtime.Session``."""

    def __init__(self, caller: TorchCaller, *, size: tuple[int, int], num_classes: int, device: str) -> None:
        self._caller: TorchCaller | None = caller
        backend, place = ("pytorch-cuda", "cuda:0") if device == "cuda" else ("pytorch-cpu", "cpu")
        self._facts = SessionFacts(backend, place, None, size, num_classes)

    def run(self, frames: Frames) -> Logits:
        """See Session; only one image at a time, since buffers and a CUDA graph have one shape."""
        if self._caller is None:
            raise UsageError("This session is closed.")
        check_frames(frames, *self.frame_shape)
        if len(frames) != 1:
            raise UsageError(f"This session takes one image a call, got {len(frames)}.")
        logits = self._caller.run(frames)
        check_finite(logits, self.backend)
        return logits

    def close(self) -> None:
        """See Session."""
        if self._caller is not None:
            self._caller.close()
        self._caller = None


def open_gpu_baseline(
    *, checkpoint: str, backbone: dict[str, str], way: str, search: bool = False, device: str = "cuda"
) -> StagedSession:
    """The factory that benchmark workers call for PyTorch on a GPU; all arguments are JSON values.

    Args:
        checkpoint: file of the fine-tuned network.
        backbone: settings of its recipe.
        way: a key of ``GPU_WAYS``.
        search: let cuDNN time its algorithms and take the fastest; a CUDA graph always does.
        device: ``cuda``; ``cpu`` is for tests.

    Raises:
        DeviceError: torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"torch {torch.__version__} finds no GPU.", hint="`nvidia-smi` tells what is missing."
        )
    chosen = GPU_WAYS[way]
    if chosen.graph and device != "cuda":
        raise UsageError(f"{way} replays a CUDA graph, which {device} has not.")
    model, contract = load_fused(checkpoint, backbone)
    network = PixelNetwork(
        model.network,
        chosen.dtype,
        channels_last=chosen.channels_last,
        normalization=(model.scale, model.offset),
    )
    network = network.eval().to(device)
    shape = (1, contract.height, contract.width)
    caller = (
        GraphCaller(network, shape)
        if chosen.graph
        else TorchCaller(network, shape, device=device, tf32=chosen.tf32, search=search)
    )
    size = (contract.height, contract.width)
    return StagedSession(caller, size=size, num_classes=len(contract.classes), device=device)


def fold_batchnorm(network: nn.Module, example: torch.Tensor) -> int:
    """Fold every BatchNorm that follows a convolution directly into it, in place; returns how many.

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta (Jacob et al. 2018, section 3.2). What follows what is
    seen by running ``example`` float32 (1, 3, H, W) once, so it works for any module tree; a convolution whose output
    has other readers besides is left alone.
    """
    pairs = _find_pairs(network, example)
    once = {conv for conv, _ in pairs if sum(other is conv for other, _ in pairs) == 1}
    folded = {norm: conv for conv, norm in pairs if conv in once}
    for norm, conv in folded.items():
        _fold_pair(conv, norm)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in folded:
                # timm's BatchNormAct2d holds the activation that follows it.
                setattr(parent, name, getattr(child, "act", None) or nn.Identity())
    return len(folded)


def _find_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each BatchNorm with the convolution whose output it reads first, as one run of ``example`` shows."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[torch.Tensor] = []  # so that no tensor's id is used twice
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by[id(output)] = module
        kept.append(output)

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        conv = made_by.pop(id(inputs[0]), None)
        if conv is not None:
            pairs.append((conv, module))

    hooks = [
        *(m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, nn.Conv2d)),
        *(
            m.register_forward_pre_hook(before_norm)
            for m in network.modules()
            if isinstance(m, nn.BatchNorm2d)
        ),
    ]
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def _fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    gain = gain if norm.weight is None else gain * norm.weight
    shift = torch.zeros_like(gain) if norm.bias is None else norm.bias
    bias = torch.zeros_like(gain) if conv.bias is None else conv.bias
    conv.weight.copy_(conv.weight * gain.reshape(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias - norm.running_mean) * gain + shift)
