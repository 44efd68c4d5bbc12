"""The recipe's training: augmentation, fine-tuning, a source task beside it, a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekiln.pipeline.recipe.data import DataSettings
from edgekiln.pipeline.recipe.section import Section

__all__ = ["Augmentation", "FinetuneSettings", "SourceTaskSettings", "TeacherSettings"]


class Augmentation(Section):
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


class FinetuneSettings(Section):
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


class SourceTaskSettings(Section):
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


class TeacherSettings(Section):
    """Distillation from a larger network that an earlier run fine-tuned on the same classes."""

    checkpoint: Path = Field(description="checkpoint.safetensors of that run, relative to the recipe")
    temperature: float = Field(4.0, gt=0, description="softens both answers")
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher's answers against the labels")
