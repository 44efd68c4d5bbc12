"""One row of the report for each variant: its making, its answers, its verdict. What ships is not known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import apply_floor
from edgekiln.benchmarks.judging.verdict import Reference, judge_answers, summarize_simulation
from edgekiln.benchmarks.report.table import describe_evidence, describe_static_batches
from edgekiln.benchmarks.report.timings import latency_of
from edgekiln.pipeline.data import load_split, read_classes
from edgekiln.pipeline.proof.packed_files import graph_file, packed_files, packed_graphs
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.engines import is_judged
from edgekiln.pipeline.variants.evidence import read_val_answers
from edgekiln.pipeline.variants.fast_frames import FAST_RECORD_NAME
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    BASELINE,
    BUILD_NAME,
    FAILURE_NAME,
    KIND_NAME,
    NOT_RUN_NAME,
    PROFILES_NAME,
    SIMULATED_NAME,
    STATIC_NAME,
    StageContext,
    read_json,
    read_logits,
)
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.bundles.times import TIMES

__all__ = ["judge_evaluated", "judge_variant"]


def judge_evaluated(context: StageContext, variants: Sequence[VariantSettings]) -> dict[str, Any]:
    """The parts of the report that evaluate stages alone can fill: baseline, ``variants``, notices; no latency."""
    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    reference = Reference(baseline, test.labels, test.keys, read_classes(context.inputs["data"]))
    rows = [judge_variant(context, variant, reference, None) for variant in variants]
    val = load_split(context.inputs["data"], "val")
    return {
        "data": {"counts": {"test": len(test), "val": len(val)}},
        "notices": [*describe_evidence(rows), *(notice for row in rows for notice in row["notices"])],
        "baseline": {
            "name": BASELINE,
            "precision": "fp32",
            "accuracy": measure_accuracy(baseline, test.labels).to_dict(),
        },
        "variants": rows,
    }


def judge_variant(
    context: StageContext,
    variant: VariantSettings,
    reference: Reference,
    benchmark: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One row of the report: accuracy, paired difference, latency, audit and verdict."""
    row = _describe_variant(context, variant)
    if not is_judged(context, variant):
        return {**row, **_tell_why_not_judged(context, variant, reference, row)}
    evaluated = context.inputs[f"evaluate.{variant.name}"]
    gate, val = context.recipe.gate, read_val_answers(context, variant)
    judged = judge_answers(
        reference,
        read_logits(evaluated),
        max_drop=gate.max_drop if variant.max_drop is None else variant.max_drop,
        confidence=gate.confidence,
        metric=gate.metric,
        failure=row["failure"] or val.failure,
        val=val.pairs,
    )
    baseline = measure_accuracy(reference.logits, reference.labels).to_dict()
    judged = apply_floor(judged, baseline, gate.min_top1)
    details = _tell_details(evaluated)
    static = describe_static_batches(variant.name, details.get("static_batches", ()))
    notices = [*row["notices"], *static, *(f"{variant.name}: {warning}." for warning in judged["warnings"])]
    return {
        **row,
        **judged,
        **_tell_kinds(evaluated, benchmark, variant.name),
        **details,
        "failure": row["failure"] or val.failure,
        "notices": notices if val.notice is None else [*notices, val.notice],
        "fast_decode": read_json(evaluated / FAST_RECORD_NAME),
        "latency": latency_of(benchmark, variant.name),
        "speedup": None if benchmark is None else benchmark["ratios"].get(variant.name),
    }


def _tell_kinds(evaluated: Path, benchmark: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The kind of machine that the verdict holds for, and what a call took on the one that was timed, if one was."""
    time = (benchmark or {}).get(TIMES, {}).get(name)
    return {VERDICT_KIND: read_json(evaluated / KIND_NAME), **({TIMES: [time]} if time else {})}


def _tell_details(evaluated: Path) -> dict[str, Any]:
    """An engine's optimization profiles, with the memory that each works in, and what its static models answered.

    Nothing where it has one profile and one model for all batch sizes.
    """
    files = (evaluated / PROFILES_NAME, evaluated / STATIC_NAME)
    return {key: value for file in files if file.exists() for key, value in read_json(file).items()}


def _describe_variant(context: StageContext, variant: VariantSettings) -> dict[str, Any]:
    """What is known of a variant before it is judged: what it is, its files, how it was made."""
    files, graphs = packed_files(context, variant), packed_graphs(context, variant)
    return {
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


def _tell_why_not_judged(
    context: StageContext, variant: VariantSettings, reference: Reference, row: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict on an engine without answers, why, and what a simulation of its graph answers, if there is one.

    A failure that the evaluation found is told in the row, in the place of one that the making of the engine found.
    """
    evaluated = context.inputs[f"evaluate.{variant.name}"]
    told: dict[str, Any] = {}
    failure = row["failure"] if row["files"] else None
    if (evaluated / FAILURE_NAME).exists():
        failure = told["failure"] = read_json(evaluated / FAILURE_NAME)["failure"]
    reason = failure or read_json(evaluated / NOT_RUN_NAME)["reason"]
    told |= {"verdict": "fail" if failure else "not-run", "reason": reason, "simulated": None}
    if (evaluated / SIMULATED_NAME).exists():
        told["simulated"] = summarize_simulation(reference, read_logits(evaluated, SIMULATED_NAME))
    return told


def _read_making(context: StageContext, variant: VariantSettings) -> dict[str, Any]:
    """How the graph and, for TensorRT, the engine came to be. What was built may differ from what was asked."""
    about: dict[str, Any] = read_json(graph_file(context, variant).parent / ABOUT_NAME)
    if not variant.builds_engine:
        return about
    built = read_json(context.inputs[f"engine.{variant.name}"] / BUILD_NAME)
    values = {**about, "build": {key: built[key] for key in ("builds", "graph") if key in built}}
    values |= {key: built[key] for key in ("audit", "precision") if key in built}
    if built.get("precision", variant.precision.value) != variant.precision.value:
        values["asked_precision"] = variant.precision.value
    values["notices"] = [*about.get("notices", ()), *built.get("notices", ())]
    return {**values, "failure": about["failure"] or built["failure"]}
