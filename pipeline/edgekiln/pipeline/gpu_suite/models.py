"""The measured networks, with weights that are the same on every machine, their pictures, and their files.

Weights come from numpy's generator and not from a file: a folder of engines made elsewhere then belongs to the network
that is made here, and any difference between the two shows when answers are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames

__all__ = ["MODELS", "ModelSpec", "export_models", "make_frames", "make_network", "onnx_name"]

CLASSES = 1000
_CALIBRATION_FRAMES = 32
_BATCH_NORM_FRAMES = 8


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network: timm's name of it (``None``: the small one of the tests), and its input's side in pixels."""

    architecture: str | None
    size: int


MODELS = {
    "lite0": ModelSpec("tf_efficientnet_lite0", 224),
    "resnet50": ModelSpec("resnet50", 224),
    "tiny": ModelSpec(None, 32),
}


def onnx_name(model: str, precision: str) -> str:
    """File name of a model's graph."""
    return f"{model}.onnx" if precision == "fp32" else f"{model}.{precision}.onnx"


# --------------------------------------------------------------------------------------------------------------
# Pictures


def make_frames(count: int, size: int, seed: int = 0) -> Frames:
    """uint8 (count, size, size, 3): coarse shapes, fine texture and edges, as pictures have; no two alike."""
    generator = np.random.default_rng(seed)
    return np.stack([_make_frame(generator, size) for _ in range(count)])


def _make_frame(generator: np.random.Generator, size: int) -> Frames:
    picture = np.zeros((size, size, 3))
    for cells, weight in ((3, 0.6), (12, 0.3), (size, 0.1)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        picture += weight * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    top, left = generator.integers(0, size // 2, 2)
    picture[top : top + size // 3, left : left + size // 3] = generator.integers(0, 256, 3)
    low, high = picture.min(), picture.max()
    frame: Frames = ((picture - low) / (high - low) * 255).astype(np.uint8)
    return frame


# --------------------------------------------------------------------------------------------------------------
# Networks


def make_network(model: str) -> Any:
    """The float32 ``nn.Module``, (N, 3, H, W) to (N, classes), in evaluation mode, on the CPU.

    Raises:
        SkippedPart: torch or timm is not installed.
    """
    for package in ("torch", *(["timm"] if MODELS[model].architecture else [])):
        if not is_installed(package):
            raise SkippedPart(f"{package} is not installed")
    import torch

    spec = MODELS[model]
    network = _make_tiny() if spec.architecture is None else _make_timm(spec.architecture)
    with torch.no_grad():
        _seed_weights(network)
        _settle_batch_norms(network, make_frames(_BATCH_NORM_FRAMES, spec.size, seed=1))
    return network.eval()


def _make_timm(architecture: str) -> Any:
    with _without_torchvision():
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


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let timm be imported where torchvision is absent: for its networks it needs only names of it."""
    if is_installed("torchvision"):
        yield
        return
    finder = _StandIns()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # others must go on seeing that it is not here


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    """A module in which every name is a class of its own, and every name of those a text."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


# --------------------------------------------------------------------------------------------------------------
# Files


def export_models(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """See that each model has its FP32 and FP16 graph: taken from ``given``, or else made in ``work``.

    Args:
        arguments: ``models``: names; ``given``: a folder or ``None``; ``work``: a folder.
        tell: told of each file.

    Returns:
        For each file name: ``state``, ``reason``, ``made_by``, ``bytes`` and ``sha256``.
    """
    given = Path(arguments["given"]) if arguments.get("given") else None
    files: dict[str, Any] = {}
    for model in arguments["models"]:
        for precision in ("fp32", "fp16"):
            name = onnx_name(model, precision)
            tell({"model": name})
            files[name] = _provide(model, precision, given, Path(arguments["work"]))
    return files


def _provide(model: str, precision: str, given: Path | None, work: Path) -> dict[str, Any]:
    name = onnx_name(model, precision)
    if given is not None and (given / name).is_file():
        return _describe(given / name, "given")
    try:
        if precision == "fp32":
            maker = _export_fp32(model, work / name)
        else:
            source = next(
                (f / onnx_name(model, "fp32") for f in (given, work) if f and _has_fp32(f, model)), None
            )
            if source is None:
                raise SkippedPart("there is no FP32 graph to make it from")
            maker = _convert_fp16(
                source, work / name, make_frames(_CALIBRATION_FRAMES, MODELS[model].size, 2)
            )
    except SkippedPart as error:
        return {"state": "skipped", "reason": str(error)}
    except Exception as error:  # exporters raise anything; the other files may do
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
    return _describe(work / name, maker)


def _has_fp32(folder: Path, model: str) -> bool:
    return (folder / onnx_name(model, "fp32")).is_file()


def _describe(path: Path, made_by: str) -> dict[str, Any]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {"state": "done", "reason": None, "made_by": made_by, "bytes": len(data), "sha256": digest}


def _export_fp32(model: str, path: Path) -> str:
    """Write the FP32 graph; returns who did it."""
    if not is_installed("onnx"):
        raise SkippedPart("onnx is not installed")
    network = make_network(model)
    from edgekiln.export.to_onnx import PixelModel, export_onnx
    from edgekiln.runtime.contract import SHARED_NORMALIZATION

    pixel_model = PixelModel(network, SHARED_NORMALIZATION).eval()
    size = MODELS[model].size
    partial = path.with_suffix(".partial")
    if is_installed("onnxscript"):
        contract = Contract(height=size, width=size, classes=tuple(f"class {i}" for i in range(CLASSES)))
        export_onnx(pixel_model, contract, partial)
        maker = "edgekiln.export.to_onnx"
    else:
        _export_torchscript(pixel_model, size, partial)
        maker = "torch's TorchScript exporter, since onnxscript is not installed"
    partial.replace(path)
    return maker


def _export_torchscript(pixel_model: Any, size: int, path: Path) -> None:
    """PyTorch's older exporter, which needs no onnxscript."""
    import onnx
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        torch.onnx.export(
            pixel_model,
            (torch.zeros((2, size, size, 3), dtype=torch.uint8),),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
        )
    model = onnx.load(str(path))
    _drop_last_cast(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _drop_last_cast(graph: Any) -> None:
    """Take out the cast from float32 to float32 that this exporter ends with: FP16 converters trip over it."""
    last = next(node for node in graph.node if OUTPUT_NAME in node.output)
    if last.op_type == "Cast":
        before = next(node for node in graph.node if last.input[0] in node.output)
        before.output[0] = OUTPUT_NAME
        graph.node.remove(last)


def _convert_fp16(source: Path, target: Path, frames: Frames) -> str:
    """Write the FP16 graph; returns who did it."""
    partial = target.with_suffix(".partial")
    if is_installed("modelopt"):
        from edgekiln.export.calibration import CalibrationSet
        from edgekiln.export.precision.fp16 import convert_to_fp16

        digest = hashlib.sha256(frames.tobytes()).hexdigest()
        convert_to_fp16(source, partial, CalibrationSet(frames, np.arange(len(frames)), digest))
        maker = "edgekiln.export.precision.fp16 (nvidia-modelopt)"
    elif is_installed("onnxconverter_common"):
        _convert_with_onnxconverter(source, partial)
        maker = "onnxconverter-common"
    else:
        raise SkippedPart("neither nvidia-modelopt nor onnxconverter-common is installed")
    partial.replace(target)
    return maker


def _convert_with_onnxconverter(source: Path, target: Path) -> None:
    import onnx
    from onnxconverter_common import float16

    model = onnx.load(str(source))
    # It would declare the results of casts to float32 as float16, and leave the casts as they are.
    casts = [node.name for node in model.graph.node if node.op_type == "Cast"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each weight that FP16 rounds
        converted = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=casts)
    target.write_bytes(converted.SerializeToString(deterministic=True))
