"""The table of all kinds of stages. The plan of a run, ``--dry-run`` and ARCHITECTURE.md's picture come from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.stages.settings import (
    ENGINE_LIBRARIES,
    listed_of_data,
    settings_of_baseline,
    settings_of_benchmark,
    settings_of_bundle,
    settings_of_data,
    settings_of_engine,
    settings_of_evaluate,
    settings_of_evidence,
    settings_of_export,
    settings_of_finetune,
    settings_of_mlperf,
    settings_of_qat,
    settings_of_variant,
    tools_of_benchmark,
    tools_of_evaluate,
    tools_of_evidence,
    tools_of_variant,
)
from edgekiln.pipeline.stages.stage import EVERYTHING, StageKind, Subject
from edgekiln.pipeline.workspace.stage_files import BASELINE, EVIDENCE

__all__ = ["KINDS", "TRAINING"]

SOURCE_STAGE = "data.source"
TRAINING = frozenset({"data", SOURCE_STAGE, "finetune", f"evaluate.{BASELINE}"})
"""Kinds that train and judge the PyTorch model."""


def _once(_: Recipe) -> Sequence[Subject]:
    return [None]


def _target_data(recipe: Recipe) -> Sequence[Subject]:
    return [recipe.data]


def _source_data(recipe: Recipe) -> Sequence[Subject]:
    """The source task's data, prepared as the target's; nothing where its loss has no weight."""
    task = recipe.source_task
    if task is None or task.alpha == 0:
        return []
    shaping = {"size", "resize", "shorter_side", "interpolation"}
    return [task.data.model_copy(update={key: getattr(recipe.data, key) for key in shaping})]


def _variants(recipe: Recipe) -> Sequence[Subject]:
    return recipe.variants


def _trained_variants(recipe: Recipe) -> Sequence[Subject]:
    return [variant for variant in recipe.variants if variant.qat]


def _built_variants(recipe: Recipe) -> Sequence[Subject]:
    return [variant for variant in recipe.variants if variant.builds_engine]


def _use(*tools: str) -> Callable[[Recipe, Any], tuple[str, ...]]:
    return lambda _recipe, _subject: tools


def _always(_: Any) -> bool:
    return True


_DATA = StageKind(
    "data",
    purpose="lists the pictures, cuts splits; keeps arrays of them, or where their files lie",
    reads=(),
    makes=("index.json",),
    calls="edgekiln.pipeline.data.preparing:prepare_data",
    subjects=_target_data,
    settings=settings_of_data,
    tools=_use("numpy", "Pillow"),
    revision=3,
    listed=listed_of_data,
)

KINDS: tuple[StageKind, ...] = (
    _DATA,
    replace(
        _DATA,
        name=SOURCE_STAGE,
        purpose="the same for the pictures of the source task",
        subjects=_source_data,
    ),
    StageKind(
        "finetune",
        purpose="trains the pretrained network, best epoch on val",
        reads=("data", SOURCE_STAGE),
        makes=("checkpoint.safetensors", "log.jsonl"),
        calls="edgekiln.pipeline.training.stages:train_network",
        subjects=_once,
        settings=settings_of_finetune,
        tools=lambda recipe, _: (
            "torch",
            "torchvision",
            "timm",
            recipe.backbone.weights.removeprefix("package:"),
        ),
        resumable=_always,
        revision=3,
    ),
    StageKind(
        "export",
        purpose="writes one ONNX file that computes what PyTorch does on real pictures",
        reads=("data", "finetune"),
        makes=("model.onnx", "parity.json", "canary_logits.npz"),
        calls="edgekiln.pipeline.variants.exporting:export_network",
        subjects=_once,
        settings=settings_of_export,
        tools=_use("torch", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
        revision=4,
    ),
    StageKind(
        "qat",
        purpose="trains the network on with quantization in it",
        reads=("data", "finetune"),
        makes=("about.json", "trained.safetensors", "log.jsonl"),
        calls="edgekiln.pipeline.variants.qat:train_variant",
        subjects=_trained_variants,
        settings=settings_of_qat,
        tools=_use("torch", "torchvision", "timm", "nvidia-modelopt"),
        resumable=_always,
    ),
    StageKind(
        "variant",
        purpose="makes the graph of the variant's precision, and checks it",
        reads=("data", "export", "qat"),
        makes=("about.json", "model.onnx"),
        calls="edgekiln.pipeline.variants.variants:make_variant",
        subjects=_variants,
        settings=settings_of_variant,
        tools=tools_of_variant,
        # Judged candidates are kept, also for a stage of other search settings.
        resumable=lambda variant: bool(variant.searches),
        revision=7,
    ),
    StageKind(
        "engine",
        purpose="builds the engine in a child process, and audits what it computes in",
        reads=("variant",),
        makes=("build.json", "*.engine"),
        calls="edgekiln.pipeline.variants.engines:build_variant",
        subjects=_built_variants,
        settings=settings_of_engine,
        tools=_use(*ENGINE_LIBRARIES),
        revision=2,
    ),
    StageKind(
        f"evaluate.{BASELINE}",
        purpose="keeps PyTorch's answers to the test split",
        reads=("data", "finetune"),
        makes=("logits.npz",),
        calls="edgekiln.pipeline.training.stages:evaluate_baseline",
        subjects=_once,
        settings=settings_of_baseline,
        tools=_use("torch"),
    ),
    StageKind(
        "evaluate",
        purpose="keeps the engine's answers to the test split, or why it did not run here",
        reads=("data", "export", "variant", "engine"),
        makes=("logits.npz", "canaries.json"),
        calls="edgekiln.pipeline.variants.engines:evaluate_variant",
        subjects=_variants,
        settings=settings_of_evaluate,
        tools=tools_of_evaluate,
        revision=4,
    ),
    StageKind(
        EVIDENCE,
        purpose="keeps PyTorch's and each engine's answers to val, where the gate judges on val too",
        reads=("data", "finetune", "variant", "engine", "evaluate"),
        makes=("logits.npz",),
        calls="edgekiln.pipeline.variants.evidence:answer_val",
        subjects=lambda recipe: [None, *recipe.variants] if recipe.gate.judges_val else [],
        settings=settings_of_evidence,
        tools=tools_of_evidence,
    ),
    StageKind(
        "benchmark",
        purpose="times every engine next to PyTorch, in fresh processes, in turns",
        reads=EVERYTHING,
        ignores=(EVIDENCE,),  # so that another gate times nothing anew
        makes=("benchmark.json",),
        calls="edgekiln.pipeline.proof.benchmark:benchmark_engines",
        subjects=lambda recipe: [None] if recipe.benchmark.enabled else [],
        settings=settings_of_benchmark,
        tools=tools_of_benchmark,
        resumable=_always,
        revision=10,
    ),
    StageKind(
        "mlperf",
        purpose="lets MLPerf's load generator drive each engine that passed",
        reads=EVERYTHING,
        makes=("mlperf.json",),
        calls="edgekiln.pipeline.proof.mlperf:drive_engines",
        subjects=lambda recipe: [None] if recipe.benchmark.mlperf else [],
        settings=settings_of_mlperf,
        tools=_use("mlcommons-loadgen", "onnxruntime", "onnxruntime-gpu"),
        resumable=_always,  # finished results lie beside mlperf.json until it is written
        revision=2,
    ),
    StageKind(
        "bundle",
        purpose="judges every engine by the gate, and packs what ships with its report",
        reads=EVERYTHING,
        makes=("manifest.json", "report.json", "report.html", "MODEL_CARD.md"),
        calls="edgekiln.pipeline.proof.packing:pack_bundle",
        subjects=_once,
        settings=settings_of_bundle,
        tools=_use("jinja2"),
        revision=7,
    ),
)
"""All kinds of stages, in the order in which they run."""
