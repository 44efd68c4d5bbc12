"""PyTorch as a contender on the machine that will run an engine, where torch and the checkpoint are at hand there.

Imports nothing that a machine with the runtime alone lacks, unless it is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import BundleError, MissingExtraError, UsageError
from edgekiln.runtime.spec import Logits

if TYPE_CHECKING:
    from edgekiln.benchmarks.timing.contender import Contender

__all__ = ["find_baseline"]

_NEEDED = ("torch", "pydantic", "safetensors", "onnx")
_LOCAL_NAME = "checkpoint.safetensors"


def find_baseline(
    parent: Bundle, checkpoint: Path | None = None
) -> Callable[[Path, Logits, bool], Contender] | str:
    """What makes PyTorch's contender: from a folder for a file, its logits, and whether an engine runs on a GPU.

    Args:
        parent: the bundle, which may hold its checkpoint (``ship.baseline``).
        checkpoint: the file that the run left in its stage ``finetune``.

    Returns:
        That, or why PyTorch cannot be timed here.

    Raises:
        MissingExtraError: a checkpoint was given, and torch or what it needs is not installed.
        UsageError: it is not the one that the bundle was made from.
        BundleError: the manifest does not say which network it is of.
    """
    packed = (parent.manifest.get("baseline") or {}).get("file")
    if checkpoint is None and packed is None:
        return "no checkpoint was given, and the bundle holds none"
    backbone = _read_backbone(parent)
    missing = [name for name in _needed_for(backbone) if importlib.util.find_spec(name) is None]
    if missing and checkpoint is None:
        return f"{', '.join(missing)} is not installed"
    if missing:
        raise MissingExtraError(
            f"PyTorch cannot be timed here: {', '.join(missing)} is not installed.",
            hint="Run: pip install 'edgekiln[build]'. Without --checkpoint, speed-ups are over the FP32 engine.",
        )
    if checkpoint is not None:
        _check_same(parent, checkpoint)

    def make(folder: Path, logits: Logits, on_gpu: bool) -> Contender:
        from edgekiln.pipeline.proof.contenders import torch_contender

        file = folder / _LOCAL_NAME
        file.write_bytes(parent.read(str(packed)) if checkpoint is None else checkpoint.read_bytes())
        return torch_contender({"checkpoint": str(file), "backbone": backbone}, logits, on_gpu=on_gpu)

    return make


def _read_backbone(parent: Bundle) -> Mapping[str, Any]:
    """The section of the recipe that says which network a checkpoint is of."""
    backbone = ((parent.manifest.get("provenance") or {}).get("recipe") or {}).get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("model"), str):
        raise BundleError(f"{parent.path} does not say which network its checkpoint is of.", path=parent.path)
    return backbone


def _needed_for(backbone: Mapping[str, Any]) -> tuple[str, ...]:
    library = backbone["model"].partition("/")[0]
    return (*_NEEDED, library) if library in {"timm", "torchvision"} else _NEEDED


def _check_same(parent: Bundle, checkpoint: Path) -> None:
    if hash_file(checkpoint)[0] != (parent.manifest.get("baseline") or {}).get("sha256"):
        raise UsageError(
            f"{checkpoint} is not the checkpoint that {parent.path} was made from: its sha256 is another.",
            hint="It lies in the run's folder: RUNS/NAME/finetune/KEY/out/checkpoint.safetensors.",
            path=checkpoint,
        )
