"""Networks exported by edgekiln itself, and pictures for them: what the tests of the converters share."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

from edgekiln.export.calibration import CalibrationSet, choose_calibration
from edgekiln.export.precision.int8_tensorrt import Int8Report, quantize_for_tensorrt
from edgekiln.export.to_onnx import PixelModel, export_onnx
from edgekiln.pipeline.training.constructors import TinyCnn
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract

CLASSES = ("a", "b", "c")


class Residual(nn.Module):
    """Stem, a residual block and a head: small, and with all that the converters treat specially."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean(dim=(2, 3)))


def make_residual(width: int = 16, seed: int = 0) -> Residual:
    torch.manual_seed(seed)
    return Residual(width)


def make_frames(count: int = 32, size: int = 16, seed: int = 0):
    """Pictures with edges and areas, uint8 (N, size, size, 3): coarse noise, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.array(Image.fromarray(picture).resize((size, size))) for picture in coarse])


def make_calibration(count: int = 32, size: int = 16, seed: int = 0) -> CalibrationSet:
    return choose_calibration(make_frames(count, size, seed), count, 0)


def export_network(network: nn.Module, path: Path, size: int = 16, opset: int = 18) -> Path:
    contract = Contract(height=size, width=size, classes=CLASSES)
    export_onnx(PixelModel(network, SHARED_NORMALIZATION), contract, path, opset=opset)
    return path


@functools.cache
def _residual_bytes(width: int, seed: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return export_network(make_residual(width, seed), Path(folder) / "m.onnx").read_bytes()


def export_residual(path: Path, width: int = 16, seed: int = 0) -> Path:
    """The residual network at 16 pixels; exported once per process, since that takes seconds."""
    path.write_bytes(_residual_bytes(width, seed))
    return path


def settle_statistics(network: nn.Module, size: int) -> nn.Module:
    """Give an untrained network the normalization statistics of pictures; its activations are then of a usual size."""
    torch.manual_seed(0)
    frames = torch.from_numpy(make_frames(32, size)).permute(0, 3, 1, 2).float()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, here of one
    with torch.no_grad():
        network.train()((frames - 127) / 128)
    return network.eval()


FAMILY_SIZE = 64


def make_tiny():
    return TinyCnn(len(CLASSES), FAMILY_SIZE)


def make_resnet():
    from torchvision.models import resnet18

    return resnet18(num_classes=len(CLASSES))


def make_mobilenet():
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=len(CLASSES))


def make_lite0():
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=len(CLASSES))


def make_vit():
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=FAMILY_SIZE, depth=2, num_classes=len(CLASSES)
    )


FAMILIES = {
    "tiny-cnn": make_tiny,
    "resnet18": make_resnet,
    "mobilenet_v3_small": make_mobilenet,
    "efficientnet_lite0": make_lite0,
    "vit_tiny": make_vit,
}


def make_family(name: str) -> nn.Module:
    """The untrained network of a family for pictures of ``FAMILY_SIZE``; the same weights each time."""
    torch.manual_seed(0)
    return settle_statistics(FAMILIES[name](), FAMILY_SIZE)


@dataclass(frozen=True)
class Converted:
    """A family's exported file, and the INT8 one of post-training quantization with its report. Read-only."""

    fp32: Path
    int8: Path
    report: Int8Report


def convert_family(name: str, folder: Path) -> Converted:
    fp32 = export_network(make_family(name), folder / "fp32.onnx", FAMILY_SIZE)
    calibration = make_calibration(32, FAMILY_SIZE)
    return Converted(
        fp32, folder / "int8.onnx", quantize_for_tensorrt(fp32, folder / "int8.onnx", calibration)
    )


def edit_weights(path: Path, **changes) -> Path:
    """Replace tensors of a file: name of the parameter to a function of its value."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        change = changes.pop(tensor.name.removeprefix("network.").replace(".", "_"), None)
        if change is not None:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    assert not changes, f"no tensors {sorted(changes)}"
    onnx.save(model, path)
    return path


def node_of_weight(path: Path, weight: str) -> str:
    """Name of the node that takes a parameter."""
    graph = onnx.load(path).graph
    (node,) = (node for node in graph.node if f"network.{weight}" in node.input)
    return node.name


def tensors_of(model: onnx.ModelProto) -> dict:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def assert_same_interface(source: Path, target: Path, newest: int = 20) -> None:
    """Input, output and contract as in the source, and no newer an opset than TensorRT 10.3 reads."""
    theirs, ours = onnx.load(source), onnx.load(target)
    assert [*ours.graph.input, *ours.graph.output] == [*theirs.graph.input, *theirs.graph.output]
    batch = ours.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == theirs.graph.input[0].type.tensor_type.shape.dim[0].dim_param != ""
    assert ours.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert ours.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {p.key: p.value for p in ours.metadata_props} == {p.key: p.value for p in theirs.metadata_props}
    opsets = {entry.domain: entry.version for entry in ours.opset_import}
    assert opsets[""] <= newest
    assert ours.ir_version <= 10
    assert ours.producer_name == "edgekiln"
    assert not any(node.doc_string or node.metadata_props for node in ours.graph.node)
