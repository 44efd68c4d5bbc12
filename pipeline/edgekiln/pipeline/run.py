"""Runs the stages of a recipe in order, each at most once, and puts the bundle where a person finds it."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.pipeline.progress import Progress
from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.stage_files import RETRY_NAME, StageContext
from edgekiln.pipeline.stages import Stage, plan_stages, stage_names
from edgekiln.pipeline.store import StageRecord, StageStore, stage_key
from edgekiln.runtime.errors import GateError, UsageError

__all__ = ["RunResult", "check_gate", "run_recipe"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind. ``bundle`` and ``report`` are ``None`` where it stopped before them."""

    stages: Mapping[str, StageRecord]
    bundle: Path | None
    report: Mapping[str, Any] | None


def run_recipe(
    recipe: Recipe, runs: Path, progress: Progress, *, until: str | None = None, force: Iterable[str] = ()
) -> RunResult:
    """Run a recipe; a stage whose key is on disk is not run again.

    Args:
        recipe: the wish.
        runs: folder below which ``NAME/`` is made.
        progress: told of everything.
        until: last stage to run; ``variant`` and ``evaluate`` mean all of their kind.
        force: stages to run again although they are on disk.

    Raises:
        EdgekilnError: of whichever stage failed; finished stages are kept.
    """
    root = runs / recipe.name
    store = StageStore(root)
    names = stage_names(recipe)
    last = len(names) - 1 if until is None else names.index(_matching(names, until)[-1])
    forced = {name for wanted in force for name in _matching(names, wanted)}
    with store.lock(progress):
        chosen = plan_stages(recipe)[: last + 1]
        done: dict[str, StageRecord] = {}
        for number, stage in enumerate(chosen, start=1):
            label = f"[{number}/{len(chosen)}] {stage.name}"
            done[stage.name] = _run_stage(stage, recipe, store, done, progress, (label, stage.name in forced))
        if "bundle" not in done:
            return RunResult(done, None, None)
        bundle = _publish(done["bundle"].folder, root / "bundle")
        report = json.loads((bundle / "report.json").read_text("utf-8"))
        return RunResult(done, bundle, report)


def _matching(names: Sequence[str], wanted: str) -> list[str]:
    """Stages of that name or kind: ``variant`` means every variant."""
    found = [name for name in names if wanted in {name, name.partition(".")[0]}]
    if not found:
        kinds = list(dict.fromkeys([*names, *(name.partition(".")[0] for name in names)]))
        near = difflib.get_close_matches(wanted, kinds, n=1, cutoff=0.5)
        raise UsageError(
            f"There is no stage {wanted!r}; there are: {', '.join(names)}.",
            hint=f"Did you mean {near[0]!r}?" if near else "Give one of these.",
        )
    return found


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    store: StageStore,
    done: Mapping[str, StageRecord],
    progress: Progress,
    mode: tuple[str, bool],
) -> StageRecord:
    from edgekiln.benchmarks.environment import tool_versions

    label, forced = mode
    about = {
        "inputs": {name: done[name].digest for name in stage.inputs},
        "settings": stage.settings,
        "tools": tool_versions(("edgekiln", *stage.tools)),
        "revision": stage.revision,
    }
    key = stage_key(stage.name, **about)
    found = None if forced else store.find(stage.name, key)
    if found is not None and (found.folder / RETRY_NAME).exists():
        found = None
    if found is not None:
        progress.message(f"{label}: done before ({found.seconds:.1f} s then)")
        return found
    folder = store.begin(stage.name, key, resume=stage.resumable and not forced)
    context = StageContext(recipe, folder, {name: done[name].folder for name in stage.inputs}, progress)
    started = time.monotonic()
    progress.message(f"{label} ...")
    with progress.stage(label), store.explain_full_disk():
        stage.work(context)
    record = store.finish(stage.name, key, time.monotonic() - started, about)
    progress.message(f"{label}: {record.seconds:.1f} s")
    return record


def _publish(source: Path, target: Path) -> Path:
    """Copy the finished bundle to its well-known place, complete at every moment that it is there."""
    if target.is_dir() and _same_manifest(source, target):
        return target
    beside, old = target.with_name(f".bundle-{os.getpid()}"), target.with_name(".bundle-old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, beside)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _same_manifest(source: Path, target: Path) -> bool:
    """Whether ``target`` is an intact copy already."""
    from edgekiln.runtime.bundle import MANIFEST_NAME, open_bundle
    from edgekiln.runtime.errors import EdgekilnError

    try:
        open_bundle(target)
        return (source / MANIFEST_NAME).read_bytes() == (target / MANIFEST_NAME).read_bytes()
    except (EdgekilnError, OSError):
        return False


def check_gate(report: Mapping[str, Any]) -> None:
    """Raise GateError when a required variant did not pass, as the recipe's gate says.

    Raises:
        GateError: names the variants and why.
    """
    undecided_fails = report["recipe"]["gate"]["inconclusive"] == "fail"
    failed = [
        f"{v['name']}: {v['verdict']} ({v['reason']})"
        for v in report["variants"]
        if v["required"]
        and (v["verdict"] in {"fail", "not-run"} or (v["verdict"] == "inconclusive" and undecided_fails))
    ]
    if failed:
        raise GateError(
            f"{len(failed)} required variant{'s' if len(failed) > 1 else ''} did not pass: {'; '.join(failed)}.",
            hint="The bundle holds everything for a look; only what passed is deployable.",
        )
