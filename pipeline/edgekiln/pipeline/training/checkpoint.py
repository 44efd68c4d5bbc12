"""Checkpoints: weights and their contract in one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.capacity import require_room
from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.weights import load_state
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import RecipeError, UntrustedError

__all__ = [
    "CHECKPOINT_NAME",
    "load_checkpoint",
    "load_tensors",
    "read_contract",
    "save_checkpoint",
    "save_tensors",
]

CHECKPOINT_NAME = "checkpoint.safetensors"
METADATA_KEY = "edgekiln"


def save_checkpoint(tensors: dict[str, Tensor], contract: Contract, backbone: str, path: Path) -> None:
    """Write a fine-tuned network's state dict with its contract and the name of its backbone."""
    save_tensors(tensors, path, {"contract": contract.to_json(), "backbone": backbone})


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place, flush it to disk, and move it there in one step."""
    beside = path.with_name(
        f"{path.name}.part"
    )  # one name: what a kill leaves is overwritten by the next attempt
    # One entry: the format keeps several in no fixed order, and the same weights must give the same bytes.
    header = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    # A tensor may be laid out channels-last; the format knows dense row-major only.
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    require_room(path.parent, size, f"The {len(tensors)} tensors of {path.name}")
    beside.unlink(missing_ok=True)
    beside.touch()  # as any file is made, which the umask decides; the library makes its own readable by one user alone
    mode = stat.S_IMODE(beside.stat().st_mode)
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, beside, header)
    except SafetensorError as error:
        raise _as_os_error(error, beside) from error
    with beside.open("rb") as file:
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    beside.replace(path)


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """The library tells of a full disk as text only: "... (os error 28)", or "Os { code: 28, ... }"."""
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UntrustedError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 -- not a mapping
    except Exception as error:  # safetensors has its own error type, OSError, and others
        raise UntrustedError(f"{path} is no intact safetensors file: {error}.", path=path) from error


def load_checkpoint(path: Path, settings: BackboneSettings) -> tuple[PixelModel, Contract]:
    """The fine-tuned model in evaluation mode on the CPU, and its contract.

    Raises:
        RecipeError: the checkpoint is of another backbone.
        UntrustedError: the file is damaged.
    """
    tensors, metadata = load_tensors(path)
    contract = Contract.from_json(metadata.get("contract", ""))
    stored = metadata.get("backbone")
    if stored != settings.model:
        raise RecipeError(f"{path} holds {stored}, the recipe names {settings.model}.", path=path)
    backbone = build_backbone(settings, len(contract.classes), contract.height, load_weights=False)
    load_state(backbone.network, tensors)
    model = PixelModel(backbone.network, backbone.normalization)
    return model.eval(), contract


def read_contract(folder: Path) -> Contract:
    """The contract in the checkpoint of a finished training's folder."""
    return Contract.from_json(load_tensors(folder / CHECKPOINT_NAME)[1]["contract"])
