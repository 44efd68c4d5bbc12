"""Networks with branches run as one convolution, and answer as they were trained."""

import pytest
import torch
from torch import nn

from edgekiln.pipeline.training.reparameterization import fuse_branches

timm = pytest.importorskip("timm")


def make(name, **options):
    """With statistics of BatchNorm that are not those of a fresh network, on which any fusion would do."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=5, **options)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def count(network, *kinds):
    return sum(isinstance(module, kinds) for module in network.modules())


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "repvit_m0_9"])
def test_branches_become_one_convolution_with_the_same_answers(name):
    network = make(name)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.bias = nn.Parameter(
        torch.randn(first.out_channels)
    )  # as a folded normalization of the input leaves it
    before = count(network, nn.Conv2d)
    fused = fuse_branches(network, f"timm/{name}", 64)
    assert count(fused.network, nn.Conv2d) < before == count(network, nn.Conv2d)
    assert count(fused.network, nn.BatchNorm2d) == 0
    assert " layers instead of " in fused.sentence
    pictures = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fused.network(pictures), network(pictures), rtol=1e-4, atol=1e-4)


def test_other_networks_are_left_as_they_are():
    network = make("resnet18")
    assert fuse_branches(network, "timm/resnet18", 64).network is network
    assert fuse_branches(network, "timm/resnet18", 64).sentence is None
    own = make("mobileone_s0")  # of a function of the user's: timm's rules are not asked
    assert fuse_branches(own, "mymodels:build", 64).network is own


class Wrong(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.layer, self.result = nn.Identity(), result

    def forward(self, x):
        return x

    def fuse(self):
        if self.result is None:
            raise NotImplementedError("not for this one")
        return self.result


@pytest.mark.parametrize(
    ("result", "says"), [(nn.ReLU(), "answers"), (None, "cannot fuse it (not for this one)")]
)
def test_what_is_fused_wrongly_runs_as_trained_and_is_told(result, says):
    torch.manual_seed(0)
    network = nn.Sequential(Wrong(result), nn.Flatten(), nn.Linear(3 * 16 * 16, 5)).eval()
    fused = fuse_branches(network, "timm/wrong", 16)
    assert fused.network is network
    assert says in fused.sentence
    assert "runs as it was trained" in fused.sentence
