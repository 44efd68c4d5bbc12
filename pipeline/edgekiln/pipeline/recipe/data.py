"""The recipe's pictures, and the pretrained network that is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from edgekiln.pipeline.recipe.section import Fraction, Section
from edgekiln.runtime.contract import Interpolation, ResizeRule

__all__ = ["BackboneSettings", "DataSettings", "names_file"]

_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar")

_SOURCES = {"imagefolder", "csv", "cifar10", "fashion-mnist", "digits", "traffic-lights"}
_KEYS_OF_SOURCES = {
    "path": ("imagefolder", "csv", "cifar10", "fashion-mnist"),
    "path_column": ("csv",),
    "label_column": ("csv",),
    "download": ("cifar10",),
    "sensor_bits": ("imagefolder", "csv"),
}


def names_file(weights: str) -> bool:
    """Whether ``backbone.weights`` names a local file."""
    return not weights.startswith("package:") and weights.lower().endswith(_WEIGHT_FILES)


class DataSettings(Section):
    """Where the labelled pictures come from and how they become arrays."""

    source: str = Field(
        description="imagefolder, csv, cifar10, fashion-mnist, digits, traffic-lights, "
        "or module:callable returning LabelledImages (the module is installed, or lies beside the recipe)"
    )
    path: Path | None = Field(
        None,
        description="folder of imagefolder, cifar10 and fashion-mnist, file of csv; relative to the recipe",
    )
    path_column: str = Field(
        "path", description="csv only: column of the pictures' paths, relative to the file"
    )
    label_column: str = Field("label", description="csv only: column of the class names")
    download: bool = Field(False, description="cifar10 only: fetch the archive from its home page if absent")
    size: int = Field(224, ge=8, le=2048, description="height and width of the model's input, pixels")
    resize: ResizeRule = Field(
        "squash",
        description="to exactly size x size; or the shorter side to shorter_side, then a central crop",
    )
    shorter_side: int | None = Field(None, description="pixels, for resize = 'shorter-side'")
    interpolation: Interpolation = Field(
        "bilinear", description="Pillow's filter, antialiased when it shrinks"
    )
    sensor_bits: int | None = Field(
        None,
        ge=8,
        le=16,
        description="of a camera whose 16-bit files hold 10, 12 or 14 bits: a value becomes value * 255 / "
        "(2^sensor_bits - 1); also takes TIFF, PGM and PPM; left out, 16 bits are scaled in full",
    )
    validation: Fraction = Field(0.15, description="share of train cut off for choosing an epoch")
    test: Fraction = Field(
        0.2, description="share cut off for the final judgement, where no test folder exists"
    )
    test_seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="of the cut of test alone; left out, it is seed, which then moves test too",
    )
    test_share: float = Field(
        1.0, gt=0, le=1, description="share of the source's own test split that judges, of each class"
    )
    train_share: float = Field(
        1.0, gt=0, le=1, description="share of train that is used, of each class; test stays whole"
    )
    max_unreadable: float = Field(0.01, ge=0, le=1, description="more than this share stops the run")
    leaks: Literal["move", "refuse", "allow"] | None = Field(
        None,
        description="equal pixels in two splits: move keeps them in one, test before val before train; refuse stops; "
        "left out, it is move where edgekiln cuts the splits, and refuse between folders that you cut",
    )
    cache: Literal["auto", "memory", "disk", "none"] = Field(
        "auto",
        description="decoded frames: arrays on disk, read into memory to train, or none, which decodes files when they "
        "are used; auto takes disk where they fit and leave 1 GB free, else none",
    )
    check: Literal["whole", "header"] = Field(
        "whole",
        description="where nothing is cached: whole decodes each picture once beforehand, header opens it, and a "
        "broken one then stops the run where it is used",
    )

    @model_validator(mode="after")
    def _keys_of_its_source(self) -> DataSettings:
        for key, sources in _KEYS_OF_SOURCES.items():
            given = getattr(self, key) != type(self).model_fields[key].default
            if given and self.source in _SOURCES and self.source not in sources:
                raise ValueError(f"{key} is for source = {', '.join(sources)}, not for {self.source!r}")
        return self


class BackboneSettings(Section):
    """The network and its first weights."""

    model: str = Field(
        description="timm/NAME, torchvision/NAME, edgekiln/tiny-cnn, or module:callable, sought as for data.source"
    )
    weights: str = Field(
        "imagenet",
        description="imagenet, none, package:DISTRIBUTION, or a file: .safetensors, or what torch.save wrote (.pth, "
        ".pt, .ckpt, .bin, .pth.tar)",
    )
    normalization: Literal["shared", "own"] = Field(
        "shared", description="shared folds the pretrained mean and std into the first convolution"
    )
    head: Literal["keep", "replace"] = Field(
        "keep", description="of a weight file: keep takes its last layer, replace starts a fresh one"
    )
    freeze: str = Field(
        "none",
        pattern=r"^(none|backbone|until:.+)$",
        description="none, backbone (only the head is trained), or until:STAGE, as in until:layer4 or until:blocks.3",
    )
    freeze_batchnorm: bool = Field(True, description="keep BatchNorm statistics as pretrained")

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: str) -> str:
        if weights in {"imagenet", "none"} or weights.startswith("package:") or names_file(weights):
            return weights
        raise ValueError(
            f"known: imagenet, none, package:DISTRIBUTION, a file that ends in {', '.join(_WEIGHT_FILES)}"
        )

    @model_validator(mode="after")
    def _usable(self) -> BackboneSettings:
        library = self.model.partition("/")[0]
        if self.weights.startswith("package:") and library != "timm":
            raise ValueError(f"weights = {self.weights!r} are for timm models, not for {self.model}")
        if self.weights == "imagenet" and ":" in self.model:
            raise ValueError(f"{self.model} is your own network; weights = 'none' or a file")
        if self.head == "replace" and not self.from_file:
            raise ValueError(
                f"head = 'replace' is for weight files; weights = {self.weights!r} start a fresh one"
            )
        return self

    @property
    def from_file(self) -> bool:
        """Whether the first weights are a local file's."""
        return names_file(self.weights)

    @property
    def keeps_head(self) -> bool:
        """Whether the head is one that was trained already."""
        return self.from_file and self.head == "keep"
