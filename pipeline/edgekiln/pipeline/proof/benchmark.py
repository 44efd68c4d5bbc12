"""The work of the stage ``benchmark``: times every contender on the same pictures, and writes ``benchmark.json``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.costs.limits import add_limits
from edgekiln.benchmarks.timing.cells import CellPlan, measure_cells
from edgekiln.benchmarks.timing.inputs import choose_images, save_inputs
from edgekiln.benchmarks.timing.journal import clear_journal
from edgekiln.benchmarks.timing.latency import run_benchmark
from edgekiln.benchmarks.timing.measured_times import measured_times
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.benchmarks.timing.result import BenchmarkResult
from edgekiln.export.audits.layers.profiling import ProfiledEngine
from edgekiln.export.audits.layers.together import profile_together
from edgekiln.pipeline.data import load_split, read_source
from edgekiln.pipeline.proof.contenders import ChosenContenders, choose_contenders
from edgekiln.pipeline.proof.packed_files import graph_file
from edgekiln.pipeline.proof.peer_files import PEER_FOLDER
from edgekiln.pipeline.proof.products import read_products
from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.training.checkpoint import read_contract
from edgekiln.pipeline.variants.engines import built_files
from edgekiln.pipeline.workspace.stage_files import StageContext, write_json
from edgekiln.runtime.bundles.machine_kind import name_machine
from edgekiln.runtime.spec import Frames

__all__ = ["benchmark_engines"]

_INPUTS_NAME = "inputs.npz"
_PROFILED_FRAMES = 8
_CELL_FOLDER = "cells"


def benchmark_engines(context: StageContext) -> None:
    """Writes benchmark.json. Until then finished rounds lie beside it; an attempt that resumes finds them again."""
    test = load_split(context.inputs["data"], "test")
    chosen = choose_images(len(test), context.recipe.benchmark.images)
    inputs = context.folder / _INPUTS_NAME
    pictures = _encoded_pictures(context.recipe, [test.keys[i] for i in chosen])
    frames = np.array(test.frames[chosen])
    save_inputs(inputs, frames, pictures, read_contract(context.inputs["finetune"]).to_json())
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
    values["cells"] = _measure_cells(context, result, taking_part, inputs)
    add_limits(
        values,
        taking_part.contenders,
        read_products(context),
        inputs,
        lambda done, note: advance(timings + done, timings + count, note),
    )
    values["layers"] = _profile_layers(context, values, frames)
    values["times"] = measured_times(result, {v.name: v.backend for v in context.recipe.variants})
    values["images"] = len(chosen)
    values |= _describe_peers(result, taking_part)
    write_json(context.folder / "benchmark.json", values)
    inputs.unlink()
    for name in (PEER_FOLDER, _CELL_FOLDER):
        shutil.rmtree(context.folder / name, ignore_errors=True)
    clear_journal(context.folder)


def _describe_peers(result: BenchmarkResult, taking_part: ChosenContenders) -> dict[str, Any]:
    """The peers that were timed, those that were not and why, and how those compare with each engine."""
    absent = {**taking_part.absent, **result.left_out}
    return {
        "peers": [
            {"name": name, "precision": precision, **taking_part.about.get(name, {})}
            for name, precision in taking_part.peers.items()
            if name not in result.left_out
        ],
        "absent_peers": [{"name": name, "reason": reason} for name, reason in absent.items()],
        "peer_ratios": _compare_peers(result, taking_part),
    }


def _compare_peers(result: BenchmarkResult, taking_part: ChosenContenders) -> dict[str, Any]:
    """By peer and engine: the peer's time over the engine's, with its interval; nothing where the run is invalid."""
    found: dict[str, Any] = {}
    for peer, engine in _pair_peers(result, taking_part):
        ratio = result.time_ratio(peer, engine)
        if ratio is not None:
            found.setdefault(peer, {})[engine] = asdict(ratio)
    return found


def _pair_peers(result: BenchmarkResult, taking_part: ChosenContenders) -> list[tuple[str, str]]:
    """Each peer that was timed with each engine that was."""
    timed = [m.name for m in result.measurements[1:]]
    peers = [name for name in timed if name in taking_part.peers]
    return [(peer, engine) for peer in peers for engine in timed if engine not in taking_part.peers]


def _measure_cells(
    context: StageContext, result: BenchmarkResult, taking_part: ChosenContenders, inputs: Path
) -> list[dict[str, Any]]:
    """The batch sizes that the recipe asks for, of what runs on the CPU.

    Also where the timings beside PyTorch are invalid: a cell compares engines and peers with each other, and its
    intervals tell how far to trust it.
    """
    batches, advance = context.recipe.benchmark.batches, context.progress.advance
    if not batches:
        return []
    searches = {m.name: m.search for m in result.measurements if m.device in {"cpu", None}}
    contenders = [
        (contender, searches[contender.name])
        for contender in taking_part.contenders
        if contender.name in searches and contender.name != "pytorch-compile"
    ]
    folder = context.folder / _CELL_FOLDER
    folder.mkdir(exist_ok=True)
    return measure_cells(
        contenders,
        inputs,
        CellPlan(batches),
        _pair_peers(result, taking_part),
        folder=folder,
        advance=advance,
        message=context.progress.message,
    )


def _profile_layers(context: StageContext, values: Mapping[str, Any], frames: Frames) -> dict[str, Any]:
    """The layers of every engine that was timed, after all timing and in processes of their own."""
    configs = {measured["name"]: measured["config"] for measured in values["measurements"]}
    engines = []
    for variant in context.recipe.variants:
        if variant.name not in configs:
            continue
        data = built_files(context, variant)[0].read_bytes()  # of static engines that of the smallest batch
        graph = graph_file(context, variant).read_bytes()
        threads = configs[variant.name].get("threads")
        engine = ProfiledEngine(variant.name, variant.backend, data, graph, threads)
        engines.append((engine, variant.precision.value))
    return profile_together(
        engines,
        [frames[i : i + 1] for i in range(min(len(frames), _PROFILED_FRAMES))],
        name_machine=name_machine,
        tell=lambda name: context.progress.message(f"  layers of {name}"),
    )


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
