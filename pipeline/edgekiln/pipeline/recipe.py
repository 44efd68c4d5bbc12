"""The recipe: the user's whole wish, one TOML file, validated before anything is touched.

Unknown keys are errors that name the nearest right one. A key of this module knows nothing of how a stage works;
`stages.py` reads the parts that it needs.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

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
    "QatSettings",
    "Recipe",
    "ReportSettings",
    "SourceTaskSettings",
    "TeacherSettings",
    "VariantSettings",
    "load_recipe",
    "read_values",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MAX_FILE_NAME = 64  # of a bundle
# The runtime opens these and no recipe makes them: CPUs have no FP16 arithmetic.
_NOT_MADE = {("onnxruntime-cpu", Precision.FP16)}
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    """A part of the recipe: immutable, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_SOURCES = {"imagefolder", "csv", "cifar10", "fashion-mnist", "digits", "traffic-lights"}
_KEYS_OF_SOURCES = {
    "path": ("imagefolder", "csv", "cifar10", "fashion-mnist"),
    "path_column": ("csv",),
    "label_column": ("csv",),
    "download": ("cifar10",),
}


class DataSettings(_Section):
    """Where the labelled pictures come from and how they become arrays."""

    source: str = Field(
        description="imagefolder, csv, cifar10, fashion-mnist, digits, traffic-lights, "
        "or module:callable returning LabelledImages"
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


class BackboneSettings(_Section):
    """The network and its first weights."""

    model: str = Field(description="timm/NAME, torchvision/NAME, edgekiln/tiny-cnn, or module:callable")
    weights: str = Field(
        "imagenet", description="imagenet, none, a .safetensors or .pth file, or package:DISTRIBUTION"
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
        if self.head == "replace" and not self.from_file:
            raise ValueError(
                f"head = 'replace' is for weight files; weights = {self.weights!r} start a fresh one"
            )
        return self

    @property
    def from_file(self) -> bool:
        """Whether the first weights are a local file's."""
        return self.weights.endswith((".safetensors", ".pth"))

    @property
    def keeps_head(self) -> bool:
        """Whether the head is one that was trained already."""
        return self.from_file and self.head == "keep"


class Augmentation(_Section):
    """Random changes of training pictures; strengths of 0 switch a part off."""

    horizontal_flip: bool = Field(True, description="mirror every second picture, by chance")
    crop_scale: float = Field(0.8, gt=0, le=1, description="smallest share of the area that a crop keeps")
    brightness: float = Field(0.2, ge=0, le=1, description="largest change, as a share")
    contrast: float = Field(0.2, ge=0, le=1, description="largest change, as a share")
    saturation: float = Field(0.0, ge=0, le=1, description="largest change, as a share")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the colour circle, as a share")
    randaugment: int = Field(0, ge=0, le=30, description="strength of two random operations; 9 is usual")
    mixup: float = Field(0.0, ge=0, description="alpha of Mixup; 0.2 is usual")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 1.0 is usual")


class FinetuneSettings(_Section):
    """How the network is trained."""

    epochs: int = Field(4, ge=0, description="0 keeps the linear probe")
    batch_size: int = Field(32, ge=1, description="pictures for each step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["find"] = Field(
        3e-4, description="the highest; see schedule and warmup. find: what a range test over 100 steps shows"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each stage's rate is the next one's times this; 1 is one rate for all"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(1e-2, ge=0, description="of the optimizer")
    l2_sp: float = Field(
        0.0, ge=0, description="pull towards the pretrained weights; weight_decay is then the head's alone"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the rate after its warm-up")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the rate rises")
    label_smoothing: float = Field(
        0.05, ge=0, lt=1, description="share of the target spread over all classes"
    )
    class_balance: bool = Field(False, description="every class counts alike in the loss, however rare")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced draws every class equally often, rare pictures repeatedly"
    )
    gradual_unfreezing: float = Field(
        0.0, ge=0, lt=1, description="share of all steps over which stages join, from the head down"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is then kept; 0.999 is usual",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of training; auto is bf16 autocast on GPUs that have it, else fp32"
    )
    accumulate: int = Field(
        1, ge=1, description="compute a step's batch in so many parts, for memory that holds no whole one"
    )
    compile: bool = Field(False, description="torch.compile: some minutes at the start, then faster steps")
    channels_last: bool = Field(True, description="memory layout of pictures and weights")
    workers: int | None = Field(
        None,
        ge=0,
        description="processes that read and augment ahead; left out: none on a CPU, up to 8 by a GPU",
    )
    patience: int = Field(
        0, ge=0, description="stop after so many epochs without a better one; 0 never stops early"
    )
    probe: bool = Field(True, description="start a fresh head from a linear probe")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes every usable core")
    checkpoint_seconds: float = Field(60.0, gt=0, description="how much work a kill may lose, besides epochs")
    tensorboard: bool = Field(
        False, description="also write the log as TensorBoard's event files, into runs/NAME/tensorboard"
    )
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _once(self) -> FinetuneSettings:
        if self.class_balance and self.sampling == "balanced":
            raise ValueError("class_balance and sampling = 'balanced' would weigh rare classes twice")
        if self.optimizer != "sgd" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError("momentum is for optimizer = 'sgd'; AdamW has moments of its own")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} is more than batch_size {self.batch_size}")
        return self


class SourceTaskSettings(_Section):
    """The combined loss J = alpha * J_source + beta * J_target: the source task is learned beside the target's."""

    data: DataSettings
    alpha: float = Field(ge=0, description="weight of the source task's loss; 0 is the plain run")
    beta: float = Field(1.0, ge=0, description="weight of the target task's loss")
    head: Literal["fresh", "keep"] = Field(
        "fresh",
        description="keep takes the head of the checkpoint in backbone.weights, whose classes it must know",
    )

    @model_validator(mode="after")
    def _learns_something(self) -> SourceTaskSettings:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: nothing would be learned")
        shaping = {"size", "resize", "shorter_side", "interpolation"} & self.data.model_fields_set
        if shaping:
            raise ValueError(
                f"data.{sorted(shaping)[0]} is the target's: one network sees both tasks' pictures"
            )
        return self


class TeacherSettings(_Section):
    """Distillation from a larger network that an earlier run fine-tuned on the same classes."""

    checkpoint: Path = Field(description="checkpoint.safetensors of that run, relative to the recipe")
    temperature: float = Field(4.0, gt=0, description="softens both answers")
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher's answers against the labels")


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


class QatSettings(_Section):
    """Quantization-aware training: the network learns to answer in INT8 before its engine is made."""

    epochs: int = Field(
        2, ge=1, description="over train; the best on val is kept, the untrained one included"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="the highest, along a cosine; default: a tenth of finetune.learning_rate"
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
        description="CPU backends: minmax (default), entropy, percentile; TensorRT: max (default), entropy",
    )
    min_precision_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="default 0.95 of the nodes for onnxruntime-cpu, 0.8 of the MACs for OpenVINO and TensorRT",
    )
    fallback: Literal["none", "fp16"] = Field(
        "none",
        description="an INT8 engine that does not build is built in FP16 instead, and the report says so",
    )
    search: bool | None = Field(
        None,
        description="int8 that loses too much on val keeps its worst blocks in float; default: with own max_drop, "
        "and without qat",
    )
    search_seconds: float = Field(600.0, gt=0, description="after which that search stops, and says so")
    qat: QatSettings | None = None
    build: BuildSettings = BuildSettings()

    @property
    def searches(self) -> bool:
        """Whether blocks may be kept in float to hold the budget."""
        wanted = self.max_drop is not None and self.qat is None if self.search is None else self.search
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
        """The smallest share that must run in the precision, or the backend's default.

        onnxruntime quantizes every node where all is right, so almost all are asked for. OpenVINO always computes
        the first convolution of pixels in FP32, and TensorRT keeps what it finds faster: of these most of the work
        is asked for, in MACs, since one layer in float says little by its number.
        """
        if self.min_precision_share is not None:
            return self.min_precision_share
        return 0.95 if self.backend == "onnxruntime-cpu" else 0.8

    @model_validator(mode="after")
    def _check_support(self) -> VariantSettings:
        wanted = (self.backend, self.precision)
        if wanted not in PREFERENCE or wanted in _NOT_MADE:
            there = [p.value for b, p in PREFERENCE if b == self.backend and (b, p) not in _NOT_MADE]
            raise ValueError(
                f"{self.backend} has no {self.precision.value} variant; its precisions are {', '.join(sorted(there))}"
            )
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
        if self.qat is not None:
            self._check_qat()
        if "build" in self.model_fields_set:
            self._check_build()
        return self

    def _check_qat(self) -> None:
        if self.precision is not Precision.INT8:
            raise ValueError(f"qat is for int8 variants, not for {self.precision.value}")
        if not self.builds_engine:
            raise ValueError(
                f"qat is for tensorrt and tensorrt-rtx; {self.backend} takes unsigned activations and weights whose "
                "sums cannot saturate, which the training would not see"
            )
        if self.search:
            raise ValueError(
                "search = true and qat exclude each other: what is trained for INT8 stays in INT8"
            )

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


Peer = Literal["pytorch-tuned", "pytorch-compile", "pytorch-gpu", "onnxruntime", "openvino"]


class BenchmarkSettings(_Section):
    """How latency is measured."""

    enabled: bool = Field(True, description="false leaves speed out of the report")
    processes: int = Field(5, ge=2, description="fresh processes per contender")
    blocks: int = Field(60, ge=2, description="timed blocks per process at most, contenders alternating")
    min_blocks: int = Field(
        20, ge=2, description="from so many on a process stops once its ratios are narrow"
    )
    target_width: float = Field(
        0.05, ge=0, lt=1, description="which is: every ratio's 95% interval within this share; 0 never stops"
    )
    block_seconds: float = Field(0.05, gt=0, description="length of a timed block")
    images: int = Field(64, ge=2, description="real images that rotate")
    peers: tuple[Peer, ...] = Field(
        (),
        description="also time PyTorch with BatchNorm folded, with torch.compile, or in its ways on a GPU; and plain "
        "onnxruntime and OpenVINO on the files of the onnxruntime-cpu variants. Each costs a start per process",
    )
    side_blocks: int = Field(
        4,
        ge=1,
        description="blocks per process of the boundaries engine and image, and of one repeated image",
    )
    mlperf: bool = Field(
        False, description="MLPerf LoadGen then drives each engine on the CPU that passed its gate"
    )
    mlperf_seconds: float = Field(
        10.0, ge=1, description="for each engine and scenario, at least; MLPerf's own rules ask for 600"
    )

    @model_validator(mode="after")
    def _check_mlperf(self) -> BenchmarkSettings:
        if self.mlperf and not self.enabled:
            raise ValueError(
                "mlperf = true needs enabled = true: it drives engines as the benchmark found best"
            )
        return self

    @field_validator("peers")
    @classmethod
    def _once(cls, peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
        if twice := sorted({peer for peer in peers if peers.count(peer) > 1}):
            raise ValueError(f"{twice[0]} is named twice")
        return peers


class ReportSettings(_Section):
    """What the report shows of the pictures it judged."""

    images: bool = Field(
        True,
        description="false leaves every picture and every picture's file name out of the report and the bundle",
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
    source_task: SourceTaskSettings | None = None
    teacher: TeacherSettings | None = None
    export: ExportSettings = ExportSettings()
    variants: tuple[VariantSettings, ...] = Field(min_length=1)
    gate: GateSettings = GateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    report: ReportSettings = ReportSettings()
    _folder: Path | None = PrivateAttr(None)  # no wish, and no part of any key

    @property
    def folder(self) -> Path | None:
        """Where the file lies that the recipe was read from; ``None`` for one that was made otherwise."""
        return self._folder

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [v.name for v in variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names must differ, got {', '.join(names)}")
        files = [file for v in variants for file in v.files]
        if repeated := sorted({file for file in files if files.count(file) > 1}):
            raise ValueError(f"two variants would write {repeated[0]}: name one of them otherwise")
        if taken := sorted(name for name in names if name == "baseline" or name.startswith("pytorch-")):
            raise ValueError(f"{taken[0]!r} is the PyTorch model's own name")
        return variants

    @model_validator(mode="after")
    def _transfer_makes_sense(self) -> Recipe:
        if self.finetune.l2_sp and (self.backbone.weights == "none" or self.backbone.freeze == "backbone"):
            raise ValueError(
                "finetune.l2_sp pulls towards pretrained weights that are trained on; there are none"
            )
        if self.finetune.gradual_unfreezing and self.backbone.freeze == "backbone":
            raise ValueError(
                "finetune.gradual_unfreezing has nothing to unfreeze: backbone.freeze = 'backbone'"
            )
        if self.finetune.learning_rate == "find":
            for variant in self.variants:
                if variant.qat is not None and variant.qat.learning_rate is None:
                    raise ValueError(
                        f"variants.{variant.name}.qat.learning_rate has no default where the finetune's is 'find'"
                    )
        if self.finetune.layer_decay < 1 and self.backbone.freeze == "backbone":
            raise ValueError("finetune.layer_decay needs more than one stage: backbone.freeze = 'backbone'")
        if self.teacher is not None and self.source_task is not None and self.source_task.beta == 0:
            raise ValueError("the teacher teaches the target task, whose weight source_task.beta is 0")
        if self.source_task is not None and self.source_task.head == "keep" and not self.backbone.from_file:
            raise ValueError("source_task.head = 'keep' needs a checkpoint in backbone.weights")
        return self


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
        raise RecipeError(f"There is no recipe {path}.", hint=_suggest_recipe(path), path=path) from error
    except IsADirectoryError as error:
        inside = ", ".join(sorted(entry.name for entry in path.glob("*.toml"))[:5])
        hint = f"It holds {inside}: name one of them." if inside else _suggest_recipe(path)
        raise RecipeError(
            f"The recipe {path} is a folder, wanted a TOML file.", hint=hint, path=path
        ) from error
    except UnicodeDecodeError as error:
        text = f"The recipe {path} cannot be read: it is no text in UTF-8 ({error.reason} at byte {error.start})."
        raise RecipeError(text, hint="Save it as UTF-8.", path=path) from error
    except OSError as error:
        hint = "Check the path and its permissions."
        raise RecipeError(
            f"The recipe {path} cannot be read: {error.strerror}.", hint=hint, path=path
        ) from error
    except tomllib.TOMLDecodeError as error:
        hint = "Texts stand in quotes, sections in [brackets]: https://toml.io"
        raise RecipeError(f"{path} is not valid TOML: {error}.", hint=hint, path=path) from error
    for override in overrides:
        _apply_override(values, override)
    _resolve_paths(values, path.parent)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        message, hint = _explain(error, values)
        raise RecipeError(f"{path}: {message}", hint=hint, path=path) from error
    recipe._folder = path.resolve().parent
    return recipe


def _suggest_recipe(path: Path) -> str:
    """The nearest TOML file in the folder where one was looked for."""
    beside = sorted(entry.stem for entry in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.stem, beside, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {path.parent / near[0]}.toml?"
    return "A recipe is a TOML file; the folder recipes/ of the project holds ready ones."


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"--set {override}: wanted section.key=value.", hint="Example: --set finetune.epochs=2"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        target = _descend(target, parent, override)
    if isinstance(target, list):
        raise RecipeError(
            f"--set {override}: wanted the name of a variant.",
            hint=f"Example: --set variants.int8.{last}=...",
        )
    target[last] = value


def _descend(target: Any, parent: str, override: str) -> Any:
    """One step down; in the list of variants a step is a variant's name."""
    if isinstance(target, list):
        for item in target:
            if isinstance(item, dict) and item.get("name") == parent:
                return item
        names = [str(item.get("name")) for item in target if isinstance(item, dict)]
        raise RecipeError(
            f"--set {override}: there is no variant {parent!r}.", hint=f"The recipe has: {', '.join(names)}."
        )
    child = target.setdefault(parent, {})
    if not isinstance(child, dict | list):
        raise RecipeError(
            f"--set {override}: {parent!r} is a value, not a section.",
            hint=f"Set it as a whole, with nothing behind {parent}.",
        )
    return child


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    source, backbone = values.get("source_task"), values.get("backbone")
    for data in (values.get("data"), source.get("data") if isinstance(source, dict) else None):
        if isinstance(data, dict) and isinstance(data.get("path"), str):
            data["path"] = str(folder / Path(data["path"]).expanduser())
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("checkpoint"), str):
        teacher["checkpoint"] = str(folder / Path(teacher["checkpoint"]).expanduser())
    if isinstance(backbone, dict) and str(backbone.get("weights", "")).endswith((".safetensors", ".pth")):
        backbone["weights"] = str(folder / Path(backbone["weights"]).expanduser())


def _explain(error: ValidationError, values: Mapping[str, Any]) -> tuple[str, str]:
    """The first problem in one sentence with a count of the others, and what to do about it."""
    # A misspelt key also leaves the right one missing: tell of the cause, not of the consequence.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    where = _name_place(first["loc"], values)
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}."
        return f"unknown key {where!r}; {advice}{more}", "Rename the key, or remove it."
    if first["type"] == "missing":
        return f"{where!r} is missing.{more}", _describe_key(first["loc"]) or "Add it to the recipe."
    text = first["msg"].removeprefix("Value error, ")
    if isinstance(
        first["input"], dict | list | BaseModel
    ):  # a rule over a whole section: its text names the keys
        return f"{where or 'the recipe'}: {text}.{more}", "Change one of the keys that it names."
    hint = _describe_key(first["loc"]) or "Change it in the recipe, or with --set KEY=VALUE."
    return f"{where or 'the recipe'} = {first['input']!r}: {text}.{more}", hint


def _name_place(location: Sequence[int | str], values: Mapping[str, Any]) -> str:
    """``variants.int8.precision``, as ``--set`` takes it, of ``("variants", 1, "precision")``."""
    parts: list[str] = []
    here: Any = values
    for part in location:
        try:
            here = here[part]
        except (LookupError, TypeError):
            here = None
        named = isinstance(part, int) and isinstance(here, dict) and isinstance(here.get("name"), str)
        parts.append(here["name"] if named else str(part))
    return ".".join(parts)


def _describe_key(location: Sequence[int | str]) -> str | None:
    """What a key means and its default, as the recipe's models say; ``None`` where they say nothing."""
    try:
        field = _model_at(location[:-1]).model_fields[str(location[-1])]
    except (LookupError, AttributeError):
        return None
    told = [f"{location[-1]}: {field.description}."] if field.description else []
    if not field.is_required() and not isinstance(field.default, BaseModel):
        told.append(f"Left out, it is {field.default!r}.")
    return " ".join(told) or None


def _keys_beside(location: Sequence[int | str]) -> list[str]:
    """The keys that are allowed where an unknown one stood."""
    return list(_model_at(location[:-1]).model_fields)


def _model_at(location: Sequence[int | str]) -> Any:
    """The model of a section, by its place in the recipe."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments: Mapping[str, Any] = {str(i): a for i, a in enumerate(getattr(annotation, "__args__", ()))}
        model = next(iter(arguments.values()), annotation)
    return model


def read_values(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a recipe that ``load_recipe`` accepts says itself: the file's values with the overrides, no default."""
    values = tomllib.loads(path.read_text("utf-8-sig"))
    for override in overrides:
        _apply_override(values, override)
    return values
