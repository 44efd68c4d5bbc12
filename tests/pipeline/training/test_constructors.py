"""Networks of timm and torchvision whose constructors, heads or weights are out of the ordinary."""

import copy
import functools

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models import vision_transformer
from torchvision.models._api import Weights, WeightsEnum

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.freezing import count_depths, freeze, list_stages
from edgekiln.pipeline.training.heads import find_head
from edgekiln.pipeline.training.probe import extract_features
from edgekiln.pipeline.training.weights import load_state
from edgekiln.runtime.contract import SHARED_NORMALIZATION
from edgekiln.runtime.errors import RecipeError

CLASSES = 5

SPECIAL = {
    "timm/test_vit": 64,  # takes img_size; made for 160 pixels
    "timm/levit_128s": 64,  # two heads, each a BatchNorm and a linear layer
    "timm/deit_tiny_distilled_patch16_224": 32,  # two heads on two tokens
    "timm/repvit_m0_9": 32,  # two heads in a module of their own
    "torchvision/squeezenet1_1": 32,  # a convolution, ReLU and pooling as its head
    "torchvision/googlenet": 32,  # auxiliary heads
    "torchvision/mnasnet0_5": 32,  # loads nothing without its version
}


@functools.cache
def build(model, weights="none"):
    torch.manual_seed(0)
    return build_backbone(BackboneSettings(model=model, weights=weights), CLASSES, SPECIAL[model]).network


@pytest.fixture(params=sorted(SPECIAL))
def special(request):
    return copy.deepcopy(build(request.param)), SPECIAL[request.param]


def test_their_head_is_one_linear_layer_whose_output_is_the_answer(special):
    network, size = special
    head = find_head(network, CLASSES)[1]
    seen = []
    head.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        answers = network.eval()(torch.randn(2, 3, size, size))
    assert len(seen) == 1  # of the copy: a head that still belonged to the original would not be asked
    assert torch.equal(seen[0], answers)
    assert answers.shape == (2, CLASSES)


def test_in_training_they_return_one_tensor_and_every_weight_learns(special):
    network, size = special
    network.train()(torch.randn(4, 3, size, size)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_probe_freezing_and_depths_take_them(special):
    network, size = special
    name, head = find_head(network, CLASSES)
    model = PixelModel(network, SHARED_NORMALIZATION)
    frames = np.zeros((3, size, size, 3), np.uint8)
    assert extract_features(model, head, frames, torch.device("cpu")).shape == (3, head.in_features)
    depths = count_depths(network, head)
    assert depths[head.weight] == 0
    assert depths[next(network.parameters())] == max(depths.values()) >= 3
    freeze(network, BackboneSettings(model="timm/x", weights="none", freeze="backbone"), CLASSES)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {f"{name}.weight", f"{name}.bias"}


def test_weights_load_from_a_dict_alone(special):
    network, _ = special
    stored = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    load_state(network, stored)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


# -- pretrained weights; what a library would fetch is made here


def random_state(builder, **kwargs):
    torch.manual_seed(1)
    return builder(weights=None, **kwargs).state_dict()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_weights_of_networks_with_auxiliary_heads(name, monkeypatch):
    builder = models.get_model_builder(name)
    theirs = random_state(builder, init_weights=False)  # with auxiliary heads
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: theirs)
    backbone = build_backbone(BackboneSettings(model=f"torchvision/{name}", normalization="own"), CLASSES, 96)
    ours = backbone.network.state_dict()
    assert not any(key.startswith(("aux", "Aux")) for key in ours)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if not key.startswith("fc."))
    assert isinstance(backbone.network.train()(torch.randn(2, 3, 96, 96)), torch.Tensor)
    # what their own transform_input makes of ImageNet's normalization
    assert backbone.normalization.mean == backbone.normalization.std == (127.5, 127.5, 127.5)
    pixels = torch.rand(1, 3, 96, 96) * 255
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    own = copy.deepcopy(backbone.network).eval()
    own.transform_input = True
    imagenet = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(
        backbone.network.eval()((pixels - 127.5) / 127.5), own(imagenet), rtol=1e-3, atol=1e-4
    )


class TinyWeights(WeightsEnum):
    DEFAULT = Weights("http://nowhere", None, {"categories": list(range(1000)), "min_size": (64, 64)})


def tiny_vit(*, weights=None, progress=True, **kwargs) -> vision_transformer.VisionTransformer:
    weights = TinyWeights.verify(weights)
    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 64}
    return vision_transformer._vision_transformer(**sizes, weights=weights, progress=progress, **kwargs)


@pytest.fixture
def torchvision_vit(monkeypatch):
    """``torchvision/tiny_vit``, whose pretrained weights are for 64 pixels, and those weights."""
    theirs = random_state(tiny_vit, image_size=64)
    theirs["encoder.pos_embedding"].normal_()
    monkeypatch.setattr(TinyWeights, "get_state_dict", lambda *_, **__: theirs)
    monkeypatch.setattr(models, "list_models", lambda module: ["tiny_vit"])
    monkeypatch.setattr(models, "get_model_builder", lambda name: tiny_vit)
    return theirs


@pytest.mark.parametrize("size", [32, 64, 96])
def test_position_embeddings_of_a_torchvision_vit_fit_any_size(size, torchvision_vit, tmp_path):
    network = build_backbone(BackboneSettings(model="torchvision/tiny_vit"), CLASSES, size).network
    ours = network.state_dict()
    assert network.eval()(torch.randn(2, 3, size, size)).shape == (2, CLASSES)
    name = "encoder.layers.encoder_layer_0.mlp.0.weight"
    assert torch.equal(ours[name], torchvision_vit[name])
    wanted = vision_transformer.interpolate_embeddings(size, 8, dict(torchvision_vit))[
        "encoder.pos_embedding"
    ]
    assert torch.equal(ours["encoder.pos_embedding"], wanted)
    # the same from a file
    torch.save(torchvision_vit, tmp_path / "vit.pth")
    settings = BackboneSettings(
        model="torchvision/tiny_vit", weights=str(tmp_path / "vit.pth"), head="replace"
    )
    assert torch.equal(
        build_backbone(settings, CLASSES, size).network.state_dict()["encoder.pos_embedding"], wanted
    )


def test_stages_of_a_network_around_a_network_are_its_own(torchvision_vit):
    network = build_backbone(
        BackboneSettings(model="torchvision/tiny_vit", weights="none"), CLASSES, 32
    ).network
    inner = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    assert [name for name in list_stages(network) if name.startswith("encoder.layers")] == inner
    depths = count_depths(network, find_head(network, CLASSES)[1])
    assert depths[network.encoder.pos_embedding] == depths[network.conv_proj.weight] == max(depths.values())


def test_position_embeddings_of_a_timm_vit_fit_any_size(monkeypatch, tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("test_vit").state_dict()  # for 160 pixels
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(theirs))
    fetched = build_backbone(BackboneSettings(model="timm/test_vit"), CLASSES, 64).network.state_dict()
    torch.save(theirs, tmp_path / "vit.pth")
    settings = BackboneSettings(model="timm/test_vit", weights=str(tmp_path / "vit.pth"), head="replace")
    stored = build_backbone(settings, CLASSES, 64).network.state_dict()
    assert fetched["pos_embed"].shape != theirs["pos_embed"].shape
    assert torch.equal(fetched["pos_embed"], stored["pos_embed"])
    assert torch.equal(fetched["blocks.0.mlp.fc1.weight"], theirs["blocks.0.mlp.fc1.weight"])


def test_torchvisions_own_file_with_auxiliary_heads_loads(tmp_path):
    theirs = random_state(models.googlenet, init_weights=False)
    torch.save(theirs, tmp_path / "googlenet.pth")
    settings = BackboneSettings(
        model="torchvision/googlenet",
        weights=str(tmp_path / "googlenet.pth"),
        head="replace",
        normalization="own",
    )
    ours = build_backbone(settings, CLASSES, 32).network.state_dict()
    assert torch.equal(ours["inception5b.branch4.1.conv.weight"], theirs["inception5b.branch4.1.conv.weight"])


def test_a_file_with_a_second_head_loads_where_the_head_is_replaced(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("levit_128s").state_dict()
    torch.save(theirs, tmp_path / "levit.pth")
    settings = BackboneSettings(model="timm/levit_128s", weights=str(tmp_path / "levit.pth"), head="replace")
    ours = build_backbone(settings, CLASSES, 224).network.state_dict()
    assert torch.equal(ours["head.bn.weight"], theirs["head.bn.weight"])
    kept = settings.model_copy(update={"head": "keep"})
    with pytest.raises(RecipeError, match=r"head_dist\.\S+ is not of this model"):
        build_backbone(kept, 1000, 224)


# -- names


def without_weights():
    return next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}.*"))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("timm/resnet18.a9_in1k", "none", r"resnet18 has no weights 'a9_in1k'. It has: resnet18\.a1_in1k"),
        (f"timm/{without_weights()}", "imagenet", r"backbone.weights: timm has no pretrained weights of"),
        (
            "timm/vit_tiny_patch16_22",
            "none",
            r"backbone.model: timm has no model .* Similar: vit_tiny_patch16_224",
        ),
        ("torchvision/resnet_50", "none", r"backbone.model: torchvision has no .* Similar: resnet50"),
        ("torchvision/fcn_resnet50", "none", r"no classification model 'fcn_resnet50'"),
    ],
)
def test_names_that_nothing_has_are_answered_with_near_ones(model, weights, message):
    with pytest.raises(RecipeError, match=message):
        build_backbone(BackboneSettings(model=model, weights=weights), CLASSES, 32)


def test_a_convolution_that_is_no_classifier_is_left_alone():
    from edgekiln.pipeline.training.heads import make_head_linear

    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, CLASSES, 3))
    make_head_linear(network, CLASSES)
    assert isinstance(network[1], nn.Conv2d)
    inside = nn.Module()
    inside.head = nn.Conv2d(8, CLASSES, 1)  # no sequence around it
    make_head_linear(inside, CLASSES)
    assert find_head(inside, CLASSES)[0] == "head.2"
    assert inside.head(torch.randn(2, 8, 4, 4)).shape == (2, CLASSES)
