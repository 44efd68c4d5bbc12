"""The recipe's graph, and the engines to make from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from edgekiln.pipeline.recipe.section import Section
from edgekiln.runtime.backends import Backend
from edgekiln.runtime.bundles.manifest import PREFERENCE
from edgekiln.runtime.spec import Precision

__all__ = [
    "AUTO_SECONDS",
    "BATCH_TAGS",
    "MAX_FILE_NAME",
    "BatchSettings",
    "BuildSettings",
    "ExportSettings",
    "QatSettings",
    "VariantSettings",
]

MAX_FILE_NAME = 64  # of a bundle
AUTO_SECONDS = 60.0
"""What comparing methods of calibration may cost, as reckoned, where no recipe asks for it."""
_MAX_SIZES, _MAX_SIZE = 8, 64  # what the runtime takes of static batches: onnx_files/metadata.py
# The runtime opens these and no recipe makes them: CPUs have no FP16 arithmetic.
_NOT_MADE = {("onnxruntime-cpu", Precision.FP16)}


class ExportSettings(Section):
    """The ONNX file."""

    opset: int = Field(
        18, ge=18, le=20, description="of the ONNX graph; 20 is the newest that TensorRT 10.3 reads"
    )
    parity_images: int = Field(
        64, ge=64, description="real pictures that the graph and PyTorch must agree on"
    )
    parity_tolerance: float = Field(1e-3, gt=0, description="max |logit difference| over the logit range")
    fp16_tolerance: float = Field(
        2e-2,
        gt=0,
        description="the same for FP16 graphs, whose values have 11 bits; BF16 has 8 bits: 8 times that",
    )


class BatchSettings(Section):
    """The batch sizes that one engine takes; its kernels are chosen for ``opt``."""

    min: int = Field(1, ge=1, description="smallest batch")
    opt: int = Field(8, ge=1, description="the batch that kernels are chosen for")
    max: int = Field(32, ge=1, le=1024, description="largest batch; it decides the memory")

    @model_validator(mode="after")
    def _ordered(self) -> BatchSettings:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"wanted min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


_ADDED_LATER = ("max_aux_streams", "avg_timing_iterations", "sparsity", "tiling")
BATCH_TAGS = ("(one range)", "(several ranges)")
"""Parts that pydantic puts into the place of a mistake in ``batch``, and that no key has."""
_Batch = Annotated[
    Annotated[BatchSettings, Tag(BATCH_TAGS[0])] | Annotated[tuple[BatchSettings, ...], Tag(BATCH_TAGS[1])],
    Discriminator(lambda value: BATCH_TAGS[isinstance(value, list | tuple)]),
]


class BuildSettings(Section):
    """How a TensorRT or TensorRT-RTX engine is built, and which batch sizes OpenVINO has a model of their own for."""

    batch: _Batch = Field(
        BatchSettings(),
        description="one table, or a list of them: several optimization profiles in one engine, each tuned for its opt",
    )
    static_batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (),
        description="one static engine for each of these sizes, instead of one for the range in batch; "
        "openvino: a model for each beside the one for all, 2 to 64, at most 8 sizes",
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
    max_aux_streams: int | None = Field(
        None,
        ge=0,
        description="streams beside the main one, for branches that run at once; 0 keeps to the main one",
    )
    avg_timing_iterations: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="tensorrt: times that each kernel is timed for the choice; more is steadier",
    )
    sparsity: bool = Field(
        False, description="tensorrt: kernels for weights that are 2:4 sparse already; nothing is pruned"
    )
    tiling: Literal["none", "fast", "moderate", "full"] = Field(
        "none",
        description="tensorrt 10.13 and newer: look for layers that share the L2 cache; more is slower to build",
    )

    @property
    def unused(self) -> set[str]:
        """Keys that were added later and have their default: digests leave them out, so what is on disk stays good."""
        fields = type(self).model_fields
        return {key for key in _ADDED_LATER if getattr(self, key) == fields[key].default}

    @field_validator("batch", mode="after")
    @classmethod
    def _differ(cls, batch: _Batch) -> _Batch:
        """One range in a list is that range: the same engine, and the same keys of stages."""
        if isinstance(batch, BatchSettings):
            return batch
        if len(set(batch)) != len(batch) or not batch:
            raise ValueError("wanted one range or several different ones")
        return batch[0] if len(batch) == 1 else batch

    @model_validator(mode="after")
    def _one_way(self) -> BuildSettings:
        if self.static_batches and not isinstance(self.batch, BatchSettings):
            raise ValueError(
                "static_batches makes an engine for each size, several ranges in batch one engine: give one of them"
            )
        return self


class QatSettings(Section):
    """Quantization-aware training: the network learns to answer in INT8 before its engine is made."""

    epochs: int = Field(
        2, ge=1, description="over train; the best on val is kept, the untrained one included"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="the highest, along a cosine; default: a tenth of finetune.learning_rate"
    )


class VariantSettings(Section):
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
    calibration_method: Literal["auto", "minmax", "max", "entropy", "percentile"] | None = Field(
        None,
        description="CPU backends: minmax, entropy, percentile; TensorRT: max, entropy; auto takes what agrees best "
        "with FP32. default: auto where that costs under a minute more, else minmax or max; with qat: max",
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
    def chosen_on_val(self) -> str | None:
        """What of the variant is chosen by its answers to val, and the key that leaves it out; ``None`` for nothing.

        Calibration pictures and methods are chosen on train.
        """
        if self.searches:
            return "the blocks that it keeps in float: set search = false"
        return "the epoch of its qat: leave qat out" if self.qat is not None else None

    @property
    def builds_engine(self) -> bool:
        """Whether the backend runs engines, which are built from the graph, rather than the graph itself."""
        return self.backend in {"tensorrt", "tensorrt-rtx"}

    @property
    def static_models(self) -> tuple[int, ...]:
        """Batch sizes that OpenVINO is to compile a model for, ascending; TensorRT's have an engine each instead."""
        return tuple(sorted(set(self.build.static_batches))) if self.backend == "openvino" else ()

    @property
    def files(self) -> tuple[str, ...]:
        """Every name that its files may have in a bundle."""
        if not self.builds_engine:
            return (f"{self.name}.onnx",)
        sizes = tuple(f"{self.name}.b{size}.engine" for size in self.build.static_batches)
        graphs = (f"{self.name}.onnx", *([f"{self.name}.fallback.onnx"] if self.fallback != "none" else []))
        return (*graphs, *(sizes or (f"{self.name}.engine",)))

    @property
    def calibration_methods(self) -> tuple[Any, ...]:
        """What the backend can calibrate by; the first is the simple one, which takes all that was seen."""
        return ("max", "entropy") if self.builds_engine else ("minmax", "entropy", "percentile")

    @property
    def calibration(self) -> Any:
        """The calibration method, ``auto`` among them, or the default; what trains for INT8 leaves no choice."""
        asked = self.calibration_method
        if self.precision is Precision.INT8 and self.qat is None:
            return asked or "auto"
        return self.calibration_methods[0] if asked in {None, "auto"} else asked

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
        known = {"auto", *self.calibration_methods}
        if self.calibration not in known:
            raise ValueError(
                f"{self.backend} calibrates by {' or '.join(sorted(known))}, not {self.calibration}"
            )
        longest = max(map(len, self.files))
        if longest > MAX_FILE_NAME:
            raise ValueError(
                f"the name is {longest - MAX_FILE_NAME} characters too long for the files of its engines"
            )
        if self.precision is Precision.BF16 and 75 in self.build.capabilities:
            raise ValueError("Turing (75) has no BF16: take it out of build.capabilities, or take fp16")
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
        if self.calibration_method == "auto":
            raise ValueError(
                "calibration_method = 'auto' and qat exclude each other: the training starts from one method's "
                "ranges; name max or entropy"
            )

    def _check_build(self) -> None:
        given = self.build.model_fields_set
        if self.backend == "openvino" and given <= {"static_batches"}:
            sizes = self.build.static_batches
            if len(set(sizes)) > _MAX_SIZES or not all(2 <= size <= _MAX_SIZE for size in sizes):
                raise ValueError(
                    f"openvino takes at most {_MAX_SIZES} static_batches from 2 to {_MAX_SIZE}; 1 has its own"
                )
            return
        if not self.builds_engine:
            raise ValueError(
                f"build is for tensorrt and tensorrt-rtx, its static_batches for openvino too; {self.backend} runs the "
                "graph itself"
            )
        wrong = {
            "tensorrt": {"capabilities"},
            "tensorrt-rtx": {
                "version_compatible",
                "hardware_compatibility",
                "typing",
                "avg_timing_iterations",
                "sparsity",
                "tiling",
            },
        }[self.backend] & given
        if wrong:
            raise ValueError(f"{self.backend} has no build.{sorted(wrong)[0]}")
