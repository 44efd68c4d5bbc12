"""What a stage works with, and what the stages leave for one another: names of files, and how each is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.spec import Logits

__all__ = [
    "ABOUT_NAME",
    "BASELINE",
    "BUILD_NAME",
    "CANARIES_NAME",
    "CANARY_LOGITS_NAME",
    "EVIDENCE",
    "FAILURE_NAME",
    "FALLBACK_NAME",
    "KIND_NAME",
    "LOGITS_NAME",
    "MODEL_NAME",
    "NOT_RUN_NAME",
    "PROFILES_NAME",
    "RETRY_NAME",
    "SIMULATED_NAME",
    "STATIC_NAME",
    "StageContext",
    "read_json",
    "read_logits",
    "save_logits",
    "write_json",
]

BASELINE = "baseline"
EVIDENCE = "evidence"  # kind of the stages that keep answers to val; the stage of that name has PyTorch's
MODEL_NAME = "model.onnx"
FALLBACK_NAME = "fallback.onnx"  # FP16, beside an INT8 graph whose recipe allows it to fall back
ABOUT_NAME = "about.json"  # of a variant stage: how its graph was made
BUILD_NAME = "build.json"  # of an engine stage: what was built, or why nothing was
LOGITS_NAME = "logits.npz"
CANARY_LOGITS_NAME = "canary_logits.npz"  # of the export: FP32's answers to the made pictures
CANARIES_NAME = "canaries.json"  # of an evaluate stage: the engine's answers to them, and what is allowed
SIMULATED_NAME = (
    "simulated.npz"  # what onnxruntime on the CPU answers for a graph whose engine cannot run here
)
NOT_RUN_NAME = "not-run.json"
FAILURE_NAME = "failure.json"  # of an evaluate stage: the engine ran, and failed
KIND_NAME = "kind.json"  # of an evaluate stage: the kind of machine that its answers hold for
PROFILES_NAME = (
    "profiles.json"  # of an evaluate stage: an engine's optimization profiles, where it has several
)
STATIC_NAME = "static_batches.json"  # of an evaluate stage: how models for single batch sizes answered
RETRY_NAME = "retry"  # this stage met trouble that may pass (memory, disk): the next run does it again


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage works with: the recipe, its own folder, and the folders of the stages that it reads."""

    recipe: Recipe
    folder: Path
    inputs: Mapping[str, Path]
    progress: Progress


def read_json(path: Path) -> Any:
    """The JSON document in a file that a stage wrote."""
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON document; the same values give the same bytes."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True), "utf-8")


def save_logits(folder: Path, logits: Logits, name: str = LOGITS_NAME) -> None:
    """Keep float32 (N, C) of a split."""
    np.savez(folder / name, logits=logits)


def read_logits(folder: Path, name: str = LOGITS_NAME) -> Logits:
    """float32 (N, C), as ``save_logits`` wrote them."""
    with np.load(folder / name, allow_pickle=False) as arrays:
        logits: Logits = arrays["logits"]
    return logits
