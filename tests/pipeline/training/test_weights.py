"""First weights from files: an earlier run carries on exactly, and what does not fit is refused by name."""

import pytest
import torch

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract
from edgekiln.runtime.errors import RecipeError


def settings(model="edgekiln/tiny-cnn", weights="none", **changes):
    return BackboneSettings(model=model, weights=str(weights), **changes)


def save_run(path, model, *, classes=3, normalization=SHARED_NORMALIZATION, **changes):
    """A checkpoint as a run leaves it, and the network that it holds."""
    torch.manual_seed(1)
    backbone = build_backbone(settings(model, **changes), classes, 32)
    contract = Contract(
        height=32, width=32, classes=tuple(f"class {i}" for i in range(classes)), normalization=normalization
    )
    save_checkpoint(dict(backbone.network.state_dict()), contract, model, path)
    return PixelModel(backbone.network, backbone.normalization).eval()


FRAMES = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_an_earlier_run_carries_on_with_the_same_answers(tmp_path):
    trained = save_run(tmp_path / "a.safetensors", "edgekiln/tiny-cnn")
    again = build_backbone(settings(weights=tmp_path / "a.safetensors"), 3, 32)
    assert torch.equal(PixelModel(again.network, again.normalization).eval()(FRAMES), trained(FRAMES))


@torch.inference_mode()
def test_a_run_without_pretrained_weights_lacks_the_bias_that_folding_adds(tmp_path):
    trained = save_run(tmp_path / "a.safetensors", "timm/resnet18")  # weights = none: nothing was folded
    assert trained.network.conv1.bias is None
    again = build_backbone(settings("timm/resnet18", tmp_path / "a.safetensors"), 3, 32)
    assert again.network.conv1.bias.abs().max() == 0
    torch.testing.assert_close(PixelModel(again.network, again.normalization).eval()(FRAMES), trained(FRAMES))


@torch.inference_mode()
def test_a_run_from_a_run_from_a_run_keeps_weights_and_answers(tmp_path):
    plain = build_backbone(settings("timm/resnet18"), 3, 32).network
    torch.save(plain.state_dict(), tmp_path / "first.pth")
    answers = []
    source = tmp_path / "first.pth"
    for number in range(3):
        backbone = build_backbone(settings("timm/resnet18", source), 3, 32)
        answers.append(PixelModel(backbone.network, backbone.normalization).eval()(FRAMES))
        contract = Contract(height=32, width=32, classes=("a", "b", "c"))
        source = tmp_path / f"run{number}.safetensors"
        save_checkpoint(dict(backbone.network.state_dict()), contract, "timm/resnet18", source)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[1], answers[2])


@torch.inference_mode()
def test_a_checkpoint_with_its_own_normalization_is_folded(tmp_path):
    own = build_backbone(settings("timm/resnet18", normalization="own"), 3, 32).normalization
    trained = save_run(tmp_path / "own.safetensors", "timm/resnet18", normalization=own)
    kept = build_backbone(settings("timm/resnet18", tmp_path / "own.safetensors", normalization="own"), 3, 32)
    assert kept.normalization == own
    expected = PixelModel(trained.network, own).eval()(FRAMES)
    torch.testing.assert_close(PixelModel(kept.network, own).eval()(FRAMES), expected)
    folded = build_backbone(settings("timm/resnet18", tmp_path / "own.safetensors"), 3, 32)
    assert folded.normalization == SHARED_NORMALIZATION
    assert folded.network.conv1.bias is not None


def test_shared_weights_with_own_normalization_are_refused(tmp_path):
    save_run(tmp_path / "a.safetensors", "timm/resnet18")
    with pytest.raises(RecipeError, match=r"another normalization than timm/resnet18.*Leave backbone"):
        build_backbone(settings("timm/resnet18", tmp_path / "a.safetensors", normalization="own"), 3, 32)


def test_what_a_run_from_a_checkpoint_leaves_loads_again(tmp_path):
    """Evaluation builds the structure without weights and loads the new checkpoint strictly."""
    save_run(tmp_path / "a.safetensors", "timm/resnet18")
    recipe = settings("timm/resnet18", tmp_path / "a.safetensors")
    network = build_backbone(recipe, 3, 32).network
    contract = Contract(height=32, width=32, classes=("a", "b", "c"))
    save_checkpoint(dict(network.state_dict()), contract, "timm/resnet18", tmp_path / "b.safetensors")
    model, _ = load_checkpoint(tmp_path / "b.safetensors", recipe)
    assert torch.equal(model.network.conv1.weight, network.conv1.weight)


def test_another_number_of_classes_is_refused_unless_the_head_is_replaced(tmp_path):
    trained = save_run(tmp_path / "a.safetensors", "edgekiln/tiny-cnn", classes=3)
    with pytest.raises(
        RecipeError,
        match=r"2 tensors differ: fc2\.bias is 3, wanted 5, fc2\.weight is 3 x 512, wanted 5 x 512\. "
        r"Only the head differs \(3 classes in the file, 5 in the data\): backbone\.head = 'replace'",
    ):
        build_backbone(settings(weights=tmp_path / "a.safetensors"), 5, 32)
    replaced = build_backbone(settings(weights=tmp_path / "a.safetensors", head="replace"), 5, 32).network
    assert torch.equal(replaced.conv1.weight, trained.network.conv1.weight)
    assert replaced.fc2.weight.shape == (5, 512)


def test_a_replaced_head_is_fresh_even_where_it_would_fit(tmp_path):
    trained = save_run(tmp_path / "a.safetensors", "edgekiln/tiny-cnn")
    kept = build_backbone(settings(weights=tmp_path / "a.safetensors"), 3, 32).network
    fresh = build_backbone(settings(weights=tmp_path / "a.safetensors", head="replace"), 3, 32).network
    assert torch.equal(kept.fc2.weight, trained.network.fc2.weight)
    assert not torch.equal(fresh.fc2.weight, trained.network.fc2.weight)


def test_what_differs_besides_the_head_is_listed_and_gets_no_false_hint(tmp_path):
    network = build_backbone(settings(), 3, 32).network
    tensors = dict(network.state_dict())
    tensors["conv1.weight"] = torch.zeros(8, 3, 3, 3)
    tensors["extra"] = torch.zeros(1)
    del tensors["conv2.bias"]
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(RecipeError) as caught:
        build_backbone(settings(weights=tmp_path / "w.pth"), 3, 32)
    assert caught.value.message == (
        "w.pth does not fit the model; 3 tensors differ: conv1.weight is 8 x 3 x 3 x 3, wanted 64 x 3 x 3 x 3, "
        "conv2.bias is missing, extra is not of this model. Nearest in the file to conv2.bias (128): extra (1)."
    )
    assert caught.value.hint == "Take weights of the same network as backbone.model."


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path):
    save_run(tmp_path / "a.safetensors", "edgekiln/tiny-cnn")
    with pytest.raises(RecipeError, match=r"holds edgekiln/tiny-cnn, the recipe names timm/resnet18"):
        build_backbone(settings("timm/resnet18", tmp_path / "a.safetensors"), 3, 32)


def test_a_head_is_replaced_only_in_weight_files():
    with pytest.raises(ValueError, match="head = 'replace' is for weight files"):
        settings(head="replace")


def test_a_kept_head_is_no_place_for_a_probe(tmp_path):
    assert settings(weights=tmp_path / "a.safetensors").keeps_head
    assert not settings(weights=tmp_path / "a.safetensors", head="replace").keeps_head
    assert not settings().keeps_head
