"""How an engine is built: the options, and which of them go together. Knows no library and no process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Precision

__all__ = ["TENSORRT_ALONE", "BatchProfile", "BuildOptions"]

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
Typing = Literal["strong", "weak"]
Tiling = Literal["none", "fast", "moderate", "full"]

MAX_BATCH = 1024
TENSORRT_ALONE = (
    "version_compatible",
    "hardware_compatibility",
    "typing",
    "avg_timing_iterations",
    "sparsity",
    "tiling",
)
"""Options that TensorRT-RTX has not, or takes and does nothing with: it times no kernel while it builds."""
_ADDED_LATER = ("max_aux_streams", "avg_timing_iterations", "sparsity", "tiling")


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Batch sizes that one engine takes; kernels are chosen for ``opt``. All three equal make a static engine."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise UsageError(
                f"A batch profile needs 1 <= min <= opt <= max <= {MAX_BATCH}, got {self.min}, {self.opt}, {self.max}."
            )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        batch: the batch sizes that it takes; several ranges are optimization profiles of one engine, each with kernels
            of its own over the same weights.
        precision: what the graph was made for; decides about TF32 and, with weak typing, the builder's permissions.
        workspace_bytes: most memory a kernel may use while it runs; clamped to what is free. ``None``: the library's.
        optimization_level: 0 to 5, more is slower to build; ``None`` is the library's default. RTX ignores it.
        tf32: let FP32 products drop to 10 bits of mantissa.
        version_compatible: an engine that newer TensorRT versions and tensorrt-lean can run; TensorRT only.
        hardware_compatibility: run on other GPUs than the one that builds; TensorRT only, not on Jetson.
        capabilities: compute capabilities (86 is 8.6) to build for; RTX only; empty is its default, all but Turing.
        typing: ``weak`` only where strong typing fails, below TensorRT 10.12: the library may then choose float32.
        max_aux_streams: streams beside the main one; ``None`` leaves their number to the library.
        avg_timing_iterations: times that each kernel is timed; ``None`` is the library's default; TensorRT only.
        sparsity: allow kernels for weights with two zeros in each four; TensorRT only.
        tiling: how long to look for layers that can share the L2 cache; TensorRT from 10.13 on.
    """

    flavour: Flavour
    precision: Precision
    batch: BatchProfile | tuple[BatchProfile, ...] = BatchProfile()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    capabilities: tuple[int, ...] = ()
    typing: Typing = "strong"
    max_aux_streams: int | None = None
    avg_timing_iterations: int | None = None
    sparsity: bool = False
    tiling: Tiling = "none"

    def __post_init__(self) -> None:
        rtx = self.flavour == "tensorrt-rtx"
        if len(set(self.profiles)) != len(self.profiles) or not self.profiles:
            raise UsageError(
                f"An engine has one batch profile or several different ones, got {len(self.profiles)}."
                if not self.profiles
                else f"Two batch profiles of an engine are the same: {self.profiles}."
            )
        if self.precision is Precision.BF16 and 75 in self.capabilities:
            raise UsageError("Turing (75) has no BF16: build FP16 for it.")
        if self.capabilities and not rtx:
            raise UsageError("capabilities are for tensorrt-rtx; TensorRT builds for the GPU that is here.")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"workspace_bytes must be positive, got {self.workspace_bytes}.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level is 0 to 5, got {self.optimization_level}.")
        if self.max_aux_streams is not None and self.max_aux_streams < 0:
            raise UsageError(f"max_aux_streams is 0 or more, got {self.max_aux_streams}.")
        if self.avg_timing_iterations is not None and self.avg_timing_iterations < 1:
            raise UsageError(f"avg_timing_iterations is 1 or more, got {self.avg_timing_iterations}.")
        foreign = [name for name in TENSORRT_ALONE if getattr(self, name) != _DEFAULTS[name]] if rtx else []
        if foreign:
            raise UsageError(f"tensorrt-rtx has no {' and no '.join(foreign)}: leave it out.")

    @property
    def profiles(self) -> tuple[BatchProfile, ...]:
        """The optimization profiles, in the order of their index in the engine."""
        return (self.batch,) if isinstance(self.batch, BatchProfile) else self.batch

    def to_dict(self) -> dict[str, Any]:
        """JSON values: what determines the engine besides its model, its library and its GPU.

        Options that were added later are left out at their default: engines that are in a cache stay in use.
        """
        unused = {name for name in _ADDED_LATER if getattr(self, name) == _DEFAULTS[name]}
        values = asdict(self) | {"precision": self.precision.value}
        return {name: value for name, value in values.items() if name not in unused}


_DEFAULTS = {field.name: field.default for field in fields(BuildOptions)}
