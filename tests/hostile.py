"""A network with one product that INT8 cannot bear, made by hand, and pictures that it tells apart."""

import itertools

import numpy as np
import onnx
import torch
from torch import nn

from edgekiln.export.to_onnx import PixelModel, export_onnx
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract

SIZE = 16
CLASSES = ("blue", "green", "red")
_COLORS = np.array([(40, 60, 200), (50, 180, 60), (210, 50, 40)])


def colored_frames(count, seed):
    """uint8 (count, 16, 16, 3) of noisy colours, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    noise = generator.integers(-40, 41, (count, SIZE, SIZE, 3))
    return np.clip(_COLORS[labels][:, None, None, :] + noise, 0, 255).astype(np.uint8), labels


class HostileNet(nn.Module):
    """Four convolutions and a linear layer; ``hostile`` ones have weights that 8 bits cannot hold.

    Channel 0 of every convolution's output is dead: weights and bias zero, so zero after ReLU. A hostile layer gives
    that input a huge weight. In float it changes nothing; in INT8 it sets the scale of every output channel, and all
    other weights round to zero. Activations stay as they are, so only that very product is hurt.
    """

    def __init__(self, hostile=(), seed=0, width=16):
        super().__init__()
        torch.manual_seed(seed)
        sizes = [3, width, width, width, width]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes))
        self.fc = nn.Linear(width, 3)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight[0], layer.bias[0] = 0, 0
            for number in hostile:
                self.layers[number].weight[1:, 0] = 1000.0
            frames, labels = colored_frames(96, 1)
            x = (torch.from_numpy(frames).float().permute(0, 3, 1, 2) - 127) / 128
            pooled = torch.cat([self.features(x), torch.ones(96, 1)], dim=1)
            # A linear head by least squares, with some ridge: wide margins, which INT8 elsewhere does not cross.
            gram = pooled.T @ pooled + 1e-3 * torch.eye(width + 1)
            solved = torch.linalg.solve(
                gram, pooled.T @ (8 * nn.functional.one_hot(torch.from_numpy(labels)).float())
            )
            self.fc.weight.copy_(solved[:-1].T)
            self.fc.bias.copy_(solved[-1])

    def features(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.mean(dim=(2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def make_hostile(num_classes):
    """The network with its third convolution hostile, for a recipe: ``hostile:make_hostile``."""
    assert num_classes == len(CLASSES)
    return HostileNet((2,))


def export_networks(folder):
    """FOLDER/NAME/model.onnx: ``benign``, ``hostile`` (the third convolution) and ``hopeless`` (all but the first)."""
    contract = Contract(height=SIZE, width=SIZE, classes=CLASSES)
    benign = folder / "benign" / "model.onnx"
    benign.parent.mkdir(parents=True)
    export_onnx(PixelModel(HostileNet(), SHARED_NORMALIZATION), contract, benign)
    for name, hostile in (("hostile", (2,)), ("hopeless", (1, 2, 3))):
        model = onnx.load(benign)  # exporting takes seconds; the graph is the same
        weights = {f"network.{key}": value.numpy() for key, value in HostileNet(hostile).state_dict().items()}
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights.pop(tensor.name), tensor.name))
        assert not weights
        (folder / name).mkdir()
        onnx.save(model, folder / name / "model.onnx")
    return folder


def make_outlier(num_classes):
    """A network whose activations 8 bits cannot hold, for a recipe: ``hostile:make_outlier``.

    One channel that nothing reads is 25 everywhere, and sets the step of its tensor to 0.2; what the classes differ by
    in the others is of that size.
    """
    assert num_classes == len(CLASSES)
    network = HostileNet()
    with torch.no_grad():
        network.layers[2].bias[0] = 25
        network.layers[3].weight[:, 0] = 0
    return network
