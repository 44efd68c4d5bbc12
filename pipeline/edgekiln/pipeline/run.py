"""Runs the stages of a recipe in order, each at most once, and puts the bundle where a person finds it."""

from __future__ import annotations

import difflib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekiln.pipeline.recipe import Recipe
from edgekiln.pipeline.stages.planning import plan_stages, stage_names
from edgekiln.pipeline.stages.stage import Listed, Stage
from edgekiln.pipeline.training.tensorboard import complete_events, event_folder, require_tensorboard
from edgekiln.pipeline.workspace.data_memory import check_data, keep_data
from edgekiln.pipeline.workspace.interrupts import check_interrupt
from edgekiln.pipeline.workspace.placing import put_in_place, restore
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.pipeline.workspace.stage_files import EVIDENCE, RETRY_NAME, StageContext
from edgekiln.pipeline.workspace.store import StageRecord, StageStore, stage_key
from edgekiln.runtime.errors import UsageError

__all__ = [
    "PlannedStage",
    "RunResult",
    "check_folder",
    "claim_folder",
    "find_stages",
    "plan_run",
    "run_recipe",
    "run_stages",
]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind. ``bundle`` and ``report`` are ``None`` where it stopped before them."""

    stages: Mapping[str, StageRecord]
    bundle: Path | None
    report: Mapping[str, Any] | None

    def _repr_html_(self) -> str:
        """What a notebook shows: each variant's verdict, or the stages where it stopped before the bundle."""
        from edgekiln.runtime.bundles.notebook import show_table, show_variants

        if self.report is None:
            rows = [
                (name, "on disk" if s.cached else f"{s.seconds:.1f} s") for name, s in self.stages.items()
            ]
            return show_table("Run without a bundle", ("stage", "took"), rows)
        keys = ("name", "backend", "precision", "verdict", "reason")
        variants = (tuple(str(variant[key]) for key in keys) for variant in self.report["variants"])
        return show_variants(f"Run {self.report['name']}", variants)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What a run would do with one stage.

    Attributes:
        action: ``cached`` is done before; ``run`` will run; ``depends`` will run unless a stage that it reads, and
            that runs anew, comes out as it did before.
        reason: why, in words.
        seconds: how long it took when it last ran, under any key; ``None`` where it never did.
        folder: where its output is; ``None`` where it has none yet.
        purpose, makes: what it does, and the files that it leaves; see ``stages``.
        notices: what the look at its pictures told.
    """

    name: str
    action: Literal["cached", "run", "depends"]
    reason: str
    seconds: float | None
    folder: Path | None
    purpose: str = ""
    makes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def run_recipe(
    recipe: Recipe,
    runs: Path,
    progress: Progress,
    *,
    until: str | None = None,
    force: Iterable[str] = (),
    variants: Iterable[str] = (),
) -> RunResult:
    """Run a recipe; a stage whose key is on disk is not run again.

    Args:
        recipe: the wish.
        runs: folder below which ``NAME/`` is made.
        progress: told of everything.
        until: last stage to run; ``variant`` and ``evaluate`` mean all of their kind.
        force: stages to run again although they are on disk.
        variants: leave out the stages of all other variants; then ``until`` must come before what reads them all.

    Raises:
        EdgekilnError: of whichever stage failed; finished stages are kept.
    """
    root = runs / recipe.name
    store = StageStore(root)
    names = _choose_names(recipe, until, variants)
    forced = _forced_names(recipe, force)
    if recipe.finetune.tensorboard:
        require_tensorboard()
    with store.lock(progress):
        stages = plan_stages(recipe)
        claim_folder(root, store, stages)
        _sweep(store, root / "bundle", stages)
        chosen = [stage for stage in stages if stage.name in names]
        _try_network(recipe, chosen, store)
        done: dict[str, StageRecord] = {}
        for number, stage in enumerate(chosen, start=1):
            label = f"[{number}/{len(chosen)}] {stage.name}"
            done[stage.name] = _run_stage(stage, recipe, store, done, progress, (label, stage.name in forced))
        _complete_events(recipe, done, progress)
        if "bundle" not in done:
            return RunResult(done, None, None)
        with store.explain_writing("bundle"):
            bundle = _publish(done["bundle"].folder, root / "bundle")
        report = json.loads((bundle / "report.json").read_text("utf-8"))
        return RunResult(done, bundle, report)


def plan_run(
    recipe: Recipe,
    runs: Path,
    *,
    until: str | None = None,
    force: Iterable[str] = (),
    variants: Iterable[str] = (),
) -> list[PlannedStage]:
    """What ``run_recipe`` would do with the same arguments. Writes nothing, and waits for no other run."""
    store = StageStore(runs / recipe.name)
    names = _choose_names(recipe, until, variants)
    forced = _forced_names(recipe, force)
    found: dict[str, StageRecord] = {}
    plan: list[PlannedStage] = []
    stages = plan_stages(recipe)
    check_folder(runs / recipe.name, stages)
    for stage in stages:
        if stage.name in names:
            plan.append(_plan_stage(stage, store, found, forced=stage.name in forced))
    return plan


def check_folder(root: Path, stages: Iterable[Stage]) -> None:
    """Refuse another data set than the one that a run's folder belongs to.

    Raises:
        UsageError: it belongs to another one.
    """
    for listed in _listed(stages):
        check_data(root, listed.memory)


def claim_folder(root: Path, store: StageStore, stages: Sequence[Stage]) -> None:
    """``check_folder``, and write down which data set it is; the caller holds the store's lock."""
    check_folder(root, stages)
    for listed in _listed(stages):
        with store.explain_writing("data"):
            keep_data(root, listed.memory)


def _listed(stages: Iterable[Stage]) -> Iterator[Listed]:
    """What was found of the target's pictures; a source task may share its own with other recipes."""
    return (stage.listed for stage in stages if stage.name == "data" and stage.listed is not None)


def run_stages(
    recipe: Recipe, stages: Sequence[Stage], store: StageStore, progress: Progress, label: str
) -> dict[str, StageRecord]:
    """Run these stages alone, in their order; each reads only earlier ones of them.

    Args:
        recipe: that they were planned for.
        stages: of ``stages.plan_training``.
        store: of the run; locked while they run.
        progress: told of everything.
        label: what the progress calls them, before each stage's name.
    """
    done: dict[str, StageRecord] = {}
    with store.lock(progress):
        _try_network(recipe, stages, store)
        for stage in stages:
            done[stage.name] = _run_stage(
                stage, recipe, store, done, progress, (f"{label} {stage.name}", False)
            )
    return done


def _try_network(recipe: Recipe, stages: Sequence[Stage], store: StageStore) -> None:
    """Before pictures are read: whether the network that they are to train can be trained and exported.

    Of code of one's own, which may know its own number of classes alone, the stage ``finetune`` asks it.
    """
    if ":" in recipe.backbone.model:
        return
    names = [stage.name for stage in stages]
    if "finetune" not in names or find_stages(stages[: names.index("finetune") + 1], store) is not None:
        return
    from edgekiln.pipeline.training.trial import try_backbone

    try_backbone(recipe.backbone, recipe.data.size)


def find_stages(stages: Sequence[Stage], store: StageStore) -> dict[str, StageRecord] | None:
    """The records of these stages where all of them are done; writes nothing."""
    found: dict[str, StageRecord] = {}
    for stage in stages:
        key, _ = _identify(stage, found)
        record = _find(store, stage.name, key)
        if record is None:
            return None
        found[stage.name] = record
    return found


def _plan_stage(
    stage: Stage, store: StageStore, found: dict[str, StageRecord], *, forced: bool
) -> PlannedStage:
    """Judge one stage by those before it, and add it to ``found`` where it is done."""

    def plan(
        action: Literal["cached", "run", "depends"], reason: str, record: StageRecord | None = None
    ) -> PlannedStage:
        seconds = record.seconds if record else store.last_seconds(stage.name)
        folder = record.folder if record else None
        notices = stage.listed.notices if stage.listed else ()
        return PlannedStage(stage.name, action, reason, seconds, folder, stage.purpose, stage.makes, notices)

    ran = store.last_seconds(stage.name) is not None
    fresh = [name for name in stage.inputs if name not in found]
    named = ", ".join(fresh[:3]) + (f" and {len(fresh) - 3} more" if len(fresh) > 3 else "")
    if forced:
        return plan("run", "forced")
    if fresh and not ran:
        return plan("run", f"its input changes: {named}")
    if fresh:
        return plan("depends", f"its input changes, unless as before: {named}")
    key, _ = _identify(stage, found)
    record = _find(store, stage.name, key)
    if record is not None:
        found[stage.name] = record
        return plan("cached", "done before", record)
    if stage.resumable and store.is_begun(stage.name, key):
        return plan("run", "goes on from where it was interrupted")
    return plan("run", "its settings, input or tools changed" if ran else "never run")


def _choose_names(recipe: Recipe, until: str | None, variants: Iterable[str]) -> set[str]:
    """Names of the stages to run."""
    names = stage_names(recipe)
    if until == "engine" and not any(variant.builds_engine for variant in recipe.variants):
        raise UsageError(
            "The recipe has no variant whose engine is built.",
            hint="Add one with backend = 'tensorrt' or 'tensorrt-rtx'; onnxruntime runs the graph itself.",
        )
    last = len(names) - 1 if until is None else names.index(_matching(names, until)[-1])
    wanted = _known_variants(recipe, variants)
    evaluated = max(i for i, name in enumerate(names) if name.partition(".")[0] in {"evaluate", EVIDENCE})
    if until == "evaluate":
        last = evaluated  # of val too, where the gate asks for it
    chosen = names[: last + 1]
    if wanted and last > evaluated:
        raise UsageError(
            f"The stages {', '.join(names[evaluated + 1 :])} take all variants.",
            hint="Leave the choice of variants out.",
        )
    others = {variant.name for variant in recipe.variants} - wanted if wanted else set()
    return {name for name in chosen if name.partition(".")[2] not in others}


def _known_variants(recipe: Recipe, variants: Iterable[str]) -> set[str]:
    names = [variant.name for variant in recipe.variants]
    wanted = set(variants)
    for name in sorted(wanted - set(names)):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise UsageError(
            f"The recipe has no variant {name!r}; it has: {', '.join(names)}.",
            hint=f"Did you mean {near[0]!r}?" if near else "Give one of these.",
        )
    return wanted


def _forced_names(recipe: Recipe, force: Iterable[str]) -> set[str]:
    names = stage_names(recipe)
    return {name for wanted in force for name in _matching(names, wanted)}


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


def _identify(stage: Stage, done: Mapping[str, StageRecord]) -> tuple[str, dict[str, Any]]:
    """The stage's key, and all that it is made of."""
    from edgekiln.benchmarks.environment import tool_versions

    about = {
        "inputs": {name: done[name].digest for name in stage.inputs},
        "settings": stage.settings,
        "tools": tool_versions(("edgekiln", *stage.tools)),
        "revision": stage.revision,
    }
    return stage_key(stage.name, **about), about


def _find(store: StageStore, name: str, key: str) -> StageRecord | None:
    """The finished stage of that key, unless it met trouble that may have passed."""
    found = store.find(name, key)
    return None if found is None or (found.folder / RETRY_NAME).exists() else found


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    store: StageStore,
    done: Mapping[str, StageRecord],
    progress: Progress,
    mode: tuple[str, bool],
) -> StageRecord:
    label, forced = mode
    key, about = _identify(stage, done)
    found = None if forced else _find(store, stage.name, key)
    if found is not None:
        progress.message(f"{label}: done before ({found.seconds:.1f} s then)")
        for notice in stage.listed.notices if stage.listed else ():
            progress.message(f"  {notice}")
        return found
    started = time.monotonic()
    progress.message(f"{label} ...")
    with store.explain_writing(stage.name):
        folder = store.begin(stage.name, key, resume=stage.resumable, forced=forced)
        context = StageContext(recipe, folder, {name: done[name].folder for name in stage.inputs}, progress)
        with progress.stage(label):
            stage.work(context)
        check_interrupt()  # else an engine that Ctrl-C spoiled would be kept as one that failed
        record = store.finish(stage.name, key, time.monotonic() - started, about)
    progress.message(f"{label}: {record.seconds:.1f} s")
    return record


def _complete_events(recipe: Recipe, done: Mapping[str, StageRecord], progress: Progress) -> None:
    """Where fine-tuning had been done before its events were asked for, they are made of its log."""
    from edgekiln.pipeline.training.log import LOG_NAME

    if not recipe.finetune.tensorboard or "finetune" not in done:
        return
    record = done["finetune"]
    folder = event_folder(record.folder)
    complete_events(record.folder / LOG_NAME, folder)
    progress.message(f"TensorBoard's events: {folder}")


def _sweep(store: StageStore, bundle: Path, stages: Sequence[Stage]) -> None:
    """Put in order what a killed run left behind."""
    store.sweep([s.name for s in stages if s.resumable], [s.name for s in stages if not s.resumable])
    restore(bundle)
    shutil.rmtree(_unpublished(bundle), ignore_errors=True)


def _publish(source: Path, target: Path) -> Path:
    """Copy the finished bundle to its well-known place; one that is there is whole until the new one is."""
    if target.is_dir() and _same_manifest(source, target):
        return target
    beside = _unpublished(target)
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    put_in_place(beside, target)
    return target


def _unpublished(bundle: Path) -> Path:
    return bundle.with_name(f".new-{bundle.name}")


def _same_manifest(source: Path, target: Path) -> bool:
    """Whether ``target`` is an intact copy already."""
    from edgekiln.runtime.bundles.bundle import open_bundle
    from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
    from edgekiln.runtime.errors import EdgekilnError

    try:
        open_bundle(target)
        return (source / MANIFEST_NAME).read_bytes() == (target / MANIFEST_NAME).read_bytes()
    except (EdgekilnError, OSError):
        return False
