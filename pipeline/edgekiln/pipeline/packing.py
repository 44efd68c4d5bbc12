"""Judges the engines of a run and packs what ships: engines, logits, report, model card, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.benchmarks.accuracy import balanced_drop_interval, find_flips, measure_accuracy, pair_answers
from edgekiln.benchmarks.environment import describe_machine
from edgekiln.benchmarks.gate import judge
from edgekiln.benchmarks.report import render_card, render_page
from edgekiln.pipeline.data import INDEX_NAME, PreparedSplit, load_split
from edgekiln.pipeline.recipe import Recipe, VariantSettings
from edgekiln.runtime.bundle import write_manifest
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.spec import Logits

if TYPE_CHECKING:
    from edgekiln.pipeline.stages import StageContext

__all__ = ["LOGITS_FILE", "REPORT_NAME", "pack_bundle", "public_recipe"]

REPORT_NAME = "report.json"
LOGITS_FILE = "test_logits.npz"
REPORT_SCHEMA = "1.0"


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, without the folders of this machine."""
    values = recipe.model_dump(mode="json")
    if recipe.data.path is not None:
        values["data"]["path"] = recipe.data.path.name
    if recipe.backbone.weights.endswith((".pth", ".safetensors")):
        values["backbone"]["weights"] = Path(recipe.backbone.weights).name
    return values


def pack_bundle(context: StageContext) -> None:
    """Write the bundle's files into the stage's folder; see the module."""
    report = _build_report(context)
    folder = context.folder
    for variant in context.recipe.variants:
        if _is_judged(context, variant):
            shutil.copyfile(_variant_model(context, variant), folder / f"{variant.name}.onnx")
    _save_logits(context, folder / LOGITS_FILE)
    (folder / REPORT_NAME).write_text(json.dumps(report, sort_keys=True, ensure_ascii=False), "utf-8")
    (folder / "report.html").write_text(render_page(report), "utf-8")
    (folder / "MODEL_CARD.md").write_text(render_card(report), "utf-8")
    write_manifest(folder, _manifest(report))


def _manifest(report: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {"name", "backend", "precision", "verdict", "reason", "required", "flips"}
    return {
        "name": report["name"],
        "contract": report["contract"],
        "contract_digest": report["contract_digest"],
        "baseline": report["baseline"],
        "variants": [
            {
                **{key: v[key] for key in ("name", "backend", "precision", "verdict", "reason", "required")},
                "file": None if v["verdict"] == "not-run" else f"{v['name']}.onnx",
                "figures": {key: value for key, value in v.items() if key not in left_out},
            }
            for v in report["variants"]
        ],
        "logits": LOGITS_FILE,
        "provenance": {
            "parents": report["parents"],
            "tools": report["machine"]["versions"],
            "recipe": report["recipe"],
        },
        "machine": report["machine"],
    }


def _build_report(context: StageContext) -> dict[str, Any]:
    from edgekiln.pipeline.checkpoint import CHECKPOINT_NAME, load_tensors
    from edgekiln.pipeline.stages import BASELINE, read_logits

    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    checkpoint = context.inputs["finetune"] / CHECKPOINT_NAME
    contract = Contract.from_json(load_tensors(checkpoint)[1]["contract"])
    benchmark = _read_benchmark(context)
    data = json.loads((context.inputs["data"] / INDEX_NAME).read_text("utf-8"))
    return {
        "schema_version": REPORT_SCHEMA,
        "name": context.recipe.name,
        "contract": contract.to_dict(),
        "contract_digest": contract.digest,
        "recipe": public_recipe(context.recipe),
        "data": {
            "classes": data["classes"],
            "counts": {name: len(part["keys"]) for name, part in data["splits"].items()},
            **{key: data[key] for key in ("unreadable", "duplicates", "conflicts", "ignored")},
        },
        "parity": json.loads((context.inputs["export"] / "parity.json").read_text("utf-8")),
        "baseline": {
            "name": BASELINE,
            "precision": "fp32",
            "size": checkpoint.stat().st_size,
            "accuracy": measure_accuracy(baseline, test.labels).to_dict(),
            "latency": _latency(benchmark, BASELINE),
        },
        "variants": [
            _judge_variant(context, variant, (baseline, test, contract), benchmark)
            for variant in context.recipe.variants
        ],
        "benchmark": benchmark,
        "machine": benchmark["machine"] if benchmark else describe_machine(),
        "parents": {name: folder.parent.name for name, folder in sorted(context.inputs.items())},
    }


def _judge_variant(
    context: StageContext,
    variant: VariantSettings,
    truth: tuple[Logits, PreparedSplit, Contract],
    benchmark: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One row of the report: accuracy, paired difference, latency, audit and verdict."""
    from edgekiln.pipeline.stages import read_logits

    baseline, test, contract = truth
    evaluated = context.inputs[f"evaluate.{variant.name}"]
    model = _variant_model(context, variant)
    row: dict[str, Any] = {
        "name": variant.name,
        "backend": variant.backend,
        "precision": variant.precision.value,
        "required": variant.required,
        "size": model.stat().st_size if model.exists() else None,
        "flips": [],
        **json.loads((model.parent / "about.json").read_text("utf-8")),
    }
    if not _is_judged(context, variant):
        reason = json.loads((evaluated / "not-run.json").read_text("utf-8"))["reason"]
        return {**row, "verdict": "not-run", "reason": reason}
    logits = read_logits(evaluated)
    counts = pair_answers(baseline, logits, test.labels)
    gate = context.recipe.gate
    max_drop = gate.max_drop if variant.max_drop is None else variant.max_drop
    result = judge(counts, max_drop=max_drop, confidence=gate.confidence)
    low, high = balanced_drop_interval(baseline, logits, test.labels, gate.confidence)
    own, theirs = measure_accuracy(logits, test.labels), measure_accuracy(baseline, test.labels)
    flips = find_flips(baseline, logits, test.labels, keys=test.keys, classes=contract.classes)
    return {
        **row,
        "verdict": "fail" if row["failure"] else result.verdict,
        "reason": row["failure"] or result.reason,
        "accuracy": own.to_dict(),
        "drop": {"value": result.drop, "low": result.low, "high": result.high},
        "balanced_drop": {"value": theirs.balanced - own.balanced, "low": low, "high": high},
        "counts": asdict(counts),
        "max_drop": max_drop,
        "confidence": gate.confidence,
        "images_to_decide": result.images_to_decide,
        "max_logit_difference": float(np.abs(baseline - logits).max()),
        "flips": [asdict(flip) for flip in flips],
        "latency": _latency(benchmark, variant.name),
        "speedup": None if benchmark is None else benchmark["ratios"].get(variant.name),
    }


def _is_judged(context: StageContext, variant: VariantSettings) -> bool:
    """Whether the engine was made and could run here."""
    from edgekiln.pipeline.stages import LOGITS_NAME

    return (context.inputs[f"evaluate.{variant.name}"] / LOGITS_NAME).exists()


def _variant_model(context: StageContext, variant: VariantSettings) -> Path:
    from edgekiln.pipeline.stages import MODEL_NAME

    return context.inputs[f"variant.{variant.name}"] / MODEL_NAME


def _read_benchmark(context: StageContext) -> dict[str, Any] | None:
    if "benchmark" not in context.inputs:
        return None
    values: dict[str, Any] = json.loads((context.inputs["benchmark"] / "benchmark.json").read_text("utf-8"))
    return values


def _latency(benchmark: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The figures of one contender without its raw times, which stay in the report's benchmark part."""
    for measurement in benchmark["measurements"] if benchmark else ():
        if measurement["name"] == name:
            return {
                key: value for key, value in measurement.items() if key not in {"blocks", "search", "name"}
            }
    return None


def _save_logits(context: StageContext, path: Path) -> None:
    """All test logits by image hash, so that an engine built elsewhere can be judged against the same images."""
    from edgekiln.pipeline.stages import BASELINE, read_logits

    test = load_split(context.inputs["data"], "test")
    judged = [v.name for v in context.recipe.variants if _is_judged(context, v)]
    arrays: dict[str, Any] = {
        f"logits.{name}": read_logits(context.inputs[f"evaluate.{name}"]) for name in (BASELINE, *judged)
    }
    np.savez(path, image_sha256=np.array(test.sha256, dtype="U64"), labels=test.labels, **arrays)
