"""The optional stage ``mlperf``: LoadGen drives each engine on the CPU that passed, on the run's own test images.

The stage stands before the bundle, whose files are hashed by its manifest: a result that came later could not be put
into its report. What was asked for and could not be done is written down with its reason; it never fails a run.
Each result is kept as it comes, so that an interrupted stage goes on with the next; what failed is tried again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.benchmarks.judging.verdict import Reference
from edgekiln.benchmarks.timing.journal import Journal, clear_journal, plan_digest
from edgekiln.pipeline.data import identity_file, load_split
from edgekiln.pipeline.proof.variant_rows import judge_variant
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.training.checkpoint import read_contract
from edgekiln.pipeline.variants.engines import built_files
from edgekiln.pipeline.workspace.stage_files import (
    BASELINE,
    StageContext,
    read_json,
    read_logits,
    write_json,
)
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import EdgekilnError, MissingExtraError

if TYPE_CHECKING:
    from edgekiln.benchmarks.timing.loadgen.rules import Scenario
    from edgekiln.benchmarks.timing.loadgen.run import EngineFiles
    from edgekiln.runtime.spec import Frames

__all__ = ["MLPERF_NAME", "drive_engines"]

MLPERF_NAME = "mlperf.json"
_TICK_SECONDS = 5.0  # between words of progress while LoadGen works: too seldom to disturb what it times
_GPU_BACKENDS = frozenset({"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"})


def drive_engines(context: StageContext) -> None:
    """Write ``mlperf.json``: ``results``, one an engine and scenario; ``left_out``, engines and why; ``reason``.

    ``reason`` tells why nothing was tried at all, with ``remedy``; else both are ``None``.
    """
    values: dict[str, Any] = {"results": [], "left_out": [], "reason": None, "remedy": None}
    try:
        _drive(context, values)
    except MissingExtraError as error:
        values |= {"reason": error.message, "remedy": error.hint}
        context.progress.message(f"  LoadGen was asked for and not tried: {error}")
    write_json(context.folder / MLPERF_NAME, values)
    clear_journal(context.folder)


def _drive(context: StageContext, values: dict[str, Any]) -> None:
    from edgekiln.benchmarks.timing.loadgen.pictures import MIN_LIBRARY, choose_frames
    from edgekiln.benchmarks.timing.loadgen.rules import SCENARIOS
    from edgekiln.runtime.extras import import_extra

    import_extra("mlperf_loadgen", "mlperf")
    test = load_split(context.inputs["data"], "test")
    if len(test) < MIN_LIBRARY:
        values["reason"] = f"The test split holds {len(test)} images, LoadGen is given {MIN_LIBRARY} or more."
        values["remedy"] = "Fewer stay in caches; raise data.test, or add pictures."
        context.progress.message(f"  LoadGen was asked for and not tried: {values['reason']}")
        return
    frames = np.array(test.frames[choose_frames(len(test))])
    engines = list(_choose_engines(context, values["left_out"]))
    work = [_Drive(engine, frames, scenario) for engine in engines for scenario in SCENARIOS]
    journal = _open_journal(context, engines)
    seconds = max(1, round(context.recipe.benchmark.mlperf_seconds))
    for number, drive in enumerate(work):
        told = (number * seconds, len(work) * seconds, f"LoadGen, {drive}")
        with _tell_time(context.progress.advance, told, seconds):
            _drive_one(context, values, drive, journal)


@dataclass(frozen=True, slots=True)
class _Drive:
    """One engine in one scenario."""

    engine: EngineFiles
    frames: Frames
    scenario: Scenario

    def __str__(self) -> str:
        return f"{self.engine.name}, {self.scenario}"


def _open_journal(context: StageContext, engines: Sequence[EngineFiles]) -> Journal:
    """Results of an interrupted attempt, bound to the engines' bytes, the test images and the duration."""
    plan = {
        "seconds": context.recipe.benchmark.mlperf_seconds,
        "engines": [[e.name, e.backend, e.threads, [hash_file(p)[0] for p in e.paths]] for e in engines],
    }
    digest = plan_digest(plan, identity_file(context.inputs["data"], "test"))
    return Journal(context.folder, digest, context.progress.message)


@contextlib.contextmanager
def _tell_time(
    advance: Callable[[int, int, str], None], told: tuple[int, int, str], seconds: int
) -> Iterator[None]:
    """Count the seconds of one drive while it lasts; ``told`` are done, total and note at its start."""
    done, total, note = told
    started, ended = time.monotonic(), threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            advance(done + min(seconds, int(time.monotonic() - started)), total, note)

    advance(done, total, note)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()


def _drive_one(context: StageContext, values: dict[str, Any], drive: _Drive, journal: Journal) -> None:
    """Add one result, or why there is none."""
    from edgekiln.benchmarks.timing.loadgen.run import drive_engine

    part = f"{drive.engine.name}-{drive.scenario}"
    if (known := journal.read(part)) is not None:
        values["results"].append(known)
        context.progress.message(f"  LoadGen, {drive}: {known['result']}, from an interrupted attempt")
        return
    seconds = context.recipe.benchmark.mlperf_seconds
    try:
        result = drive_engine(drive.engine, drive.frames, drive.scenario, min_seconds=seconds)
    except MissingExtraError:
        raise
    except EdgekilnError as error:
        values["left_out"].append(
            {"name": drive.engine.name, "scenario": drive.scenario, "reason": str(error)}
        )
        context.progress.message(f"  LoadGen, {drive}: {error}")
        return
    values["results"].append(journal.write(part, result))
    context.progress.message(f"  LoadGen, {drive}: {result['result']}")


def _choose_engines(context: StageContext, left_out: list[dict[str, Any]]) -> Iterator[EngineFiles]:
    """Engines for the CPU that passed their gate, at the threads that the benchmark found best."""
    from edgekiln.benchmarks.timing.loadgen.run import EngineFiles

    test = load_split(context.inputs["data"], "test")
    baseline = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    reference = Reference(baseline, test.labels, test.keys, read_contract(context.inputs["finetune"]).classes)
    threads = _best_threads(context.inputs["benchmark"])
    for variant in context.recipe.variants:
        reason = _why_not(variant, judge_variant(context, variant, reference, None)["verdict"])
        if reason is None:
            files = built_files(context, variant)
            yield EngineFiles(variant.name, files, variant.backend, threads.get(variant.name))
        else:
            left_out.append({"name": variant.name, "scenario": None, "reason": reason})


def _why_not(variant: VariantSettings, verdict: str) -> str | None:
    if variant.backend in _GPU_BACKENDS:
        return "only engines for the CPU are driven"
    return None if verdict == "pass" else f"its verdict is {verdict}"


def _best_threads(benchmark: Path) -> Mapping[str, int | None]:
    measurements = read_json(benchmark / "benchmark.json")["measurements"]
    return {m["name"]: m["config"].get("threads") for m in measurements}
