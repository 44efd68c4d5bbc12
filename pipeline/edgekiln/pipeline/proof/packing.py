"""Judges the engines of a run and packs what ships: engines, logits, report, model card, manifest."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, read_work_commit
from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.stored_answers import digest_split
from edgekiln.benchmarks.judging.verdict import Reference, judge_answers, summarize_simulation
from edgekiln.benchmarks.report import render_card, render_page
from edgekiln.pipeline.data import INDEX_NAME, PreparedSplit, describe_unjudged, load_split, read_classes
from edgekiln.pipeline.recipe import Recipe, VariantSettings
from edgekiln.pipeline.recipe.toml import write_toml
from edgekiln.pipeline.shipping.privacy import (
    machine_folders,
    name_picture,
    name_places,
    strip_folders,
    withhold_names,
)
from edgekiln.pipeline.shipping.sbom import write_sbom
from edgekiln.pipeline.training.log import summarize_training
from edgekiln.pipeline.variants.engines import built_files
from edgekiln.pipeline.variants.fast_frames import FAST_RECORD_NAME
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    BASELINE,
    BUILD_NAME,
    FAILURE_NAME,
    FALLBACK_NAME,
    LOGITS_NAME,
    MODEL_NAME,
    NOT_RUN_NAME,
    SIMULATED_NAME,
    StageContext,
    read_json,
    read_logits,
)
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.bundles.source import hash_file

__all__ = ["LOGITS_FILE", "REPORT_NAME", "judge_evaluated", "judge_variant", "pack_bundle", "public_recipe"]

REPORT_NAME = "report.json"
LOGITS_FILE = "test_logits.npz"
REPORT_SCHEMA = "1.0"
_THUMBNAIL_PIXELS = 80
_ENOUGH_ROTATING = 64
_MAX_THUMBNAILS = 24  # of one engine
_THUMBNAIL_BYTES = 1_000_000  # of all engines together, as they stand in the report


def public_recipe(recipe: Recipe, *, as_given: bool = False) -> dict[str, Any]:
    """The recipe as JSON values, without the folders of this machine; ``as_given`` leaves out all defaults."""
    values = recipe.model_dump(mode="json", exclude_unset=as_given)
    for section in (values["data"], (values.get("source_task") or {}).get("data") or {}):
        if section.get("path"):
            section["path"] = Path(section["path"]).name
    if recipe.teacher is not None:
        values["teacher"]["checkpoint"] = recipe.teacher.checkpoint.name
    if recipe.backbone.weights.endswith((".pth", ".safetensors")):
        values["backbone"]["weights"] = Path(recipe.backbone.weights).name
    return values


def pack_bundle(context: StageContext) -> None:
    """Write the bundle's files into the stage's folder; see the module."""
    folder = context.folder
    recipe = context.recipe
    # Reasons quote what libraries said, and these name files of the machine that they ran on.
    folders = machine_folders(folder, recipe.folder, recipe.data.path, *context.inputs.values())
    report = strip_folders(_build_report(context), folders)
    for variant in context.recipe.variants:
        for name, source in _packed_files(context, variant).items():
            shutil.copyfile(source, folder / name)
        for name, source in _packed_graphs(context, variant).items():
            shutil.copyfile(source, folder / name)
    _save_logits(context, folder / LOGITS_FILE)
    text = json.dumps(report, sort_keys=True, ensure_ascii=False)
    (folder / REPORT_NAME).write_text(text, "utf-8")
    stored = json.loads(
        text
    )  # as `edgekiln report` will read it, keys in order, so that both render the same
    (folder / "report.html").write_text(render_page(stored), "utf-8")
    (folder / "MODEL_CARD.md").write_text(render_card(stored), "utf-8")
    write_sbom(folder, report)
    write_manifest(folder, _manifest(report))


def _packed_files(context: StageContext, variant: VariantSettings) -> dict[str, Path]:
    """The files that run, by their names in the bundle: NAME.onnx, NAME.engine, NAME.b8.engine."""
    files = built_files(context, variant)
    return {f"{variant.name}.onnx" if path.name == MODEL_NAME else path.name: path for path in files}


def _packed_graphs(context: StageContext, variant: VariantSettings) -> dict[str, Path]:
    """The graphs that engines are built from elsewhere, by their names in the bundle."""
    if not variant.builds_engine:
        return {}
    graph = _graph(context, variant)
    graphs = {f"{variant.name}.onnx": graph, f"{variant.name}.fallback.onnx": graph.with_name(FALLBACK_NAME)}
    return {name: path for name, path in graphs.items() if path.exists()}


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


def _manifest(report: Mapping[str, Any]) -> dict[str, Any]:
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
                "figures": {key: value for key, value in v.items() if key not in left_out},
            }
            for v in report["variants"]
        ],
        "gate": report["recipe"]["gate"],
        "logits": LOGITS_FILE,
        "provenance": {
            "parents": report["parents"],
            "tools": report["machine"]["versions"],
            "recipe": report["recipe"],
        },
        "machine": report["machine"],
    }


def _build_report(context: StageContext) -> dict[str, Any]:
    from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, read_contract
    from edgekiln.pipeline.training.log import LOG_NAME

    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    checkpoint = context.inputs["finetune"] / CHECKPOINT_NAME
    contract = read_contract(context.inputs["finetune"])
    benchmark = _read_stage(context, "benchmark")
    data = json.loads((context.inputs["data"] / INDEX_NAME).read_text("utf-8"))
    # Flips are told by position first: keys need not differ, and the recipe may withhold them.
    reference = Reference(baseline, test.labels, [str(i) for i in range(len(test))], contract.classes)
    variants = [judge_variant(context, variant, reference, benchmark) for variant in context.recipe.variants]
    images = context.recipe.report.images
    if images:
        _add_thumbnails(variants, test)
    _name_flips(variants, test, images)
    about_data = {key: data[key] for key in ("unreadable", "duplicates", "conflicts", "ignored")}
    parity = json.loads((context.inputs["export"] / "parity.json").read_text("utf-8"))
    if not images:
        places = name_places(data["splits"])
        about_data = withhold_names(about_data, places)
        parity["worst_image"] = places[parity["worst_image"]]
    return {
        "schema_version": REPORT_SCHEMA,
        "name": context.recipe.name,
        "contract": contract.to_dict(),
        "contract_digest": contract.digest,
        "recipe": public_recipe(context.recipe),
        "recipe_toml": write_toml(public_recipe(context.recipe, as_given=True)),
        "data": {
            "classes": data["classes"],
            "counts": {name: len(part["keys"]) for name, part in data["splits"].items()},
            "test_digest": digest_split(test.sha256, test.labels),
            **about_data,
        },
        "parity": parity,
        "baseline": {
            "name": BASELINE,
            "precision": "fp32",
            "size": checkpoint.stat().st_size,
            "sha256": hash_file(checkpoint)[0],
            "onnx_sha256": hash_file(context.inputs["export"] / MODEL_NAME)[0],
            "accuracy": measure_accuracy(baseline, test.labels).to_dict(),
            "latency": _latency(benchmark, BASELINE),
        },
        "training": summarize_training(context.inputs["finetune"] / LOG_NAME),
        "peers": _peer_rows(benchmark),
        "variants": variants,
        "notices": [
            *describe_unjudged(data["unjudged"]),
            *(notice for variant in variants for notice in variant["notices"]),
            *_absence_notices(benchmark),
            *_rotation_notices(benchmark),
            *_device_notices(benchmark),
        ],
        "benchmark": benchmark,
        "mlperf": _read_stage(context, "mlperf"),
        "machine": benchmark["machine"] if benchmark else describe_machine(),
        "recipe_commit": read_work_commit(context.recipe.folder),
        "parents": {name: folder.parent.name for name, folder in sorted(context.inputs.items())},
    }


def judge_evaluated(context: StageContext, variants: Sequence[VariantSettings]) -> dict[str, Any]:
    """The rows of the report that evaluate stages alone can fill: of the baseline and of ``variants``, no latency."""
    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    reference = Reference(baseline, test.labels, test.keys, read_classes(context.inputs["data"]))
    return {
        "baseline": {
            "name": BASELINE,
            "precision": "fp32",
            "accuracy": measure_accuracy(baseline, test.labels).to_dict(),
        },
        "variants": [judge_variant(context, variant, reference, None) for variant in variants],
    }


def _add_thumbnails(variants: Sequence[dict[str, Any]], test: PreparedSplit) -> None:
    """Put small JPEGs, base64, at the worst flips of each engine, within one budget for the whole report.

    They are made of the prepared pixels, so nothing that a picture's file says beside them comes along.
    """
    budget = _THUMBNAIL_BYTES // max(1, sum(bool(variant["flips"]) for variant in variants))
    for variant in variants:
        left = budget
        for flip in variant["flips"][:_MAX_THUMBNAILS]:
            thumbnail = _draw_thumbnail(test.frames[int(flip["key"])])
            left -= len(thumbnail)
            if left < 0:
                break
            flip["thumbnail"] = thumbnail


def _name_flips(variants: Sequence[dict[str, Any]], test: PreparedSplit, images: bool) -> None:
    """Put the pictures' names, or what stands for them, in the place of their positions."""
    for flip in (flip for variant in variants for flip in variant["flips"]):
        position = int(flip["key"])
        flip["key"] = test.keys[position] if images else name_picture("test", position)


def _draw_thumbnail(frame: Any) -> str:
    from PIL import Image

    picture = Image.fromarray(np.asarray(frame))
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def judge_variant(
    context: StageContext,
    variant: VariantSettings,
    reference: Reference,
    benchmark: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One row of the report: accuracy, paired difference, latency, audit and verdict."""
    evaluated = context.inputs[f"evaluate.{variant.name}"]
    files, graphs = _packed_files(context, variant), _packed_graphs(context, variant)
    row: dict[str, Any] = {
        "name": variant.name,
        "backend": variant.backend,
        "precision": variant.precision.value,
        "required": variant.required,
        "files": list(files),
        "source": name if (name := f"{variant.name}.onnx") in graphs else None,
        "fallback_source": name if (name := f"{variant.name}.fallback.onnx") in graphs else None,
        "size": max((path.stat().st_size for path in files.values()), default=None),
        "sha256": {name: hash_file(path)[0] for name, path in (files | graphs).items()},
        "flips": [],
        "notices": [],
        **_read_making(context, variant),
    }
    if not _is_judged(context, variant):
        failure = row["failure"] if files else None
        if (evaluated / FAILURE_NAME).exists():
            failure = row["failure"] = read_json(evaluated / FAILURE_NAME)["failure"]
        reason = failure or read_json(evaluated / NOT_RUN_NAME)["reason"]
        verdict = {"verdict": "fail" if failure else "not-run", "reason": reason}
        simulated = None
        if (evaluated / SIMULATED_NAME).exists():
            simulated = summarize_simulation(reference, read_logits(evaluated, SIMULATED_NAME))
        return {**row, **verdict, "simulated": simulated}
    gate = context.recipe.gate
    judged = judge_answers(
        reference,
        read_logits(evaluated),
        max_drop=gate.max_drop if variant.max_drop is None else variant.max_drop,
        confidence=gate.confidence,
        metric=gate.metric,
        failure=row["failure"],
    )
    return {
        **row,
        **judged,
        "notices": [*row["notices"], *(f"{variant.name}: {warning}." for warning in judged["warnings"])],
        "fast_decode": read_json(evaluated / FAST_RECORD_NAME),
        "latency": _latency(benchmark, variant.name),
        "speedup": None if benchmark is None else benchmark["ratios"].get(variant.name),
    }


def _read_making(context: StageContext, variant: VariantSettings) -> dict[str, Any]:
    """How the graph and, for TensorRT, the engine came to be. What was built may differ from what was asked."""
    about: dict[str, Any] = read_json(_graph(context, variant).parent / ABOUT_NAME)
    if not variant.builds_engine:
        return about
    built = read_json(context.inputs[f"engine.{variant.name}"] / BUILD_NAME)
    values = {**about, "build": {key: built[key] for key in ("builds", "graph") if key in built}}
    values |= {key: built[key] for key in ("audit", "precision") if key in built}
    if built.get("precision", variant.precision.value) != variant.precision.value:
        values["asked_precision"] = variant.precision.value
    values["notices"] = [*about.get("notices", ()), *built.get("notices", ())]
    return {**values, "failure": about["failure"] or built["failure"]}


def _is_judged(context: StageContext, variant: VariantSettings) -> bool:
    """Whether the engine was made and could run here."""
    return (context.inputs[f"evaluate.{variant.name}"] / LOGITS_NAME).exists()


def _graph(context: StageContext, variant: VariantSettings) -> Path:
    return context.inputs[f"variant.{variant.name}"] / MODEL_NAME


def _read_stage(context: StageContext, name: str) -> dict[str, Any] | None:
    """What the optional stage ``benchmark`` or ``mlperf`` found; ``None`` where the recipe has none."""
    if name not in context.inputs:
        return None
    values: dict[str, Any] = read_json(context.inputs[name] / f"{name}.json")
    return values


def _peer_rows(benchmark: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What was timed and is not ours."""
    if benchmark is None:
        return []
    return [
        {
            **peer,
            "latency": _latency(benchmark, peer["name"]),
            "speedup": benchmark["ratios"].get(peer["name"]),
        }
        for peer in benchmark["peers"]
    ]


def _absence_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each peer that was asked for and not timed."""
    absent = benchmark["absent_peers"] if benchmark else ()
    return [f"{a['name']} was asked for and not timed: {a['reason'].rstrip('.')}." for a in absent]


def _rotation_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence where caches may flatter because few images rotated."""
    if benchmark is None or benchmark["images"] >= _ENOUGH_ROTATING:
        return []
    return [
        f"Only {benchmark['images']} images rotated while timing, {_ENOUGH_ROTATING} are wanted: caches may flatter."
    ]


def _device_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence where speed-ups compare two devices."""
    first, *others = benchmark["measurements"] if benchmark else [{"device": None}]
    apart = [m for m in others if m["device"] != first["device"]]
    if not apart:
        return []
    names = ", ".join(f"{m['name']} ran on {m['device']}" for m in apart)
    return [f"Speed-ups are to PyTorch on {first['device']}; {names}."]


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
    test = load_split(context.inputs["data"], "test")
    judged = [v.name for v in context.recipe.variants if _is_judged(context, v)]
    arrays: dict[str, Any] = {
        f"logits.{name}": read_logits(context.inputs[f"evaluate.{name}"]) for name in (BASELINE, *judged)
    }
    np.savez(path, image_sha256=np.array(test.sha256, dtype="U64"), labels=test.labels, **arrays)
