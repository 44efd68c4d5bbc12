"""The result of a transfer study as one JSON document, and the files it is told in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.judging.transfer import (
    CONFIDENCE,
    Metric,
    choose_method,
    compare_paired,
    estimate_mean,
)
from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.study.cells import CellResult, JudgedImages, StudyPlan
from edgekiln.pipeline.study.methods import METHODS, tell_departures
from edgekiln.runtime.errors import ResourceError

__all__ = ["SCHEMA", "describe_study", "write_study"]

SCHEMA = "1.0"
_PAIRS = (("full", "scratch"), ("full", "probe"), ("combined", "full"))
"""Differences that a reader asks for: is transfer worth it, is training all of it, is the source task."""

Answers = dict[int, NDArray[np.bool_]]
"""Right answers bool (images,) by seed."""


def describe_study(
    plan: StudyPlan, results: Sequence[CellResult], *, left_out: Sequence[str] = (), margin: float
) -> dict[str, Any]:
    """Everything that a study found, as JSON values; names no folder of this machine.

    Args:
        plan: what was compared.
        results: of its cells.
        left_out: sentences on methods that were not compared.
        margin: what may be given up for a cheaper method, as a share of the metric.
    """
    from edgekiln.benchmarks.environment import describe_machine, read_work_commit

    metric: Metric = plan.recipe.gate.metric
    test = next((result.test for result in results if result.test is not None), None)
    choices = [_choose(plan, results, test, share, margin) for share in plan.shares]
    return {
        "kind": "edgekiln-transfer",
        "schema_version": SCHEMA,
        "name": plan.recipe.name,
        "metric": metric,
        "margin": margin,
        "confidence": CONFIDENCE,
        "methods": [
            {"name": name, "title": METHODS[name].title, "about": METHODS[name].about}
            for name in plan.methods
        ],
        "shares": list(plan.shares),
        "seeds": list(plan.seeds),
        "test": None if test is None else {"images": len(test.labels), "sha256": test.digest},
        "notices": [*left_out, *tell_departures(plan.recipe), *_tell_limits(plan, results)],
        "cells": [_describe_cell(result) for result in results],
        "means": [
            _describe_mean(plan, results, name, share) for share in plan.shares for name in plan.methods
        ],
        "differences": [
            entry for share in plan.shares for entry in _describe_differences(plan, results, test, share)
        ],
        "choices": choices,
        "choice": choices[-1],
        "recipe": public_recipe(plan.recipe),
        "recipe_commit": read_work_commit(plan.recipe.folder),
        "machine": describe_machine(),
    }


def _describe_cell(result: CellResult) -> dict[str, Any]:
    cell = result.cell
    identity = {"method": cell.method, "share": cell.share, "seed": cell.seed}
    if result.error is not None or result.about is None:
        return {**identity, "state": "failed", "error": result.error}
    return {**identity, "state": "done", **result.about}


def _describe_mean(
    plan: StudyPlan, results: Sequence[CellResult], method: str, share: float
) -> dict[str, Any]:
    """Mean and interval over the seeds that finished; without any, the figures are ``None``."""
    done = [r.about for r in _of(results, method, share) if r.about is not None]
    figures: dict[str, Any] = {"mean": None, "low": None, "high": None, "seeds": 0, "freedom": None}
    if done:
        figures = estimate_mean([about[plan.recipe.gate.metric] for about in done]).to_dict()
    averages = {
        key: float(np.mean([about[key] for about in done])) if done else None
        for key in ("train_images", "steps", "images_seen", "seconds")
    }
    return {
        "method": method,
        "share": share,
        **figures,
        **averages,
        "failed": len(plan.seeds) - len(done),
        "median": float(np.median([about[plan.recipe.gate.metric] for about in done])) if done else None,
        "values": [about[plan.recipe.gate.metric] for about in done],
    }


def _describe_differences(
    plan: StudyPlan, results: Sequence[CellResult], test: JudgedImages | None, share: float
) -> list[dict[str, Any]]:
    """Paired differences of one size, over the seeds that both methods finished."""
    entries = []
    for first, second in _PAIRS:
        ours, theirs = _answers(results, first, share), _answers(results, second, share)
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds or test is None:
            continue
        difference = compare_paired(
            _stack(ours, seeds), _stack(theirs, seeds), test.labels, plan.recipe.gate.metric
        )
        entries.append({"share": share, "first": first, "second": second, **difference.to_dict()})
    return entries


def _choose(
    plan: StudyPlan, results: Sequence[CellResult], test: JudgedImages | None, share: float, margin: float
) -> dict[str, Any]:
    """Which method to take at one size, among those that finished every seed."""
    answers = {name: _answers(results, name, share) for name in plan.methods}
    complete = {
        name: _stack(found, plan.seeds) for name, found in answers.items() if set(found) == set(plan.seeds)
    }
    labels = np.zeros(0, np.int64) if test is None else test.labels
    choice = choose_method(complete, labels, plan.recipe.gate.metric, margin)
    return {"share": share, **choice.to_dict(), "not_compared": sorted(set(answers) - set(complete))}


def _tell_limits(plan: StudyPlan, results: Sequence[CellResult]) -> list[str]:
    failed = [result for result in results if result.error is not None]
    told = [f"{result.cell.label} failed: {result.error}" for result in failed[:5]]
    if len(failed) > 5:
        told.append(f"{len(failed) - 5} more cells failed.")
    if len(plan.seeds) == 1:
        told.append("One seed gives no interval: nothing here tells methods apart. Take --seeds 3 or more.")
    return told


def _of(results: Iterable[CellResult], method: str, share: float) -> list[CellResult]:
    return [r for r in results if r.cell.method == method and r.cell.share == share]


def _answers(results: Iterable[CellResult], method: str, share: float) -> Answers:
    return {r.cell.seed: r.right for r in _of(results, method, share) if r.right is not None}


def _stack(answers: Answers, seeds: Iterable[int]) -> NDArray[np.bool_]:
    """bool (seeds, images)."""
    return np.stack([answers[seed] for seed in seeds])


def write_study(folder: Path, study: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``transfer.json``, ``transfer.html`` and ``transfer.svg``, each complete at every moment that it is there.

    Raises:
        ResourceError: the folder cannot be written.
    """
    from edgekiln.benchmarks.report.transfer import render_study_drawing, render_study_page

    files = {
        "transfer.json": json.dumps(study, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        "transfer.html": render_study_page(study),
        "transfer.svg": render_study_drawing(study),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            beside = folder / f".{name}.part"
            beside.write_text(text, "utf-8")
            os.replace(beside, folder / name)  # noqa: PTH105 # says that it replaces
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.",
            hint="Free some space, or choose another place with --runs; finished cells are kept.",
            path=folder,
        ) from error
    return {name: folder / name for name in files}
