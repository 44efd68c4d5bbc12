"""The PyTorch model that every engine is compared with, behind the same Session interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgekiln.export.onnx import PixelModel, normalize
from edgekiln.pipeline.checkpoint import load_checkpoint
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Frames, Logits, check_finite, check_frames

__all__ = ["TorchSession", "fold_batchnorm", "open_baseline"]


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
    with frozen weights.
    """
    settings = BackboneSettings.model_validate(backbone)
    model, contract = load_checkpoint(Path(checkpoint), settings)
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


def fold_batchnorm(network: nn.Module, example: torch.Tensor) -> int:
    """Fold every BatchNorm that follows a convolution directly into it, in place; returns how many.

    w' = w g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta (Jacob et al. 2018, section 3.2). What follows what is
    seen by running ``example`` float32 (1, 3, H, W) once, so it works for any module tree; a convolution whose output
    has other readers besides is left alone.
    """
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
