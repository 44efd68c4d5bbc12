"""The work of the stage ``benchmark``: times every contender on the same pictures, and writes ``benchmark.json``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from edgekiln.benchmarks.costs.limits import add_limits
from edgekiln.benchmarks.timing.inputs import choose_images, save_inputs
from edgekiln.benchmarks.timing.journal import clear_journal
from edgekiln.benchmarks.timing.latency import run_benchmark
from edgekiln.benchmarks.timing.measured_times import measured_times
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.pipeline.data import load_split, read_source
from edgekiln.pipeline.proof.contenders import choose_contenders
from edgekiln.pipeline.proof.products import read_products
from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.training.checkpoint import read_contract
from edgekiln.pipeline.workspace.stage_files import StageContext, write_json

__all__ = ["benchmark_engines"]

_INPUTS_NAME = "inputs.npz"


def benchmark_engines(context: StageContext) -> None:
    """Writes benchmark.json. Until then finished rounds lie beside it; an attempt that resumes finds them again."""
    test = load_split(context.inputs["data"], "test")
    chosen = choose_images(len(test), context.recipe.benchmark.images)
    inputs = context.folder / _INPUTS_NAME
    pictures = _encoded_pictures(context.recipe, [test.keys[i] for i in chosen])
    save_inputs(
        inputs, np.array(test.frames[chosen]), pictures, read_contract(context.inputs["finetune"]).to_json()
    )
    taking_part = choose_contenders(context, chosen)
    plan, advance = _benchmark_plan(context.recipe), context.progress.advance
    timings, count = plan.count_units(len(taking_part.contenders)), len(taking_part.contenders)
    result = run_benchmark(
        taking_part.contenders,
        inputs,
        plan=plan,
        folder=context.folder,
        advance=lambda done, total, note: advance(done, total + count, note),
        message=context.progress.message,
    )
    values = result.to_dict()
    add_limits(
        values,
        taking_part.contenders,
        read_products(context),
        inputs,
        lambda done, note: advance(timings + done, timings + count, note),
    )
    values["times"] = measured_times(result, {v.name: v.backend for v in context.recipe.variants})
    values["images"] = len(chosen)
    values["peers"] = [
        {"name": name, "precision": precision}
        for name, precision in taking_part.peers.items()
        if name not in result.left_out
    ]
    values["absent_peers"] = [
        {"name": name, "reason": reason}
        for name, reason in (*taking_part.absent.items(), *result.left_out.items())
    ]
    write_json(context.folder / "benchmark.json", values)
    inputs.unlink()
    clear_journal(context.folder)


def _benchmark_plan(recipe: Recipe) -> BenchmarkPlan:
    settings = recipe.benchmark.model_dump()
    return BenchmarkPlan(**{field.name: settings[field.name] for field in fields(BenchmarkPlan)})


def _encoded_pictures(recipe: Recipe, keys: Sequence[str]) -> list[bytes]:
    """The files that the keys stand for; none where the source has arrays instead of files."""
    source = read_source(recipe.data)
    samples = {s.key: s.picture for part in (source.train, source.val or (), source.test or ()) for s in part}
    pictures = [samples.get(key) for key in keys]
    if not all(isinstance(picture, str | os.PathLike) for picture in pictures):
        return []
    return [Path(str(picture)).read_bytes() for picture in pictures]
