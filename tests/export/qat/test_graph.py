import pytest
import torch
from export_support import make_residual, settle_statistics
from hostile import HostileNet
from torch import nn

from edgekiln.export.qat.graph import POINTS, QuantizationPoint, prepare_network
from edgekiln.runtime.errors import PrecisionError


def answers(network, size=16, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return network.eval()(torch.rand(4, 3, size, size) * 2 - 1)


def sources_of(traced, name):
    """Names of what a node of a traced network reads."""
    (node,) = (node for node in traced.graph.nodes if name in (node.name, node.target))
    return [source.name for source in node.all_input_nodes]


def test_points_stand_before_products_and_on_the_identity_branch():
    prepared = prepare_network(make_residual(), 16)
    assert (prepared.products, prepared.kept_float) == (("stem", "conv1", "conv2"), ("head",))
    graph = prepared.network
    points = [name for name, module in graph.named_modules() if isinstance(module, QuantizationPoint)]
    assert points == [f"{POINTS}.{name}" for name in ("x", "relu", "relu_1")]
    # One tensor, one point: the block's input is read by the first convolution and, as identity, by the Add.
    assert sources_of(graph, "conv1") == [f"{POINTS}_relu"]
    assert sources_of(graph, "add") == [f"{POINTS}_relu", "conv2"]
    assert sources_of(graph, "head") == ["mean"]


class Downsampled(nn.Module):
    """A residual block whose identity branch is a convolution too, and comes last in the code."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1, self.bn1 = (
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.down, self.norm = nn.Conv2d(width, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        x = self.relu(self.stem(x))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.norm(self.down(x))
        return self.fc(self.relu(out).mean(dim=(2, 3)))


def test_longer_branch_stays_float_and_the_downsampling_is_the_identity():
    torch.manual_seed(0)
    traced = prepare_network(settle_statistics(Downsampled(), 16), 16).network
    assert sources_of(traced, "add") == ["conv2", f"{POINTS}_down"]


def test_batchnorm_is_folded_and_the_answers_stay():
    torch.manual_seed(0)
    network = settle_statistics(Downsampled(), 16)
    expected = answers(network)
    traced = prepare_network(network, 16).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in traced.modules())
    assert not any("bn" in name or "norm" in name for name in traced.state_dict())
    assert not any(getattr(module, "inplace", False) for module in traced.modules())
    torch.testing.assert_close(answers(traced), expected)  # sums of some hundred float32 products, reordered


@pytest.mark.parametrize("model", ["test_resnet", "tf_efficientnet_lite0"])
def test_networks_of_timm_keep_their_answers_without_batchnorm(model):
    import timm

    torch.manual_seed(0)
    network = settle_statistics(timm.create_model(model, pretrained=False, num_classes=3), 32)
    expected = answers(network, 32)
    prepared = prepare_network(network, 32)
    assert not any("batch_norm" in node.name for node in prepared.network.graph.nodes)
    # float32 sums reordered in up to 50 layers
    assert (answers(prepared.network, 32) - expected).abs().max() < 1e-4 * expected.abs().max()
    convolutions = [m for m in prepared.network.modules() if isinstance(m, nn.Conv2d)]
    assert {type(m) for m in convolutions} == {nn.Conv2d}
    assert len(prepared.products) == len(convolutions)


def test_same_padding_stands_before_the_point():
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=3)
    traced = prepare_network(network, 32).network
    (stem,) = (node for node in traced.graph.nodes if node.target == "conv_stem")
    point = stem.all_input_nodes[0]
    assert str(point.target).startswith(f"{POINTS}.explicit_padding_0")
    padding = traced.get_submodule(str(point.all_input_nodes[0].target))
    assert tuple(padding.padding) == (0, 1, 0, 1)  # 32 pixels, kernel 3, stride 2: (16 - 1) * 2 + 3 - 32 = 1


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_convolution_that_does_more_is_refused():
    network = nn.Sequential(Scaled(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(PrecisionError, match="0 is a Scaled, whose forward is more than a padding"):
        prepare_network(network, 16)


class Deciding(HostileNet):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


def test_network_that_decides_by_values_is_refused():
    with pytest.raises(PrecisionError, match=r"cannot trace Deciding: TraceError.*leave qat out"):
        prepare_network(Deciding(), 16)


def test_network_without_int8_products_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    with pytest.raises(PrecisionError, match="None of the 2 products of this network suits INT8"):
        prepare_network(network, 16)


class Forgetful(HostileNet):
    """Answers otherwise every time it is called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


def test_network_whose_answers_change_is_refused():
    with pytest.raises(PrecisionError, match="answers otherwise once it is traced: logits differ by"):
        prepare_network(Forgetful(), 16)


@pytest.mark.parametrize(
    ("conv", "fits"),
    [
        (nn.Conv2d(3, 16, 3), True),  # the first layer of most networks
        (nn.Conv2d(3, 16, (3, 1)), False),  # kernels of few channels are square
        (nn.Conv2d(3, 15, 3), False),
        (nn.Conv2d(16, 16, 1), True),
        (nn.Conv2d(16, 16, 3, groups=16), True),  # depthwise
        (nn.Conv2d(16, 16, 1, groups=16), False),
        (nn.Conv2d(12, 12, 3), False),
    ],
)
def test_kernels_are_those_that_modelopt_takes(conv, fits):
    before = [nn.Conv2d(3, conv.in_channels, 3)] if conv.in_channels != 3 else []
    last = [nn.Conv2d(conv.out_channels, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*before, conv, *last, nn.Linear(16, 3))
    try:
        products = prepare_network(network, 16).products
    except PrecisionError:
        products = ()
    assert (str(len(before)) in products) is fits
