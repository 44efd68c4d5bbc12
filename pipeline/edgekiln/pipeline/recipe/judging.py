"""The recipe's proof: what is good enough, how latency is measured, what the report shows and what ships with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from edgekiln.pipeline.recipe.section import Section

__all__ = ["BenchmarkSettings", "GateSettings", "ReportSettings", "ShipSettings"]


class GateSettings(Section):
    """What is good enough: the accuracy an engine may lose against PyTorch FP32 on the same test images."""

    metric: Literal["top1", "balanced"] = Field("top1", description="what may not drop by more than max_drop")
    max_drop: float = Field(0.01, ge=0, lt=1, description="a share: 0.01 is one point of the metric")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the interval that decides")
    min_top1: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="a share that top-1 must reach, of PyTorch as of each engine; left out, a network that guesses is "
        "told and not refused",
    )
    inconclusive: Literal["fail", "warn"] = Field(
        "fail", description="what an undecided required variant does"
    )
    evidence: Literal["test", "test+val"] = Field(
        "test",
        description="the pictures whose drop is judged; val may help where no variant was chosen on it (docs/proof.md)",
    )

    @property
    def judges_val(self) -> bool:
        """Whether val's pictures count beside test's."""
        return self.evidence == "test+val"


Peer = Literal[
    "pytorch-tuned", "pytorch-compile", "pytorch-gpu", "onnxruntime", "openvino", "litert", "ncnn"
]  # fmt: skip


class BenchmarkSettings(Section):
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
        description="also time PyTorch with BatchNorm folded, with torch.compile, or in its ways on a GPU; plain "
        "onnxruntime and OpenVINO on the files of the onnxruntime-cpu variants; LiteRT and ncnn on files that their "
        "own tools make of the checkpoint. Each costs a start per process",
    )
    batches: tuple[int, ...] = Field(
        (),
        description="also time all on the CPU at these batch sizes, with one thread and with two, and compare "
        "each peer with each engine; torch.compile, which would be compiled anew for each size, is left out of it",
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

    @field_validator("batches")
    @classmethod
    def _check_batches(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in batches) or len(set(batches)) < len(batches):
            raise ValueError(f"batches are sizes from 1 on, each once, got {list(batches)}")
        return batches

    @field_validator("peers")
    @classmethod
    def _once(cls, peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
        if twice := sorted({peer for peer in peers if peers.count(peer) > 1}):
            raise ValueError(f"{twice[0]} is named twice")
        return peers


class ReportSettings(Section):
    """What the report shows of the pictures it judged."""

    images: bool = Field(
        True,
        description="false leaves every picture and every picture's file name out of the report and the bundle",
    )


class ShipSettings(Section):
    """What the bundle holds besides its engines and their proof."""

    baseline: bool = Field(
        False,
        description="true puts the PyTorch checkpoint into the bundle, so that `edgekiln bench BUNDLE` can time it on "
        "a device with PyTorch; it is as large as the FP32 graph, and the run says how large",
    )
