"""The recipe: the user's whole wish, one TOML file, validated before anything is touched.

Unknown keys are errors that name the nearest right one. A key of this module knows nothing of how a stage works;
`stages.py` reads the parts that it needs.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgekiln.runtime.backends import Backend
from edgekiln.runtime.bundle import PREFERENCE
from edgekiln.runtime.contract import Interpolation, ResizeRule
from edgekiln.runtime.errors import RecipeError
from edgekiln.runtime.spec import Precision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Augmentation",
    "BackboneSettings",
    "BatchSettings",
    "BenchmarkSettings",
    "BuildSettings",
    "DataSettings",
    "ExportSettings",
    "FinetuneSettings",
    "GateSettings",
    "Recipe",
    "VariantSettings",
    "load_recipe",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MAX_FILE_NAME = 64  # of a bundle
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    """A part of the recipe: immutable, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Section):
    """Where the labelled pictures come from and how they become arrays."""

    source: str = Field(
        description="imagefolder, cifar10, traffic-lights, or module:callable returning LabelledImages"
    )
    path: Path | None = Field(None, description="folder of imagefolder and cifar10, relative to the recipe")
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
    validation: Fraction = Field(0.15, description="share of train cut off for choosing an epoch")
    test: Fraction = Field(
        0.2, description="share cut off for the final judgement, where no test folder exists"
    )
    max_unreadable: float = Field(0.01, ge=0, le=1, description="more than this share stops the run")


class BackboneSettings(_Section):
    """The network and its first weights."""

    model: str = Field(description="timm/NAME, torchvision/NAME, edgekiln/tiny-cnn, or module:callable")
    weights: str = Field(
        "imagenet", description="imagenet, none, a .safetensors or .pth file, or package:DISTRIBUTION"
    )
    normalization: Literal["shared", "own"] = Field(
        "shared", description="shared folds the pretrained mean and std into the first convolution"
    )
    freeze: Literal["none", "backbone"] = Field("none", description="backbone trains the head alone")
    freeze_batchnorm: bool = Field(True, description="keep BatchNorm statistics as pretrained")

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: str) -> str:
        endings = (".safetensors", ".pth")
        if weights in {"imagenet", "none"} or weights.startswith("package:") or weights.endswith(endings):
            return weights
        raise ValueError("known: imagenet, none, a .safetensors or .pth file, package:DISTRIBUTION")

    @model_validator(mode="after")
    def _usable(self) -> BackboneSettings:
        library = self.model.partition("/")[0]
        if self.weights.startswith("package:") and library != "timm":
            raise ValueError(f"weights = {self.weights!r} are for timm models, not for {self.model}")
        if self.weights == "imagenet" and ":" in self.model:
            raise ValueError(f"{self.model} is your own network; weights = 'none' or a file")
        return self


class Augmentation(_Section):
    """Random changes of training pictures; strengths of 0 switch a part off."""

    horizontal_flip: bool = Field(True, description="mirror every second picture, by chance")
    crop_scale: float = Field(0.8, gt=0, le=1, description="smallest share of the area that a crop keeps")
    brightness: float = Field(0.2, ge=0, le=1, description="largest change, as a share")
    contrast: float = Field(0.2, ge=0, le=1, description="largest change, as a share")
    saturation: float = Field(0.0, ge=0, le=1, description="largest change, as a share")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the colour circle, as a share")


class FinetuneSettings(_Section):
    """How the network is trained."""

    epochs: int = Field(4, ge=0, description="0 keeps the linear probe")
    batch_size: int = Field(32, ge=1, description="pictures for each step")
    learning_rate: float = Field(
        3e-4, gt=0, description="AdamW's highest; it falls as a cosine after the warm-up"
    )
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the rate rises")
    label_smoothing: float = Field(
        0.05, ge=0, lt=1, description="share of the target spread over all classes"
    )
    probe: bool = Field(True, description="start the head from a linear probe")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes every usable core")
    checkpoint_seconds: float = Field(60.0, gt=0, description="how much work a kill may lose, besides epochs")
    augmentation: Augmentation = Augmentation()


class ExportSettings(_Section):
    """The ONNX file."""

    opset: int = Field(
        18, ge=18, le=20, description="of the ONNX graph; 20 is the newest that TensorRT 10.3 reads"
    )
    parity_images: int = Field(
        64, ge=64, description="real pictures that the graph and PyTorch must agree on"
    )
    parity_tolerance: float = Field(1e-3, gt=0, description="max |logit difference| over the logit range")
    fp16_tolerance: float = Field(
        2e-2, gt=0, description="the same for FP16 graphs, whose values have 11 bits"
    )


class BatchSettings(_Section):
    """The batch sizes that one engine takes; its kernels are chosen for ``opt``."""

    min: int = Field(1, ge=1, description="smallest batch")
    opt: int = Field(8, ge=1, description="the batch that kernels are chosen for")
    max: int = Field(32, ge=1, le=1024, description="largest batch; it decides the memory")

    @model_validator(mode="after")
    def _ordered(self) -> BatchSettings:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"wanted min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class BuildSettings(_Section):
    """How a TensorRT or TensorRT-RTX engine is built."""

    batch: BatchSettings = BatchSettings()
    static_batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (), description="one static engine for each of these sizes, instead of one for the range in batch"
    )
    workspace_mib: int | None = Field(
        None, ge=1, description="most memory a kernel may use; clamped to what is free"
    )
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="more is slower to build; rtx ignores it"
    )
    tf32: bool = Field(False, description="let FP32 products drop to 10 bits of mantissa")
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = Field(
        "none", description="tensorrt: also run on other GPUs, at some cost in speed"
    )
    version_compatible: bool = Field(
        False, description="newer TensorRT versions and tensorrt-lean run it too"
    )
    capabilities: tuple[int, ...] = Field(
        (), description="rtx: compute capabilities to build for, 86 is 8.6; empty is all but Turing (75)"
    )
    typing: Literal["strong", "weak"] = Field(
        "strong", description="weak only where strong typing fails, below TensorRT 10.12; the report says so"
    )


class VariantSettings(_Section):
    """One engine to make."""

    # 58: NAME.onnx is a file of the bundle.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,58}$")] = Field(
        description="what --set, load and the report call it"
    )
    precision: Precision = Field(description="what the engine's products compute in")
    backend: Backend = Field("onnxruntime-cpu", description="the library that runs it")
    required: bool = Field(True, description="run exits 3 when it does not pass")
    max_drop: float | None = Field(None, ge=0, lt=1, description="overrides gate.max_drop")
    calibration_images: int = Field(512, ge=32, description="pictures of train that ranges are read from")
    calibration_method: Literal["minmax", "max", "entropy", "percentile"] | None = Field(
        None,
        description="onnxruntime-cpu: minmax (default), entropy, percentile; TensorRT: max (default), entropy",
    )
    min_precision_share: float | None = Field(
        None, ge=0, le=1, description="default 0.95 for onnxruntime-cpu, 0.8 of the MACs for TensorRT"
    )
    fallback: Literal["none", "fp16"] = Field(
        "none",
        description="an INT8 engine that does not build is built in FP16 instead, and the report says so",
    )
    search: bool | None = Field(
        None,
        description="int8 that loses too much on val keeps its worst blocks in float; default: with own max_drop",
    )
    search_seconds: float = Field(600.0, gt=0, description="after which that search stops, and says so")
    build: BuildSettings = BuildSettings()

    @property
    def searches(self) -> bool:
        """Whether blocks may be kept in float to hold the budget."""
        wanted = self.max_drop is not None if self.search is None else self.search
        return wanted and self.precision is Precision.INT8

    @property
    def builds_engine(self) -> bool:
        """Whether the backend runs engines, which are built from the graph, rather than the graph itself."""
        return self.backend in {"tensorrt", "tensorrt-rtx"}

    @property
    def files(self) -> tuple[str, ...]:
        """Every name that its files may have in a bundle."""
        if not self.builds_engine:
            return (f"{self.name}.onnx",)
        sizes = tuple(f"{self.name}.b{size}.engine" for size in self.build.static_batches)
        graphs = (f"{self.name}.onnx", *([f"{self.name}.fallback.onnx"] if self.fallback != "none" else []))
        return (*graphs, *(sizes or (f"{self.name}.engine",)))

    @property
    def calibration(self) -> Any:
        """The calibration method, or the backend's default."""
        return self.calibration_method or ("max" if self.builds_engine else "minmax")

    @property
    def precision_share(self) -> float:
        """The smallest share that must run in the precision, or the backend's default."""
        if self.min_precision_share is not None:
            return self.min_precision_share
        return 0.8 if self.builds_engine else 0.95

    @model_validator(mode="after")
    def _check_support(self) -> VariantSettings:
        if (self.backend, self.precision) not in PREFERENCE or (self.backend, self.precision) == (
            "onnxruntime-cpu",
            Precision.FP16,
        ):
            raise ValueError(f"{self.backend} has no {self.precision.value} variant")
        known = {"max", "entropy"} if self.builds_engine else {"minmax", "entropy", "percentile"}
        if self.calibration not in known:
            raise ValueError(
                f"{self.backend} calibrates by {' or '.join(sorted(known))}, not {self.calibration}"
            )
        longest = max(map(len, self.files))
        if longest > MAX_FILE_NAME:
            raise ValueError(
                f"the name is {longest - MAX_FILE_NAME} characters too long for the files of its engines"
            )
        if self.fallback == "fp16" and not (self.builds_engine and self.precision is Precision.INT8):
            raise ValueError("fallback = 'fp16' is for INT8 variants of tensorrt and tensorrt-rtx")
        if self.search and self.precision is not Precision.INT8:
            raise ValueError(f"search = true is for int8 variants, not for {self.precision.value}")
        if "build" in self.model_fields_set:
            self._check_build()
        return self

    def _check_build(self) -> None:
        if not self.builds_engine:
            raise ValueError(f"build is for tensorrt and tensorrt-rtx; {self.backend} runs the graph itself")
        given = self.build.model_fields_set
        wrong = {
            "tensorrt": {"capabilities"},
            "tensorrt-rtx": {"version_compatible", "hardware_compatibility", "typing"},
        }[self.backend] & given
        if wrong:
            raise ValueError(f"{self.backend} has no build.{sorted(wrong)[0]}")


class GateSettings(_Section):
    """What is good enough: the accuracy an engine may lose against PyTorch FP32 on the same test images."""

    metric: Literal["top1", "balanced"] = Field("top1", description="what may not drop by more than max_drop")
    max_drop: float = Field(0.01, ge=0, lt=1, description="a share: 0.01 is one point of the metric")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the interval that decides")
    inconclusive: Literal["fail", "warn"] = Field(
        "fail", description="what an undecided required variant does"
    )


class BenchmarkSettings(_Section):
    """How latency is measured."""

    enabled: bool = Field(True, description="false leaves speed out of the report")
    processes: int = Field(5, ge=2, description="fresh processes per contender")
    blocks: int = Field(60, ge=2, description="timed blocks per process, contenders alternating")
    block_seconds: float = Field(0.05, gt=0, description="length of a timed block")
    images: int = Field(64, ge=2, description="real images that rotate")
    peers: tuple[Literal["pytorch-tuned", "pytorch-compile"], ...] = Field(
        (),
        description="also time PyTorch with BatchNorm folded, and with torch.compile; each costs a start per process",
    )
    side_blocks: int = Field(
        4,
        ge=1,
        description="blocks per process of the boundaries engine and image, and of one repeated image",
    )


class Recipe(_Section):
    """The user's whole wish."""

    name: Name = Field(description="of the folder below runs/ and of the bundle")
    seed: int = Field(
        0, ge=0, lt=2**32, description="of the split, the training and the choice of calibration pictures"
    )
    data: DataSettings
    backbone: BackboneSettings
    finetune: FinetuneSettings = FinetuneSettings()
    export: ExportSettings = ExportSettings()
    variants: tuple[VariantSettings, ...] = Field(min_length=1)
    gate: GateSettings = GateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [v.name for v in variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names must differ, got {', '.join(names)}")
        files = [file for v in variants for file in v.files]
        if repeated := sorted({file for file in files if files.count(file) > 1}):
            raise ValueError(f"two variants would write {repeated[0]}: name one of them otherwise")
        if taken := {"baseline", "pytorch-tuned", "pytorch-compile"} & set(names):
            raise ValueError(f"{sorted(taken)[0]!r} is the PyTorch model's own name")
        return variants


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe file.

    Args:
        path: TOML file. A relative ``data.path`` or weight file is taken from its folder.
        overrides: ``section.key=value``, the value in TOML (a bare word is a string).

    Raises:
        RecipeError: names the key, what was got, and the nearest right key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe {path}.", path=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.", path=path) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.", path=path) from error
    for override in overrides:
        _apply_override(values, override)
    _resolve_paths(values, path.parent)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_explain(error)}", path=path) from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: wanted section.key=value.", hint="--set finetune.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        target = _descend(target, parent, override)
    if isinstance(target, list):
        raise RecipeError(f"--set {override}: name the variant, as in variants.int8.{last}=...")
    target[last] = value


def _descend(target: Any, parent: str, override: str) -> Any:
    """One step down; in the list of variants a step is a variant's name."""
    if isinstance(target, list):
        for item in target:
            if isinstance(item, dict) and item.get("name") == parent:
                return item
        raise RecipeError(f"--set {override}: there is no variant {parent!r}.")
    child = target.setdefault(parent, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {override}: {parent!r} is a value, not a section.")
    return child


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    data, backbone = values.get("data"), values.get("backbone")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = str(folder / Path(data["path"]).expanduser())
    if isinstance(backbone, dict) and str(backbone.get("weights", "")).endswith((".safetensors", ".pth")):
        backbone["weights"] = str(folder / Path(backbone["weights"]).expanduser())


def _explain(error: ValidationError) -> str:
    """The first problem in one sentence, with a count of the others."""
    # A misspelt key also leaves the right one missing: tell of the cause, not of the consequence.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}."
        return f"unknown key {where!r}; {advice}{more}"
    if first["type"] == "missing":
        return f"{where!r} is missing.{more}"
    return f"{where or 'the recipe'} = {first['input']!r}: {first['msg']}.{more}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one stood."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments: Mapping[str, Any] = {str(i): a for i, a in enumerate(getattr(annotation, "__args__", ()))}
        model = next(iter(arguments.values()), annotation)
    return list(model.model_fields)
