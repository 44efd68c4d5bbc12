"""Packs what ships of a run: engines, logits, report, model card, manifest. What the report says is not known here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.report import render_card, render_page
from edgekiln.pipeline.data import PreparedSplit, load_split
from edgekiln.pipeline.proof.packed_files import packed_files, packed_graphs
from edgekiln.pipeline.proof.report_document import build_report
from edgekiln.pipeline.shipping.privacy import machine_folders, strip_folders
from edgekiln.pipeline.shipping.sbom import write_sbom
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME
from edgekiln.pipeline.variants.engines import is_judged
from edgekiln.pipeline.variants.evidence import read_val_answers
from edgekiln.pipeline.workspace.stage_files import (
    BASELINE,
    CANARIES_NAME,
    CANARY_LOGITS_NAME,
    EVIDENCE,
    StageContext,
    read_json,
    read_logits,
)
from edgekiln.runtime.bundles.canaries import encode_logits
from edgekiln.runtime.bundles.canary_inputs import CANARY_RECIPE
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.spec import Logits

__all__ = ["LOGITS_FILE", "REPORT_NAME", "VAL_LOGITS_FILE", "pack_bundle"]

REPORT_NAME = "report.json"
LOGITS_FILE = "test_logits.npz"
VAL_LOGITS_FILE = "val_logits.npz"


def pack_bundle(context: StageContext) -> None:
    """Write the bundle's files into the stage's folder; see the module."""
    folder = context.folder
    recipe = context.recipe
    # Reasons quote what libraries said, and these name files of the machine that they ran on.
    folders = machine_folders(folder, recipe.folder, recipe.data.path, *context.inputs.values())
    report = strip_folders(build_report(context), folders)
    for variant in context.recipe.variants:
        for name, source in packed_files(context, variant).items():
            shutil.copyfile(source, folder / name)
        for name, source in packed_graphs(context, variant).items():
            shutil.copyfile(source, folder / name)
    if recipe.ship.baseline:
        checkpoint = context.inputs["finetune"] / CHECKPOINT_NAME
        shutil.copyfile(checkpoint, folder / CHECKPOINT_NAME)
        size = checkpoint.stat().st_size
        context.progress.message(f"  the bundle holds the PyTorch checkpoint: {size / 1e6:.1f} MB")
    _save_test_logits(context, folder / LOGITS_FILE)
    if recipe.gate.judges_val:
        _save_val_logits(context, folder / VAL_LOGITS_FILE)
    text = json.dumps(report, sort_keys=True, ensure_ascii=False)
    (folder / REPORT_NAME).write_text(text, "utf-8")
    stored = json.loads(
        text
    )  # as `edgekiln report` will read it, keys in order, so that both render the same
    (folder / "report.html").write_text(render_page(stored), "utf-8")
    (folder / "MODEL_CARD.md").write_text(render_card(stored), "utf-8")
    write_sbom(folder, report)
    write_manifest(folder, _manifest(report, context))


_TOP_LEVEL = (
    "name",
    "backend",
    "precision",
    "verdict",
    "reason",
    "required",
    "files",
    "source",
    "fallback_source",
)


def _manifest(report: Mapping[str, Any], context: StageContext) -> dict[str, Any]:
    left_out = {*_TOP_LEVEL, "flips"}
    return {
        "name": report["name"],
        "contract": report["contract"],
        "contract_digest": report["contract_digest"],
        "baseline": report["baseline"],
        "variants": [
            {
                **{key: v[key] for key in _TOP_LEVEL},
                "file": v["files"][0] if v["files"] else None,
                "canaries": _read_canaries(context, v["name"]),
                "figures": {key: value for key, value in v.items() if key not in left_out},
            }
            for v in report["variants"]
        ],
        "canary_reference": {
            "recipe": CANARY_RECIPE,
            "logits": encode_logits(read_logits(context.inputs["export"], CANARY_LOGITS_NAME)),
        },
        "gate": report["recipe"]["gate"],
        "logits": LOGITS_FILE,
        **({"val_logits": VAL_LOGITS_FILE} if context.recipe.gate.judges_val else {}),
        "provenance": {
            "parents": report["parents"],
            "tools": report["machine"]["versions"],
            "recipe": report["recipe"],
        },
        "machine": report["machine"],
    }


def _read_canaries(context: StageContext, name: str) -> dict[str, Any] | None:
    """What a variant answered to the made pictures; ``None`` for one that did not run here, or failed."""
    path = context.inputs[f"evaluate.{name}"] / CANARIES_NAME
    return read_json(path) if path.exists() else None


def _save_test_logits(context: StageContext, path: Path) -> None:
    """All test logits by image hash, so that an engine built elsewhere can be judged against the same images."""
    judged = [v.name for v in context.recipe.variants if is_judged(context, v)]
    logits = {name: read_logits(context.inputs[f"evaluate.{name}"]) for name in (BASELINE, *judged)}
    _save_logits(path, load_split(context.inputs["data"], "test"), logits)


def _save_val_logits(context: StageContext, path: Path) -> None:
    """The same of val, where the verdicts rest on it too."""
    answers = {v.name: read_val_answers(context, v).pairs for v in context.recipe.variants}
    logits = {name: pairs.engine for name, pairs in answers.items() if pairs is not None}
    logits[BASELINE] = read_logits(context.inputs[EVIDENCE])
    _save_logits(path, load_split(context.inputs["data"], "val"), logits)


def _save_logits(path: Path, split: PreparedSplit, logits: Mapping[str, Logits]) -> None:
    arrays: dict[str, Any] = {f"logits.{name}": values for name, values in logits.items()}
    np.savez(path, image_sha256=np.array(split.sha256, dtype="U64"), labels=split.labels, **arrays)
