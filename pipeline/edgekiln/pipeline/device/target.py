"""Builds a bundle's engines on the machine that will run them, and judges them there against the parent's PyTorch.

The result is a derived bundle. What is asked for is read in ``request.py``, the pictures are found in ``pictures.py``,
engines are built by ``building.py`` and judged by ``judging.py``, ``derived_bundle.py`` writes. Needs numpy, Pillow and
TensorRT: neither torch, onnx nor pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekiln.pipeline.device.building import EngineRequest, build_engines
from edgekiln.pipeline.device.canary_records import CanaryReference, read_reference
from edgekiln.pipeline.device.derived_bundle import check_place, publish, write_derived
from edgekiln.pipeline.device.judging import JudgedBy, judge_engines
from edgekiln.pipeline.device.pictures import KnownPictures, find_pictures
from edgekiln.pipeline.device.request import (
    TargetRequest,
    choose_variants,
    graph_precision,
    inherited_figures,
    read_wishes,
)
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import BuildError, EdgekilnError, EnvironmentProblem, ResourceError
from edgekiln.runtime.spec import Precision

__all__ = ["build_on_target", "describe_unbuilt", "make_variant"]


def build_on_target(request: TargetRequest, progress: Progress) -> dict[str, Any]:
    """Build, audit and judge; write the derived bundle to ``request.out``. Returns its manifest's content.

    Raises:
        UsageError: ``out`` is in use, or there is no such variant.
        BundleError: the parent was altered.
        DataError: none of the pictures is one of the parent's test pictures.
        EnvironmentProblem: no engine could be built: the library or GPU is missing, or the build failed.
    """
    out = check_place(request.out, request.bundle)
    parent = open_bundle(request.bundle)
    chosen = choose_variants(parent, request)
    beside = place_beside(out)
    beside.mkdir(parents=True)
    try:
        pictures = None if request.data is None else find_pictures(parent, request.data, progress, beside)
        rows = _make_variants(parent, chosen, request, pictures, beside, progress)
        content = write_derived(parent, rows, beside)
        publish(beside, out)
    finally:
        remove(beside)
    return content


def _make_variants(
    parent: Bundle,
    chosen: Sequence[VariantRecord],
    request: TargetRequest,
    pictures: KnownPictures | None,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """All of them; one that cannot be built leaves the others alone, and raises only where it would be the last."""
    rows: list[dict[str, Any]] = []
    failures: list[EdgekilnError] = []
    for variant in chosen:
        try:
            rows.append(make_variant(parent, variant, request, pictures, folder, progress))
        except (EnvironmentProblem, ResourceError) as error:
            failures.append(error)
            progress.message(f"{variant.name} could not be built here: {error}")
            rows.append(describe_unbuilt(variant, request, f"could not be built here: {error}"))
    if len(failures) == len(chosen):
        raise failures[0]
    return rows


def make_variant(
    parent: Bundle,
    variant: VariantRecord,
    request: TargetRequest,
    pictures: KnownPictures | None,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Build one variant's engines into ``folder``, and judge them.

    Returns:
        Its row: its entry of the manifest, with its ``flips``, and its ``logits`` of the pictures that were found.

    Raises:
        EnvironmentProblem, ResourceError: it cannot be built here.
    """
    assert variant.source is not None  # only such were chosen
    for name in (variant.source, variant.fallback_source):
        if name is not None:
            (folder / name).write_bytes(parent.read(name))
    build, gate = read_wishes(parent, variant, request, folder)
    with progress.stage(variant.name):
        progress.message(f"{variant.name}: building with {build.flavour} ...")
        built = _build_or_fall_back(build, variant, folder, progress)
        progress.message(f"{variant.name}: {_tell_build(built)}")
        engines = [folder / file for file in built["files"]]
        reference = CanaryReference(read_reference(parent), Precision(built["precision"]))
        judged_by = JudgedBy(gate, reference, failure=built["failure"])
        judged, logits = judge_engines(build.flavour, engines, pictures, judged_by, progress)
    apart = {"verdict", "reason", "flips", "canaries"}
    figures = {key: value for key, value in judged.items() if key not in apart}
    return {
        **_identity(variant, request),
        "precision": built["precision"],
        "file": built["files"][0],
        "files": built["files"],
        "verdict": judged["verdict"],
        "reason": judged["reason"],
        "canaries": judged.get("canaries"),
        "figures": {**figures, **inherited_figures(variant), "build": built, "audit": built["audit"]},
        "flips": judged.get("flips", []),
        "logits": logits,
    }


def _build_or_fall_back(
    build: EngineRequest, variant: VariantRecord, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Build; an INT8 graph that does not is replaced by its FP16 one, where the recipe allows and the parent has it."""
    try:
        return build_engines(build, folder, progress)
    except BuildError as error:
        if variant.fallback_source is None:
            raise
        wanted = "not in the INT8 that was asked for, as fallback = 'fp16' allows"
        notice = f"{variant.name} runs in FP16, {wanted}: {error}"
        graph = folder / variant.fallback_source
        built = build_engines(replace(build, model=graph, precision=Precision.FP16), folder, progress)
        return {**built, "notices": [notice, *built["notices"]]}


def _tell_build(built: Mapping[str, Any]) -> str:
    seconds = sum(build["seconds"] for build in built["builds"].values())
    version = next(iter(built["builds"].values()))["version"]
    return f"{len(built['files'])} engine(s) by version {version}, {seconds:.1f} s when they were built"


def describe_unbuilt(variant: VariantRecord, request: TargetRequest, reason: str) -> dict[str, Any]:
    """The row of a variant whose engine was not built, and why."""
    return {
        **_identity(variant, request),
        "file": None,
        "files": [],
        "verdict": "not-run",
        "reason": reason,
        "figures": inherited_figures(variant),
    }


def _identity(variant: VariantRecord, request: TargetRequest) -> dict[str, Any]:
    """What a row takes from the parent's; another build may begin from it."""
    return {
        "name": variant.name,
        "backend": request.backend or variant.backend,
        "precision": graph_precision(variant).value,
        "required": variant.required,
        "source": variant.source,
        "fallback_source": variant.fallback_source,
    }
