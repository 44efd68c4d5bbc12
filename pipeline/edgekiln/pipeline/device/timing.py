"""Times the engines that ran on this machine, as a recipe's benchmark does, with what they cost and give besides.

Nothing is judged here. PyTorch is a contender where the caller can make one; else an FP32 engine is what speed-ups are
over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgekiln.benchmarks.costs.limits import add_limits
from edgekiln.benchmarks.report.timings import BASELINE
from edgekiln.benchmarks.timing.contender import Contender, engine_contender
from edgekiln.benchmarks.timing.inputs import choose_images, save_inputs
from edgekiln.benchmarks.timing.latency import run_benchmark
from edgekiln.benchmarks.timing.measured_times import measured_times
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.benchmarks.timing.result import BenchmarkResult
from edgekiln.benchmarks.timing.throughput import caller_counts, measure_throughput
from edgekiln.export.audits.layers.profiling import ProfiledEngine
from edgekiln.export.audits.layers.together import profile_together
from edgekiln.pipeline.device.pictures import KnownPictures
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.machine_kind import name_machine
from edgekiln.runtime.bundles.times import TIMES
from edgekiln.runtime.errors import BundleError, EngineError, GateError
from edgekiln.runtime.limits import usable_threads
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["BaselineMaker", "TimingSetup", "read_plan", "time_engines"]

BaselineMaker: TypeAlias = Callable[[Path, Logits, bool], Contender]
"""Makes PyTorch's contender: from a folder to put a file into, its logits of the images that rotate, and whether an
engine runs on a GPU."""

_IMAGES = 64
_PROFILED_FRAMES = 8
_BLOCKS_OF_A_TURN = 3  # of throughput: a batch of 32 takes longer than a call


@dataclass(frozen=True, slots=True)
class TimingSetup:
    """What engines are timed on, and how.

    Attributes:
        parent: the bundle that they are of.
        pictures: its test pictures that were found; some of them rotate.
        engines: where the variants' files lie.
        folder: where finished parts are kept, and found again by the same work.
        plan: processes, blocks and seconds.
        baseline: makes PyTorch's contender, or says why there is none.
    """

    parent: Bundle
    pictures: KnownPictures
    engines: Path
    folder: Path
    plan: BenchmarkPlan
    baseline: BaselineMaker | str


@dataclass(frozen=True, slots=True)
class _Timed:
    """What was timed, why others were not, and the contenders that were meant to be."""

    result: BenchmarkResult
    contenders: Sequence[Contender]
    left_out: Mapping[str, str]


def read_plan(parent: Bundle) -> BenchmarkPlan:
    """How long and how often, as the recipe of the parent says; raises BundleError where that makes no sense."""
    recipe = (parent.manifest.get("provenance") or {}).get("recipe") or {}
    settings = recipe.get("benchmark") or {}
    try:
        plan = BenchmarkPlan(
            **{f.name: settings[f.name] for f in fields(BenchmarkPlan) if f.name in settings}
        )
        if min(plan.processes, plan.blocks, plan.min_blocks) < 2 or plan.side_blocks < 1:
            raise ValueError("two processes and two blocks are the least")
        if plan.block_seconds <= 0 or not 0 <= plan.target_width < 1:
            raise ValueError("a block has no length, or the width is no share")
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{parent.path}: the benchmark section of its recipe cannot be used: {error}.", path=parent.path
        ) from error
    return plan


def time_engines(rows: Sequence[Mapping[str, Any]], setup: TimingSetup, progress: Progress) -> dict[str, Any]:
    """The ``benchmark`` part of a report; what was meant to be timed and was not stands in its ``left_out``.

    Args:
        rows: of the variants; those with ``logits`` take part.
        setup: what they are timed on, and how.
        progress: told of progress.

    Raises:
        GateError: all of them answer otherwise when timed than when judged, or die.
    """
    pictures, baseline = setup.pictures, setup.baseline
    chosen = choose_images(len(pictures.frames), _IMAGES)
    inputs = setup.folder / "inputs.npz"
    encoded = [pictures.paths[i].read_bytes() for i in chosen]
    save_inputs(inputs, np.array(pictures.frames[chosen]), encoded, setup.parent.contract.to_json())
    found = _choose(rows, setup.engines, chosen)
    if not isinstance(baseline, str):
        on_gpu = any(row["backend"] not in CPU_BACKENDS for row in rows if row.get("logits") is not None)
        found.insert(0, baseline(setup.folder, pictures.reference.logits[chosen], on_gpu))
    with progress.stage("benchmark"):
        timed = _time(found, inputs, setup, progress)
    values = timed.result.to_dict()
    first = timed.result.measurements[0].name
    if first != BASELINE:
        reason = timed.left_out.get(BASELINE, baseline if isinstance(baseline, str) else "")
        values["reference"] = {"name": first, "reason": reason.rstrip(".")}
    values |= {"images": len(chosen), "plan": asdict(setup.plan), "left_out": dict(timed.left_out)}
    values |= {"peers": [], "absent_peers": []}
    values[TIMES] = measured_times(timed.result, {row["name"]: row["backend"] for row in rows})
    _add_costs(values, timed, rows, inputs, progress)
    with progress.stage("layers"):
        frames = np.array(pictures.frames[chosen[:_PROFILED_FRAMES]])
        values["layers"] = _profile_layers(values, rows, setup.engines, frames, progress)
    return values


def _profile_layers(
    values: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    frames: Frames,
    progress: Progress,
) -> dict[str, Any]:
    """The layers of every engine that was timed, after all timing and in processes of their own."""
    configs = {measured["name"]: measured["config"] for measured in values["measurements"]}
    engines = []
    for row in (row for row in rows if row["name"] in configs):
        data = (folder / row["files"][0]).read_bytes()  # of static engines that of the smallest batch
        engine = ProfiledEngine(
            row["name"],
            row["backend"],
            data,
            (folder / row["source"]).read_bytes() if row["source"] else None,
            threads=configs[row["name"]].get("threads"),
            products=row["figures"].get("products") or None,
        )
        engines.append((engine, row["precision"]))
    return profile_together(
        engines,
        [frames[i : i + 1] for i in range(len(frames))],
        name_machine=name_machine,
        tell=progress.message,
    )


def _choose(rows: Sequence[Mapping[str, Any]], engines: Path, chosen: Any) -> list[Contender]:
    """Engines that ran; first the one that speed-ups may be over: FP32 and passed, or as near to that as there is."""
    ran = [row for row in rows if row.get("logits") is not None]
    ordered = sorted(ran, key=lambda row: (row["verdict"] != "pass", row["precision"] != "fp32"))
    rest = [row for row in ran if row is not ordered[0]]
    return [
        replace(
            engine_contender(
                row["name"],
                [engines / name for name in row["files"]],
                row["backend"],
                row["logits"][chosen],
            ),
            optional=True,
        )
        for row in (ordered[0], *rest)
    ]


def _time(contenders: Sequence[Contender], inputs: Path, setup: TimingSetup, progress: Progress) -> _Timed:
    """One that cannot be timed is left out; where it is the first, which all are compared with, the next is the first.

    Raises:
        GateError: none is left.
    """
    left, failed = list(contenders), dict[str, str]()
    while left:
        first = replace(left[0], optional=False)  # all rounds need it
        left[0] = first
        try:
            result = run_benchmark(
                left,
                inputs,
                plan=setup.plan,
                folder=setup.folder,
                advance=progress.advance,
                message=progress.message,
            )
            return _Timed(result, left, {**failed, **result.left_out})
        except (GateError, EngineError) as error:
            progress.message(f"  {first.name} is left out: {error}")
            failed[first.name] = str(error)
            left = left[1:]
    raise GateError(f"Nothing could be timed: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")


def _add_costs(
    values: dict[str, Any],
    timed: _Timed,
    rows: Sequence[Mapping[str, Any]],
    inputs: Path,
    progress: Progress,
) -> None:
    """Floors, memory, energy and throughput of what was timed, each in processes of its own."""
    products = {
        row["name"]: (row["figures"]["costs"], row["precision"])
        for row in rows
        if row["figures"].get("costs")
    }
    floats = [entry for entry in products.values() if entry[1] == "fp32"]
    if floats:
        products[BASELINE] = floats[0]  # the same graph in PyTorch
    count = len(values["measurements"])
    with progress.stage("limits"):
        add_limits(
            values,
            timed.contenders,
            products,
            inputs,
            lambda done, note: progress.advance(done, count, note),
        )
    by_name = {contender.name: contender for contender in timed.contenders}
    wanted = [(by_name[m["name"]], m["config"]) for m in values["measurements"] if m["name"] != BASELINE]
    callers = caller_counts(usable_threads())
    seconds = _BLOCKS_OF_A_TURN * values["plan"]["block_seconds"]
    with progress.stage("throughput"):
        try:
            values["throughput"] = measure_throughput(
                wanted, inputs, callers=callers, seconds=seconds, advance=progress.advance
            )
        except EngineError as error:  # finished timings are not lost for it
            values["limits_problems"].append(f"Throughput was not measured: {error}")
