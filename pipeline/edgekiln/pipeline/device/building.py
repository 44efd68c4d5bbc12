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
from edgekiln.export.engines.tensorrt import BuiltEngine, build_engine, inspect_engine
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
        kept_share: of the MACs, that the graph of INT8 has in float on purpose, 0 to 1: what the search reported.
    """

    name: str
    model: Path
    flavour: Flavour
    precision: Precision
    settings: Mapping[str, Any]
    products: Mapping[str, int]
    minimum_share: float
    kept_share: float = 0.0

    @property
    def asked_share(self) -> float:
        """Of the MACs, that the audit asks for: of an INT8 graph, nothing of what was left in float on purpose."""
        kept = self.kept_share if self.precision is Precision.INT8 else 0.0
        return self.minimum_share * (1 - kept)


def plan_builds(request: EngineRequest) -> dict[str, BuildOptions]:
    """Options by file name: NAME.engine for ranges of batch sizes, or NAME.b8.engine for each static size."""
    settings, name = request.settings, request.name
    profiles: dict[str, BatchProfile | tuple[BatchProfile, ...]] = {
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
            max_aux_streams=settings.get("max_aux_streams"),
            avg_timing_iterations=settings.get("avg_timing_iterations"),
            sparsity=settings.get("sparsity", False),
            tiling=settings.get("tiling", "none"),
        )
        for file, profile in (profiles or {f"{name}.engine": _read_profiles(settings.get("batch"))}).items()
    }


def _read_profiles(batch: Any) -> BatchProfile | tuple[BatchProfile, ...]:
    """Of the key ``batch``: a table is one profile, a list of tables several."""
    if isinstance(batch, list | tuple):
        several = tuple(BatchProfile(**sizes) for sizes in batch)
        return several[0] if len(several) == 1 else several
    return BatchProfile(**batch or {})


def build_engines(request: EngineRequest, folder: Path, progress: Progress) -> dict[str, Any]:
    """Build all engines of a request into ``folder``, and audit them.

    Returns:
        JSON values: ``files``, ``builds``, ``precision``, ``audit``, ``notices``; ``failure``, which tells where they
        compute with too little of the precision that was asked for; and ``uninspected``, which tells why the library
        could not be asked for all that they compute with, where that was needed.

    Raises:
        MissingExtraError, DeviceError: it cannot be tried here.
        BuildError, ResourceError: it was tried, and failed.
    """
    cache = EngineCache()
    engines = _build_all(request, cache, folder, progress)
    # Static engines are of one graph and one set of options: the first tells for all.
    first = next(iter(engines.values()))
    audit, failure, uninspected = _audit(first, request, cache, progress)
    return {
        "files": list(engines),
        "builds": {name: engine.to_dict() for name, engine in engines.items()},
        "precision": request.precision.value,
        "audit": audit,
        "failure": failure,
        "uninspected": uninspected,
        "notices": _notices(request, first, audit, uninspected),
    }


def _build_all(
    request: EngineRequest, cache: EngineCache, folder: Path, progress: Progress
) -> dict[str, BuiltEngine]:
    """The engines by file name, each written into ``folder``."""
    engines: dict[str, BuiltEngine] = {}
    for name, options in plan_builds(request).items():
        engines[name] = build_engine(
            request.model.read_bytes(),
            options,
            cache,
            advance=progress.advance,
            tell=lambda text: progress.message(f"  {text}"),
        )
        (folder / name).write_bytes(engines[name].data)
    return engines


def _audit(
    engine: BuiltEngine, request: EngineRequest, cache: EngineCache, progress: Progress
) -> tuple[dict[str, Any] | None, str | None, str | None]:
    """What the engine computes with, by the strongest evidence at hand.

    TensorRT-RTX's plans tell of themselves, which was proven on real ones; the inspector is asked where a plan does
    not. What a network declares is the weakest evidence and is asked last: it may not refuse what a stronger one
    confirms.

    Returns:
        The audit, or its failure; and why the library could not be asked for all of it, where it had to be.
    """
    judged = (request.products, request.precision, request.asked_share)
    uninspected = None
    try:
        if request.flavour == "tensorrt-rtx":
            achieved = audit_rtx_plan(engine.data, *judged)
            if achieved.evidence != "none":
                return achieved.to_dict(), None, None
        inspection = inspect_engine(engine, cache, tell=lambda text: progress.message(f"  {text}"))
        uninspected = inspection.note
        if uninspected:
            progress.message(f"  {request.name}: the engine was not inspected fully: {uninspected}")
        if inspection.layers is not None:
            audit = audit_engine(parse_inspector(inspection.layers), *judged)
        else:
            audit = audit_declared(engine.declared, *judged)
        return audit.to_dict(), None, uninspected
    except PrecisionError as error:
        why = f" The engine was not inspected fully: {uninspected}." if uninspected else ""
        return None, f"{error}{why}", uninspected  # the engines are kept for a look


def _notices(
    request: EngineRequest, engine: BuiltEngine, audit: Mapping[str, Any] | None, uninspected: str | None
) -> list[str]:
    """What the first line of a report must say."""
    warnings = [note for note in (audit or {}).get("notes", ()) if note.startswith("Warning")]
    if request.flavour == "tensorrt-rtx" and request.precision is Precision.INT8 and not warnings:
        # A plan without text does not tell of it.
        warnings = ["Warning: TensorRT-RTX has no fused INT8 convolutions: FP16 is likely faster; measure."]
    notices = [f"{request.name}: {warning}" for warning in warnings]
    if uninspected:
        notices.append(
            f"{request.name} was not inspected fully, and the audit may know too little: {uninspected}"
        )
    if engine.options.typing == "weak":
        notices.append(
            f"{request.name} is weakly typed: the library was free to compute in FP32; the audit says what it chose."
        )
    return notices
