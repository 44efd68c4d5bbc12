"""Who is timed in a recipe's benchmark: the PyTorch baseline, the engines, and the peers that were asked for.

The baseline is PyTorch eager FP32 on the best device that takes part: on the GPU, with TF32 off, where torch sees one
and an engine ran on it; else on the CPU. Where it is the GPU, PyTorch on the CPU is timed too, as a peer, when engines
for the CPU take part. Every measurement names its device. The part for GPUs was tested with fakes and was not run on
a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.timing.contender import (
    LOGIT_TOLERANCE,
    Contender,
    engine_contender,
    peer_contender,
    thread_choices,
)
from edgekiln.pipeline.proof.peer_files import CONVERTED, PeerFile, make_peer_files, why_not_convertible
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME
from edgekiln.pipeline.variants.engines import built_files, is_judged
from edgekiln.pipeline.workspace.stage_files import BASELINE, StageContext, read_logits
from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.spec import Logits, Precision

__all__ = ["ChosenContenders", "choose_contenders", "torch_contender"]

Chosen: TypeAlias = NDArray[np.int64]
"""Indices of the test images that rotate."""
_HALF_TOLERANCE = 2e-2
"""Of the logit range: FP16 and TF32 both have 11 bits of significand; as ``export.fp16_tolerance``."""
_LEAST_TOLERANCE, _MOST_TOLERANCE = 1e-2, 0.25


@dataclass(frozen=True, slots=True)
class ChosenContenders:
    """Who takes part in a benchmark.

    Attributes:
        contenders: the baseline first, the engines last.
        peers: by name, the precision of those contenders that are not ours.
        absent: by name, why a peer that was asked for cannot be tried here.
        about: by name, of the peers whose file was made for them, what ``PeerFile.about`` holds.
    """

    contenders: tuple[Contender, ...]
    peers: Mapping[str, str]
    absent: Mapping[str, str]
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def choose_contenders(context: StageContext, chosen: Chosen) -> ChosenContenders:
    """The contenders of a recipe whose engines are evaluated, on the ``chosen`` test images."""
    variants = [v for v in context.recipe.variants if is_judged(context, v)]
    on_cpu = [v for v in variants if v.backend in CPU_BACKENDS]
    gpu = len(on_cpu) < len(variants) and _torch_sees_gpu()
    found = [_torch_gpu(context, BASELINE, "fp32", chosen) if gpu else _torch_cpu(context, BASELINE, chosen)]
    peers: dict[str, str] = {}
    absent: dict[str, str] = {}
    about: dict[str, Mapping[str, Any]] = {}
    if gpu and on_cpu:
        found.append(replace(_torch_cpu(context, "pytorch-cpu", chosen), optional=True))
        peers["pytorch-cpu"] = "fp32"
    runnable = [v for v in on_cpu if v.backend == "onnxruntime-cpu"]
    for wanted in context.recipe.benchmark.peers:
        reason = why_not_convertible(wanted, on_cpu) if wanted in CONVERTED else _why_absent(wanted, runnable)
        if reason is not None:
            absent[wanted] = reason
            continue
        if wanted in CONVERTED:
            files, not_made = make_peer_files(context, wanted, on_cpu)
            absent |= not_made
            found += [_converted(wanted, file, chosen) for file in files]
            peers |= {file.name: file.precision.value for file in files}
            about |= {file.name: file.about for file in files}
            continue
        for contender, precision in _make_peers(context, wanted, runnable, chosen):
            found.append(contender)
            peers[contender.name] = precision
    found += [_engine(context, variant, chosen) for variant in variants]
    return ChosenContenders(tuple(found), peers, absent, about)


def _engine(context: StageContext, variant: VariantSettings, chosen: Chosen) -> Contender:
    files = built_files(context, variant)
    return engine_contender(variant.name, files, variant.backend, _answers(context, variant.name, chosen))


def _answers(context: StageContext, name: str, chosen: Chosen) -> Any:
    return read_logits(context.inputs[f"evaluate.{name}"])[chosen]


# --------------------------------------------------------------------------------------------------------------
# Peers


def _why_absent(wanted: str, variants: Sequence[VariantSettings]) -> str | None:
    """Why an entry of ``benchmark.peers`` cannot be tried here, ``None`` where it can."""
    match wanted:
        case "pytorch-gpu" if not _torch_sees_gpu():
            return "torch finds no GPU; `nvidia-smi` tells what is missing"
        case "onnxruntime" | "openvino" if not variants:
            return "no variant of onnxruntime-cpu was evaluated whose file it could run"
        case "onnxruntime" | "openvino" if importlib.util.find_spec(wanted) is None:
            return f"it is not installed. Run: pip install 'edgekiln[{wanted}]'"
    return None


def _make_peers(
    context: StageContext, wanted: str, variants: Sequence[VariantSettings], chosen: Chosen
) -> list[tuple[Contender, str]]:
    """The contenders of one entry of ``benchmark.peers``, each with its precision."""
    match wanted:
        case "pytorch-gpu":
            ways = {"pytorch-gpu-tf32": "tf32", "pytorch-gpu-fp16": "fp16", "pytorch-gpu-graph": "fp16-graph"}
            made = [
                (_torch_gpu(context, name, way, chosen), way.partition("-")[0]) for name, way in ways.items()
            ]
            return [(replace(contender, optional=True), precision) for contender, precision in made]
        case "onnxruntime" | "openvino":
            return [
                (_library(context, wanted, variant, chosen), variant.precision.value) for variant in variants
            ]
        case _:
            return [(replace(_torch_cpu(context, wanted, chosen), optional=True), "fp32")]


def _converted(library: str, file: PeerFile, chosen: Chosen) -> Contender:
    """A library on its own file. It answers as it did when that was made; how far from PyTorch is told apart."""
    return Contender(
        name=file.name,
        factory=f"edgekiln.benchmarks.timing.peers:open_{library}",
        arguments=file.arguments,
        configs=[{"threads": count} for count in thread_choices()],
        logits=file.logits[chosen],
        imports=("ai_edge_litert.interpreter" if library == "litert" else library,),
        optional=True,
    )


def _library(context: StageContext, library: str, variant: VariantSettings, chosen: Chosen) -> Contender:
    [path] = built_files(context, variant)
    same_kernels = library == "onnxruntime" or variant.precision is not Precision.INT8
    tolerance = LOGIT_TOLERANCE if same_kernels else _rounding_tolerance(context, variant.name)
    return peer_contender(
        library, variant.name, path, _answers(context, variant.name, chosen), tolerance=tolerance
    )


def _rounding_tolerance(context: StageContext, name: str) -> float:
    """How far another library on an INT8 file may be from our answers: as far as those are from FP32's.

    Both compute the integer products exactly, but each rounds between layers in its own way, and an activation that
    falls on the other side of a boundary moves by a whole step. That is noise of the kind and size that quantization
    itself brought; OpenVINO showed half of it. Another image's answers are off by the range of the logits itself.
    """
    ours, exact = (read_logits(context.inputs[f"evaluate.{of}"]) for of in (name, BASELINE))
    spread = float(np.ptp(ours))
    share = float(np.abs(ours - exact).max()) / spread if spread else 0.0
    return min(max(share, _LEAST_TOLERANCE), _MOST_TOLERANCE)


# --------------------------------------------------------------------------------------------------------------
# PyTorch

_CPU_WAYS: dict[str, dict[str, bool]] = {
    "pytorch-tuned": {"folded": True},
    "pytorch-compile": {"compiled": True},
}


def torch_contender(arguments: Mapping[str, Any], logits: Logits, *, on_gpu: bool) -> Contender:
    """PyTorch eager FP32 on the best device that takes part, as the baseline.

    Args:
        arguments: ``checkpoint``, a path, and ``backbone``, the section of its recipe.
        logits: what it must answer.
        on_gpu: an engine ran on a GPU.
    """
    if on_gpu and _torch_sees_gpu():
        return _make_torch_gpu(BASELINE, "fp32", arguments, logits)
    return _make_torch_cpu(BASELINE, arguments, logits)


def _torch_cpu(context: StageContext, name: str, chosen: Chosen) -> Contender:
    return _make_torch_cpu(name, _torch_arguments(context), _answers(context, BASELINE, chosen))


def _torch_gpu(context: StageContext, name: str, way: str, chosen: Chosen) -> Contender:
    return _make_torch_gpu(name, way, _torch_arguments(context), _answers(context, BASELINE, chosen))


def _make_torch_cpu(name: str, arguments: Mapping[str, Any], logits: Logits) -> Contender:
    """PyTorch eager, or the same weights under a faster way to run PyTorch, on the CPU."""
    # torch.compile chooses layouts itself, and each of its configurations costs a compilation.
    layouts = (False,) if name == "pytorch-compile" else (False, True)
    threads = thread_choices()[-1:] if name == "pytorch-compile" else thread_choices()
    return Contender(
        name=name,
        factory="edgekiln.pipeline.proof.baseline:open_baseline",
        arguments={**arguments, **_CPU_WAYS.get(name, {})},
        configs=[{"threads": t, "channels_last": layout} for t in threads for layout in layouts],
        logits=logits,
        imports=_model_library(arguments),
    )


def _make_torch_gpu(name: str, way: str, arguments: Mapping[str, Any], logits: Logits) -> Contender:
    """PyTorch on the first GPU; cuDNN's search for its fastest algorithms is what there is to choose."""
    return Contender(
        name=name,
        factory="edgekiln.pipeline.proof.baseline:open_gpu_baseline",
        arguments={**arguments, "way": way},
        configs=[{"search": True}] if way == "fp16-graph" else [{"search": False}, {"search": True}],
        logits=logits,
        imports=_model_library(arguments),
        tolerance=LOGIT_TOLERANCE if way == "fp32" else _HALF_TOLERANCE,
    )


def _torch_arguments(context: StageContext) -> dict[str, Any]:
    return {
        "checkpoint": str(context.inputs["finetune"] / CHECKPOINT_NAME),
        "backbone": context.recipe.backbone.model_dump(mode="json"),
    }


def _model_library(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The package that the network's code is in, which a worker imports before it loads the network."""
    library = str(arguments["backbone"]["model"]).partition("/")[0]
    return (library,) if library in {"timm", "torchvision"} else ()


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
