"""Small networks of six kinds, trained on digits in seconds, with one massive activation in their residual stream.

One channel of the stream holds 1,000 wherever the others hold values of 1: what large transformers do on their own.
Whoever reads the stream is scaled so that the answers are sound in float: those of the network before, or, where it is
a token of its own, trained with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgekiln.export.calibration import CalibrationSet, choose_calibration
from edgekiln.export.to_onnx import PixelModel, export_onnx
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract

SIZE = 16
MASSIVE = 1000.0
KINDS = ("vit", "deit", "swin", "convnext", "mobilenet", "densenet")
_CLASSES = tuple("0123456789")
_TRAIN = 1200


def digits():
    """uint8 (1797, 16, 16, 3) and their labels, shuffled."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    small = (bunch.images[order] / 16 * 255).astype(np.uint8)
    return np.stack([small.repeat(2, 1).repeat(2, 2)] * 3, -1), bunch.target[order]


def calibration() -> CalibrationSet:
    return choose_calibration(digits()[0][:_TRAIN], 64, 0)


def held_out():
    """Pictures that were not trained on."""
    return digits()[0][_TRAIN:]


def _nothing(network):
    pass


@dataclass(frozen=True)
class Kind:
    """A network; what puts the massive activation in: before training and after each step, or once behind it."""

    make: Callable[[], nn.Module]
    hold: Callable[[nn.Module], None] = _nothing
    add: Callable[[nn.Module], None] = _nothing
    epochs: int = 8


def make_vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(SIZE, 4, embed_dim=48, depth=2, num_heads=3, num_classes=10, reg_tokens=1)


def hold_vit(network):
    """In a register token, where large transformers keep theirs: the others attend to it."""
    network.reg_token[..., 0] = MASSIVE


def make_deit():
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=SIZE, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=10
    )


def hold_deit(network):
    """In the distillation token, whose own answer does not count then."""
    network.dist_token[..., 0] = MASSIVE
    network.head_dist.weight[:], network.head_dist.bias[:] = 0, 0


def make_swin():
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        SIZE, 2, embed_dim=24, depths=(1, 1), num_heads=(2, 4), window_size=4, num_classes=10
    )


def hold_swin(network):
    """All tokens of the first stage; one channel in 24 is left out of it, and of what reads it."""
    stage, merging = network.layers[0].blocks[0], network.layers[1].downsample
    for norm in (network.patch_embed.norm, stage.norm1, stage.norm2):
        norm.weight[0] = norm.bias[0] = 0
    merging.norm.weight[::24] = merging.norm.bias[::24] = 0


def add_swin(network):
    """LayerNorm then sees another mean and deviation: those that it saw before are given back, as they are on average.

    The stream of the first stage was normalized when it was made, so its deviation hardly differs between tokens.
    """
    block, merging = network.layers[0].blocks[0], network.layers[1].downsample
    norms = {block.norm1: [0], block.norm2: [0], merging.norm: [0, 24, 48, 72]}
    seen: dict[nn.Module, torch.Tensor] = {}
    hooks = [norm.register_forward_hook(lambda n, given, _: seen.update({n: given[0]})) for norm in norms]
    network((torch.from_numpy(digits()[0][:_TRAIN]).permute(0, 3, 1, 2).float() - 127) / 128)
    for hook in hooks:
        hook.remove()
    for norm, channels in norms.items():
        share = len(channels) / norm.normalized_shape[0]
        gain = MASSIVE * (share * (1 - share)) ** 0.5 / seen[norm].std(-1, correction=0).mean()
        norm.bias += norm.weight / seen[norm].std(-1, correction=0).mean() * share * MASSIVE
        norm.weight *= gain
        norm.bias[channels] = 0
    network.patch_embed.norm.bias[0] = MASSIVE


def make_convnext():
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(24, 32, 48, 64), patch_size=1, num_classes=10)


def hold_convnext(network):
    network.stages[0].blocks[0].conv_dw.weight[0] = 0
    network.stages[0].blocks[0].gamma[0] = 1


def add_convnext(network):
    """From the stem to the end of the first stage; a depthwise convolution reads it as it is."""
    network.stem[1].bias[0] += MASSIVE
    network.stages[0].blocks[0].mlp.fc2.bias[0] -= MASSIVE


def make_mobilenet():
    from torchvision.models import MobileNetV2

    return MobileNetV2(10, inverted_residual_setting=[[1, 16, 1, 2], [4, 24, 3, 2], [4, 32, 1, 1]])


def add_mobilenet(network):
    """One channel of the second stage's linear bottleneck; its readers subtract what they would see of it."""
    first, *blocks, after = network.features[2:6]
    first.conv[-1].bias[0] += MASSIVE
    for block in [*blocks, after]:  # 1x1 convolution and BatchNorm
        block.conv[0][1].running_mean += MASSIVE * block.conv[0][0].weight[:, 0, 0, 0]


def make_densenet():
    from torchvision.models import DenseNet

    return DenseNet(12, (3, 3), 16, num_classes=10)


def add_densenet(network):
    """One channel of the first dense layer, which all later layers of its block read through BatchNorm."""
    block = network.features.denseblock1
    conv = block.denselayer1.conv2
    conv.bias = nn.Parameter(torch.zeros(len(conv.weight)))
    conv.bias[0] = MASSIVE
    for norm in (block.denselayer2.norm1, block.denselayer3.norm1, network.features.transition1.norm):
        norm.running_mean[16] += MASSIVE


NETWORKS = {
    "vit": Kind(make_vit, hold=hold_vit),
    "deit": Kind(make_deit, hold=hold_deit),
    "swin": Kind(make_swin, hold=hold_swin, add=add_swin),
    "convnext": Kind(make_convnext, hold=hold_convnext, add=add_convnext, epochs=3),
    "mobilenet": Kind(make_mobilenet, add=add_mobilenet, epochs=5),
    "densenet": Kind(make_densenet, add=add_densenet, epochs=3),
}


def _train(network, kind):
    frames, labels = (torch.from_numpy(part[:_TRAIN]) for part in digits())
    inputs = (frames.permute(0, 3, 1, 2).float() - 127) / 128
    steps = kind.epochs * -(-_TRAIN // 64)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    with torch.no_grad():
        kind.hold(network)
    for _ in range(kind.epochs):
        for batch in torch.randperm(_TRAIN).split(64):
            answers = network.train()(inputs[batch])
            heads = answers if isinstance(answers, tuple) else (answers,)
            loss = sum(nn.functional.cross_entropy(head, labels[batch].long()) for head in heads)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            with torch.no_grad():
                kind.hold(network)


def export_massive(name: str, folder: Path) -> Path:
    """Train and export a kind; the same weights on the same machine."""
    torch.manual_seed(0)
    kind = NETWORKS[name]
    network = kind.make()
    _train(network, kind)
    with torch.no_grad():
        kind.add(network.eval())
    contract = Contract(height=SIZE, width=SIZE, classes=_CLASSES)
    export_onnx(PixelModel(network, SHARED_NORMALIZATION), contract, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"
