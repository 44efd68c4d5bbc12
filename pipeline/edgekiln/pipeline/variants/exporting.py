"""The work of the stage ``export``: the trained network as one ONNX file, held against PyTorch on real pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.export.parity import check_parity
from edgekiln.export.to_onnx import export_onnx
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.device.canary_records import answer_canaries
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.reparameterization import fuse_branches
from edgekiln.pipeline.workspace.stage_files import (
    CANARY_LOGITS_NAME,
    MODEL_NAME,
    StageContext,
    save_logits,
    write_json,
)
from edgekiln.runtime.backends import open_session

__all__ = ["export_network"]


def export_network(context: StageContext) -> None:
    """Write ``model.onnx``, and ``parity.json`` once it computes what PyTorch does on real pictures.

    Branches that only training needs are fused before.
    Its answers to the made pictures are kept too: what engines of lower precision are held against wherever they run.

    Raises:
        ParityError: it computes something else.
    """
    recipe = context.recipe
    model, contract = load_checkpoint(context.inputs["finetune"] / CHECKPOINT_NAME, recipe.backbone)
    path = context.folder / MODEL_NAME
    frames, keys = _parity_images(context.inputs["data"], recipe.export.parity_images)
    expected = evaluate_model(model, frames).numpy()  # as it was trained
    fused = fuse_branches(model.network, recipe.backbone.model, recipe.data.size)
    if fused.sentence:
        context.progress.message(f"  {fused.sentence}")
    model.network = fused.network
    context.progress.advance(0, 2, "torch.onnx")
    export_onnx(model, contract, path, opset=recipe.export.opset)
    context.progress.advance(1, 2, "parity on real images")
    session = open_session("onnxruntime-cpu", path.read_bytes())
    parity = check_parity(expected, session.run(frames), keys, recipe.export.parity_tolerance)
    save_logits(context.folder, answer_canaries(session), CANARY_LOGITS_NAME)
    write_json(
        context.folder / "parity.json",
        {
            "images": parity.images,
            "max_difference": parity.max_difference,
            "logit_range": parity.logit_range,
            "worst_image": parity.worst_image,
        },
    )


def _parity_images(data: Path, wanted: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
    """Real val images; a small val split is filled up with training images."""
    val, train = load_split(data, "val"), load_split(data, "train")
    taken = min(wanted, len(val))
    rest = min(wanted - taken, len(train))
    frames = np.concatenate([val.frames[:taken], train.frames[:rest]])
    return frames, [*val.keys[:taken], *train.keys[:rest]]
