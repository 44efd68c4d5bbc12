"""BatchNorm folded into convolutions computes the same, and only where nothing else reads their output."""

import pytest
import torch
from torch import nn

from edgekiln.pipeline.proof.baseline import fold_batchnorm


def random_statistics(network):
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            nn.init.normal_(module.weight, 1, 0.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("name", "norms"), [("tf_efficientnet_lite0", 49), ("resnet18", 20)])
def test_real_networks_compute_the_same_without_a_single_batchnorm(name, norms):
    import timm

    torch.manual_seed(0)
    network = random_statistics(timm.create_model(name, pretrained=False, num_classes=5))
    example = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = network(example)
        assert fold_batchnorm(network, example[:1]) == norms
        after = network(example)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    # float32 sums in another order
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_convolution_used_twice_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.second(self.conv(self.first(self.conv(x))))

    network = random_statistics(Shared())
    example = torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        before = network(example)
        assert fold_batchnorm(network, example) == 0
        torch.testing.assert_close(network(example), before)
