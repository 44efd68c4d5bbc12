"""The report of a run as one JSON document: data, baseline, rows of the variants, timings, machine. Packs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.environment import describe_machine, read_work_commit
from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import warn_of_guessing
from edgekiln.benchmarks.judging.stored_answers import digest_split
from edgekiln.benchmarks.judging.verdict import Reference
from edgekiln.benchmarks.report.peers import mark_cells, mark_peers, peer_notices
from edgekiln.benchmarks.report.reading import REPORT_SCHEMA
from edgekiln.benchmarks.report.table import describe_evidence
from edgekiln.benchmarks.report.timings import latency_of, peer_rows, timing_notices
from edgekiln.pipeline.data import INDEX_NAME, PreparedSplit, describe_unjudged, load_split, read_observed
from edgekiln.pipeline.proof.flips import add_thumbnails, name_flips, show_near_copies
from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.proof.variant_rows import judge_variant
from edgekiln.pipeline.recipe.toml import write_toml
from edgekiln.pipeline.shipping.privacy import name_places, withhold_names
from edgekiln.pipeline.training.checkpoint import read_contract
from edgekiln.pipeline.training.log import LOG_NAME, summarize_training
from edgekiln.pipeline.workspace.stage_files import (
    BASELINE,
    MODEL_NAME,
    StageContext,
    read_json,
    read_logits,
)
from edgekiln.runtime.bundles.source import hash_file

__all__ = ["build_report"]


def build_report(context: StageContext) -> dict[str, Any]:
    """``report.json`` of a run whose engines are evaluated; machine folders may still stand in what libraries said."""
    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    contract = read_contract(context.inputs["finetune"])
    benchmark = _read_stage(context, "benchmark")
    index = json.loads((context.inputs["data"] / INDEX_NAME).read_text("utf-8"))
    # Flips are told by position first: keys need not differ, and the recipe may withhold them.
    reference = Reference(baseline, test.labels, [str(i) for i in range(len(test))], contract.classes)
    variants = _judge_variants(context, reference, benchmark, test)
    about_data, parity = _describe_data(context, index)
    training = summarize_training(context.inputs["finetune"] / LOG_NAME)
    about_baseline = _describe_baseline(context, reference, benchmark)
    peers = mark_peers(peer_rows(benchmark), variants, benchmark)
    return {
        "schema_version": REPORT_SCHEMA,
        "name": context.recipe.name,
        "contract": contract.to_dict(),
        "contract_digest": contract.digest,
        "recipe": public_recipe(context.recipe),
        "recipe_toml": write_toml(public_recipe(context.recipe, as_given=True)),
        "data": {"test_digest": digest_split(test.sha256, test.labels), **about_data},
        "parity": parity,
        "baseline": about_baseline,
        "training": training,
        "peers": peers,
        "variants": variants,
        "notices": [
            *warn_of_guessing([about_baseline, *variants], contract.classes, context.recipe.gate.confidence),
            *describe_unjudged(index["unjudged"]),
            *training.get("weights", ()),
            *describe_evidence(variants),
            *(notice for variant in variants for notice in variant["notices"]),
            *timing_notices(benchmark),
            *peer_notices(peers),
        ],
        "benchmark": benchmark and {**benchmark, "cells": mark_cells(benchmark["cells"], variants)},
        "mlperf": _read_stage(context, "mlperf"),
        "machine": benchmark["machine"] if benchmark else describe_machine(),
        "recipe_commit": read_work_commit(context.recipe.folder),
        "parents": {name: folder.parent.name for name, folder in sorted(context.inputs.items())},
    }


def _judge_variants(
    context: StageContext,
    reference: Reference,
    benchmark: Mapping[str, Any] | None,
    test: PreparedSplit,
) -> list[dict[str, Any]]:
    """The rows of all variants, with names and pictures of their flips as far as the recipe shows them."""
    rows = [judge_variant(context, variant, reference, benchmark) for variant in context.recipe.variants]
    images = context.recipe.report.images
    if images:
        add_thumbnails(rows, test)
    name_flips(rows, test, images)
    return rows


def _describe_data(context: StageContext, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was left out of the data, and the export's parity; without names of pictures where these are withheld."""
    folder, images = context.inputs["data"], context.recipe.report.images
    observed = read_observed(folder)
    about_data = {key: index[key] for key in ("classes", "unreadable", "duplicates", "conflicts")}
    about_data["counts"] = {name: len(part["keys"]) for name, part in index["splits"].items()}
    about_data |= {key: observed[key] for key in ("allowed", "ignored")}
    about_data["near_copies"] = show_near_copies(observed["near_copies"], folder, images=images)
    parity = json.loads((context.inputs["export"] / "parity.json").read_text("utf-8"))
    if not images:
        places = name_places(index["splits"])
        about_data = withhold_names(about_data, places)
        parity["worst_image"] = places[parity["worst_image"]]
    return about_data, parity


def _describe_baseline(
    context: StageContext, reference: Reference, benchmark: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The row of PyTorch, which the others are judged against."""
    from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME

    checkpoint = context.inputs["finetune"] / CHECKPOINT_NAME
    return {
        "name": BASELINE,
        "precision": "fp32",
        **({"file": CHECKPOINT_NAME} if context.recipe.ship.baseline else {}),
        "size": checkpoint.stat().st_size,
        "sha256": hash_file(checkpoint)[0],
        "onnx_sha256": hash_file(context.inputs["export"] / MODEL_NAME)[0],
        "accuracy": measure_accuracy(reference.logits, reference.labels).to_dict(),
        "latency": latency_of(benchmark, BASELINE),
    }


def _read_stage(context: StageContext, name: str) -> dict[str, Any] | None:
    """What the optional stage ``benchmark`` or ``mlperf`` found; ``None`` where the recipe has none."""
    if name not in context.inputs:
        return None
    values: dict[str, Any] = read_json(context.inputs[name] / f"{name}.json")
    return values
