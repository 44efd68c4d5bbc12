"""Builds and audits the engines of one graph. Used by a recipe's run and by ``edgekiln build`` on a target.

Needs neither torch, onnx nor pydantic: settings are plain JSON values, as a recipe or a manifest holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.export.audits.engine_layers.verdict import audit_engine
from edgekiln.export.audits.tensorrt import audit_declared, audit_rtx_plan
from edgekiln.export.engines.cache import EngineCache
from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.export.engines.tensorrt import BuiltEngine, build_engine
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision

__all__ = ["EngineRequest", "build_engines", "plan_builds"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What to build.

    Attributes:
        name: begins the names of the engine files.
        model: the ONNX file.
        settings: the ``build`` section of a variant, as JSON values; what is absent has its default.
        products: MACs by ONNX node, for the audit.
        minimum_share: of the MACs, that must run in ``precision``.
    """

    name: str
    model: Path
    flavour: Flavour
    precision: Precision
    settings: Mapping[str, Any]
    products: Mapping[str, int]
    minimum_share: float


def plan_builds(request: EngineRequest) -> dict[str, BuildOptions]:
    """Options by file name: NAME.engine for a range of batch sizes, or NAME.b8.engine for each static size."""
    settings, name = request.settings, request.name
    profiles = {
        f"{name}.b{size}.engine": BatchProfile(size, size, size)
        for size in settings.get("static_batches") or ()
    }
    workspace = settings.get("workspace_mib")
    return {
        file: BuildOptions(
            flavour=request.flavour,
            precision=request.precision,
            batch=profile,
            workspace_bytes=None if workspace is None else workspace * 2**20,
            optimization_level=settings.get("optimization_level"),
            tf32=settings.get("tf32", False),
            version_compatible=settings.get("version_compatible", False),
            hardware_compatibility=settings.get("hardware_compatibility", "none"),
            capabilities=tuple(settings.get("capabilities") or ()),
            typing=settings.get("typing", "strong"),
        )
        for file, profile in (
            profiles or {f"{name}.engine": BatchProfile(**settings.get("batch") or {})}
        ).items()
    }


def build_engines(request: EngineRequest, folder: Path, progress: Progress) -> dict[str, Any]:
    """Build all engines of a request into ``folder``, and audit them.

    Returns:
        JSON values: ``files``, ``builds``, ``precision``, ``audit``, ``notices``, and ``failure``, which tells where
        they compute with too little of the precision that was asked for.

    Raises:
        MissingExtraError, DeviceError: it cannot be tried here.
        BuildError, ResourceError: it was tried, and failed.
    """
    builds, cache = plan_builds(request), EngineCache()
    engines: list[BuiltEngine] = []
    for name, options in builds.items():
        engine = build_engine(
            request.model.read_bytes(),
            options,
            cache,
            advance=progress.advance,
            tell=lambda text: progress.message(f"  {text}"),
        )
        (folder / name).write_bytes(engine.data)
        engines.append(engine)
    audit: dict[str, Any] | None = None
    failure = None
    try:
        # Static engines are of one graph and one set of options: the first tells for all.
        audit = _audit(engines[0], request)
    except PrecisionError as error:
        failure = str(error)  # the engines are kept for a look
    return {
        "files": list(builds),
        "builds": {name: engine.to_dict() for name, engine in zip(builds, engines, strict=True)},
        "precision": request.precision.value,
        "audit": audit,
        "failure": failure,
        "notices": _notices(request, engines[0], audit),
    }


def _audit(engine: BuiltEngine, request: EngineRequest) -> dict[str, Any]:
    """What the engine computes with, by the best evidence at hand; raises PrecisionError where it is too little."""
    judged = (request.products, request.precision, request.minimum_share)
    declared = audit_declared(engine.declared, *judged)
    if engine.layers is not None:
        return audit_engine(parse_inspector(engine.layers), *judged).to_dict()
    if request.flavour == "tensorrt-rtx":
        achieved = audit_rtx_plan(engine.data, *judged)
        if achieved.evidence != "none":
            return achieved.to_dict()
    return declared.to_dict()


def _notices(request: EngineRequest, engine: BuiltEngine, audit: Mapping[str, Any] | None) -> list[str]:
    """What the first line of a report must say."""
    warnings = [note for note in (audit or {}).get("notes", ()) if note.startswith("Warning")]
    if request.flavour == "tensorrt-rtx" and request.precision is Precision.INT8 and not warnings:
        # With a GPU the inspector is asked, and the plan's text, which tells of it, is not.
        warnings = ["Warning: TensorRT-RTX has no fused INT8 convolutions: FP16 is likely faster; measure."]
    notices = [f"{request.name}: {warning}" for warning in warnings]
    if engine.options.typing == "weak":
        notices.append(
            f"{request.name} is weakly typed: the library was free to compute in FP32; the audit says what it chose."
        )
    return notices
