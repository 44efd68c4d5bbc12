"""Triton's ``config.pbtxt``: what a model takes and gives, how requests are grouped, and what warms it up.

The file is protobuf's text format of ``inference.ModelConfig`` (model_config.proto of triton-inference-server/common).
It is written here, so that no protobuf is needed where a bundle is packed; the tests parse it with Triton's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME

__all__ = ["LABELS_NAME", "MODEL_FILES", "ModelConfig", "Platform", "WarmupSample", "write_config"]

Platform = Literal["onnxruntime_onnx", "tensorrt_plan"]
MODEL_FILES: Mapping[Platform, str] = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
"""The names under which Triton looks for a model's file in a version's folder."""
LABELS_NAME = "labels.txt"
_WARM_ROUNDS = 3  # libraries allocate in the first call, and choose kernels or capture graphs in the next


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """One warm-up: ``batch_size`` requests for one picture each, given to the engine as one batch.

    Attributes:
        file: raw input of one request in the model's folder ``warmup``; ``None`` lets Triton make random values.
    """

    batch_size: int
    file: str | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model as Triton knows it: uint8 (N, height, width, 3) named ``image`` to float32 (N, classes) named ``logits``.

    Attributes:
        name: of the model; its folder is called the same.
        max_batch: the largest batch that Triton may make; 0 for an engine of one fixed batch size, whose shapes then
            hold ``fixed_batch``, and which Triton sends whole requests only.
        preferred_batch: the sizes that the engine's kernels were chosen for.
        profiles: optimization profiles that an engine has, where it has several; Triton takes the first alone unless
            it is told of the others.
        queue_delay_us: how long a request waits for others to fill a batch, microseconds.
        instances: copies of the model that run at a time, on each GPU or on the CPU.
        comment: lines that go in front.
    """

    name: str
    platform: Platform
    kind: Literal["KIND_CPU", "KIND_GPU"]
    frame: tuple[int, int]
    classes: int
    max_batch: int
    fixed_batch: int | None = None
    preferred_batch: tuple[int, ...] = ()
    profiles: int = 1
    queue_delay_us: int = 1000
    instances: int = 1
    warmup: Sequence[WarmupSample] = ()
    comment: Sequence[str] = ()

    @property
    def input_dims(self) -> tuple[int, ...]:
        """As ``dims`` has them: without the batch where Triton makes the batches."""
        return (*self._leading, *self.frame, 3)

    @property
    def output_dims(self) -> tuple[int, ...]:
        """The same of the logits."""
        return (*self._leading, self.classes)

    @property
    def _leading(self) -> tuple[int, ...]:
        return () if self.fixed_batch is None else (self.fixed_batch,)


class _Enum(str):
    """A name that the text format writes without quotes."""


def write_config(config: ModelConfig) -> str:
    """``config`` as the text of a config.pbtxt; the same values give the same bytes."""
    comment = "".join(f"# {line}\n" for line in config.comment)
    return comment + "".join(f"{line}\n" for line in _lines(_message(config)))


def _message(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": config.name,
        "platform": config.platform,
        "max_batch_size": config.max_batch,
        "input": {"name": INPUT_NAME, "data_type": _Enum("TYPE_UINT8"), "dims": config.input_dims},
        "output": {
            "name": OUTPUT_NAME,
            "data_type": _Enum("TYPE_FP32"),
            "dims": config.output_dims,
            "label_filename": LABELS_NAME,
        },
        "instance_group": {"count": config.instances, "kind": _Enum(config.kind)},
    }
    if config.profiles > 1:
        values["instance_group"]["profile"] = tuple(map(str, range(config.profiles)))
    if config.max_batch:
        batching: dict[str, Any] = {"max_queue_delay_microseconds": config.queue_delay_us}
        if config.preferred_batch:
            batching["preferred_batch_size"] = config.preferred_batch
        values["dynamic_batching"] = batching
    values["model_warmup"] = [_describe_warmup(sample, config) for sample in config.warmup]
    return values


def _describe_warmup(sample: WarmupSample, config: ModelConfig) -> dict[str, Any]:
    data: dict[str, Any] = {"random_data": True} if sample.file is None else {"input_data_file": sample.file}
    tensor = {"data_type": _Enum("TYPE_UINT8"), "dims": config.input_dims, **data}
    return {
        "name": f"batch-{config.fixed_batch or sample.batch_size}",
        "batch_size": sample.batch_size,
        "count": _WARM_ROUNDS,
        "inputs": {"key": INPUT_NAME, "value": tensor},
    }


def _lines(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Protobuf's text format: scalars, lists of integers, messages, and lists of messages, each as its own field."""
    for key, value in message.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key} {{"
            yield from _lines(value, f"{indent}  ")
            yield f"{indent}}}"
        elif isinstance(value, list):
            for item in value:
                yield from _lines({key: item}, indent)
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: bool | int | str | tuple[int | str, ...]) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case _Enum() | int():
            return str(value)
        case tuple():
            return f"[{', '.join(map(_scalar, value))}]"
        case _:
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
