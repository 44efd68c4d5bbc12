"""Builds a variant's engines and runs them over the test split; where that is not possible here, says why.

Three ends that are never confused: *not tried here* (no library, no GPU), *could not be built*, and *built, not run*.
An engine that cannot run here has its graph simulated on the CPU: evidence, never a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.export.child import Child
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.data.labelled import SplitName
from edgekiln.pipeline.device.building import EngineRequest, build_engines
from edgekiln.pipeline.device.canary_records import CanaryReference, record_canaries
from edgekiln.pipeline.device.static_batches import ask_static_batches, list_static_batches
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.fast_frames import record_agreement
from edgekiln.pipeline.variants.isolated import IsolatedSession
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    BUILD_NAME,
    CANARIES_NAME,
    CANARY_LOGITS_NAME,
    FAILURE_NAME,
    FALLBACK_NAME,
    KIND_NAME,
    LOGITS_NAME,
    MODEL_NAME,
    NOT_RUN_NAME,
    PROFILES_NAME,
    RETRY_NAME,
    SIMULATED_NAME,
    STATIC_NAME,
    StageContext,
    read_json,
    read_logits,
    save_logits,
    write_json,
)
from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.backends.tensorrt_buckets import list_profiles
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.errors import (
    BuildError,
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    MissingExtraError,
    NonFiniteError,
    ResourceError,
)
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames, Logits, Precision

__all__ = ["answer_split", "build_variant", "built_files", "evaluate_variant", "is_judged"]

_BATCH = 64


# --------------------------------------------------------------------------------------------------------------
# Building


def build_variant(context: StageContext, variant: VariantSettings) -> None:
    """Write the engines and ``build.json``: what was built and audited, or why nothing was."""
    made = context.inputs[f"variant.{variant.name}"]
    about = read_json(made / ABOUT_NAME)
    record: dict[str, Any] = {"files": [], "failure": None, "reason": None, "notices": []}
    if about["not_built"] or not (made / MODEL_NAME).exists():
        record["reason"] = _why_not_made(about)
    else:
        try:
            _build_or_fall_back(context, variant, made, record)
        except (BuildError, ResourceError) as error:
            record["reason"] = f"could not be built here: {error}"
            _retry_next_time(context, error)
        except EnvironmentProblem as error:
            record["reason"] = f"not tried here, because: {error}"
            _retry_next_time(context, error)
    if record["reason"] or record["failure"]:
        context.progress.message(f"  {variant.name}: {record['reason'] or record['failure']}")
    write_json(context.folder / BUILD_NAME, record)


def _why_not_made(about: Mapping[str, Any]) -> str:
    """Why the variant stage left nothing to run, for the report."""
    if about["not_built"]:
        return str(about["not_built"])
    why = about["unavailable"]
    return f"not tried here, because: {why}" if why else f"could not be made: {about['failure']}"


def _retry_next_time(context: StageContext, error: EdgekilnError) -> None:
    """Memory, disk and a builder that died are nothing that the stage's key knows of."""
    known = isinstance(error, BuildError | MissingExtraError | DeviceError)
    if not known:
        (context.folder / RETRY_NAME).write_text(str(error), "utf-8")


def _build_or_fall_back(
    context: StageContext, variant: VariantSettings, made: Path, record: dict[str, Any]
) -> None:
    graph, request = MODEL_NAME, _request(variant, made / MODEL_NAME, variant.precision)
    notices: list[str] = []
    try:
        built = build_engines(request, context.folder, context.progress)
    except BuildError as error:
        if not (made / FALLBACK_NAME).exists():
            raise
        notices.append(
            f"{variant.name} runs in FP16, not in the INT8 that was asked for, as fallback = 'fp16' allows: {error}"
        )
        graph, request = FALLBACK_NAME, _request(variant, made / FALLBACK_NAME, Precision.FP16)
        built = build_engines(request, context.folder, context.progress)
    record |= {**built, "graph": graph, "notices": [*notices, *built["notices"]]}
    if built[
        "uninspected"
    ]:  # a full memory or an old driver: the engine is in the cache, and is only asked again
        (context.folder / RETRY_NAME).write_text(built["uninspected"], "utf-8")


def _request(variant: VariantSettings, model: Path, precision: Precision) -> EngineRequest:
    about = read_json(model.parent / ABOUT_NAME)
    flavour: Any = variant.backend  # a variant that builds engines has one of the two flavours
    return EngineRequest(
        name=variant.name,
        model=model,
        flavour=flavour,
        precision=precision,
        settings=variant.build.model_dump(mode="json"),
        products=about["products"],
        minimum_share=variant.precision_share,
        kept_share=about.get("kept_share", 0.0),
    )


def is_judged(context: StageContext, variant: VariantSettings) -> bool:
    """Whether the engine was made and could run here."""
    return (context.inputs[f"evaluate.{variant.name}"] / LOGITS_NAME).exists()


def built_files(context: StageContext, variant: VariantSettings) -> list[Path]:
    """The files that run: engines where the backend builds such, else the graph; none where there are none."""
    if variant.builds_engine:
        folder = context.inputs[f"engine.{variant.name}"]
        return [folder / name for name in read_json(folder / BUILD_NAME)["files"]]
    graph = context.inputs[f"variant.{variant.name}"] / MODEL_NAME
    return [graph] if graph.exists() else []


# --------------------------------------------------------------------------------------------------------------
# Running


def evaluate_variant(context: StageContext, variant: VariantSettings) -> None:
    """Keep the logits of the test split, or ``not-run.json`` and, where it can be had, a simulation."""
    with Child(variant.backend) as child:
        reason = _why_not_run(context, variant) or _try_engines(context, variant, child)
        if reason is not None:
            write_json(context.folder / NOT_RUN_NAME, {"reason": reason})
            _simulate(context, variant, child)


def _try_engines(context: StageContext, variant: VariantSettings, child: Child) -> str | None:
    """Keep the logits, or say why there are none."""
    try:
        _run_engines(context, variant, child)
        return None
    except EnvironmentProblem as problem:
        if isinstance(problem, BuildError) and not variant.builds_engine:
            reason = f"could not be built here: {problem}"
        else:
            built = "built, not run" if variant.builds_engine else "not tried here"
            reason = f"{built}, because: {problem}"
        context.progress.message(f"  {variant.name} was not run here: {problem}")
    except ResourceError as error:
        reason = f"could not run here: {error}"
        _retry_next_time(context, error)
    except (NonFiniteError, EngineError) as error:
        reason = f"failed while running: {error}"
        write_json(context.folder / FAILURE_NAME, {"failure": reason})
        context.progress.message(f"  {variant.name} {reason}")
    return reason


def _why_not_run(context: StageContext, variant: VariantSettings) -> str | None:
    """``None`` where there is something to run."""
    if variant.builds_engine:
        record = read_json(context.inputs[f"engine.{variant.name}"] / BUILD_NAME)
        return None if record["files"] else str(record["reason"] or record["failure"])
    about = read_json(context.inputs[f"variant.{variant.name}"] / ABOUT_NAME)
    made = built_files(context, variant) and not about["not_built"]
    return None if made else _why_not_made(about)


def _run_engines(context: StageContext, variant: VariantSettings, child: Child) -> None:
    engines = [path.read_bytes() for path in built_files(context, variant)]
    session = IsolatedSession(child, open_session, variant.backend, engines)
    try:
        answers = answer_split(context, session, "test")
        record_agreement(context.inputs["data"], context.folder, answers, session.run)
        reference = CanaryReference(
            read_logits(context.inputs["export"], CANARY_LOGITS_NAME), variant.precision
        )
        canaries, kind, profiles = session.ask(_describe_engine, variant.backend, engines, reference)
        write_json(context.folder / CANARIES_NAME, canaries)
        write_json(context.folder / KIND_NAME, kind)
        if len(profiles) > len(engines):
            write_json(context.folder / PROFILES_NAME, {"profiles": profiles})
        if sizes := session.ask(list_static_batches):
            frames = load_split(context.inputs["data"], "test").frames
            rows = ask_static_batches(session.run, sizes, frames, answers, max(canaries["tolerances"]))
            write_json(context.folder / STATIC_NAME, {"static_batches": rows})
    finally:
        session.close()
    save_logits(context.folder, answers)


def answer_split(context: StageContext, session: IsolatedSession, name: SplitName) -> Logits:
    """An engine's answers to a split, float32 (N, C)."""
    split, logits = load_split(context.inputs["data"], name), []
    for start in range(0, len(split), _BATCH):
        logits.append(session.run(np.array(split.frames[start : start + _BATCH])))
        context.progress.advance(min(start + _BATCH, len(split)), len(split), f"{name} images")
    return np.concatenate(logits)


def _describe_engine(
    session: Session, backend: Backend, engines: Sequence[bytes], reference: CanaryReference
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Of an engine that was judged: its canaries, the kind of machine that the verdict holds for, its profiles."""
    reopen = partial(open_session, backend, engines)
    canaries = record_canaries(session, lambda threads: reopen(threads=threads), reference)
    return canaries, read_kind(backend).verdict.to_dict(), list_profiles(session)


def _simulate(context: StageContext, variant: VariantSettings, child: Child) -> None:
    from edgekiln.export.precision.simulation import Simulation, simulate

    graph = context.inputs[f"variant.{variant.name}"] / MODEL_NAME
    if not graph.exists() or variant.precision is Precision.FP32:
        return
    frames: Frames = np.array(load_split(context.inputs["data"], "test").frames)
    try:
        logits: Logits = simulate(graph.read_bytes(), frames, partial(IsolatedSession, child, Simulation))
    except (EngineError, NonFiniteError, BuildError, ResourceError) as error:
        context.progress.message(f"  {variant.name} could not be simulated on the CPU: {error}")
        return
    except EdgekilnError:
        return  # no onnxruntime for the CPU here: the engine is judged where it runs
    save_logits(context.folder, logits, SIMULATED_NAME)
