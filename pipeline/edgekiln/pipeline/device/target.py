"""Builds a bundle's engines on the machine that will run them, and judges them there against the parent's PyTorch.

The result is a derived bundle, which names its parent's digest. Pictures are matched with the parent's test split by
the sha256 of their bytes, so an engine is judged on exactly the images and logits that the parent recorded. Needs
numpy, Pillow and TensorRT: neither torch, onnx nor pydantic.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine
from edgekiln.benchmarks.judging.judging import Reference, judge_answers, read_answers
from edgekiln.pipeline.device.building import EngineRequest, build_engines, plan_builds
from edgekiln.pipeline.shipping.privacy import machine_folders, strip_folders
from edgekiln.pipeline.shipping.sbom import write_sbom
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.judged_with import JUDGED_ON
from edgekiln.runtime.bundles.manifest import VariantRecord, write_manifest
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import (
    BuildError,
    BundleError,
    DataError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ImageError,
    NonFiniteError,
    ResourceError,
    UsageError,
)
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.spec import Frames, Logits, Precision

__all__ = ["TargetRequest", "build_on_target"]

_BATCH = 64
_MAX_PICTURE_BYTES = 64 * 2**20
_DEFAULT_GATE = {"metric": "top1", "max_drop": 0.01, "confidence": 0.95}
_DEFAULT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """What to build where.

    Attributes:
        data: folder with (some of) the parent's test pictures, in any layout; ``None`` leaves the engines unverified.
        variants: names; empty is every variant of the parent that engines can be built from.
        backend: another flavour than the variant's own; ``None`` keeps it.
        settings: overrides of the variant's ``build`` section.
    """

    bundle: Path
    out: Path
    data: Path | None = None
    variants: tuple[str, ...] = ()
    backend: Flavour | None = None
    settings: Mapping[str, Any] | None = None


def build_on_target(request: TargetRequest, progress: Progress) -> dict[str, Any]:
    """Build, audit and judge; write the derived bundle to ``request.out``. Returns its manifest's content.

    Raises:
        UsageError: ``out`` is in use, or there is no such variant.
        BundleError: the parent was altered.
        DataError: none of the pictures is one of the parent's test pictures.
        EnvironmentProblem: no engine could be built: the library or GPU is missing, or the build failed.
    """
    out = request.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise _in_use(out)
    if request.bundle.resolve() in (out, *out.parents):
        raise UsageError(
            f"{out} lies inside the bundle that it is built from.", hint="Give --out another place.", path=out
        )
    parent = open_bundle(request.bundle)
    chosen = _choose(parent, request)
    pictures = None if request.data is None else _collect(parent, request.data, progress)
    beside = place_beside(out)
    beside.mkdir(parents=True)
    try:
        rows = _make_variants(parent, chosen, request, pictures, beside, progress)
        content = _write(parent, rows, beside)
        try:
            if out.exists():
                out.rmdir()  # an empty folder that the caller made
            beside.rename(out)
        except OSError as error:  # another build was faster
            raise _in_use(out) from error
    finally:
        remove(beside)
    return content


def _in_use(out: Path) -> UsageError:
    return UsageError(f"{out} is in use.", hint="Give --out a folder that does not exist.", path=out)


def _make_variants(
    parent: Bundle,
    chosen: Sequence[VariantRecord],
    request: TargetRequest,
    pictures: _Pictures | None,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """All of them; one that cannot be built leaves the others alone, and raises only where it would be the last."""
    rows: list[dict[str, Any]] = []
    failures: list[EdgekilnError] = []
    for variant in chosen:
        try:
            rows.append(_make_variant(parent, variant, request, pictures, folder, progress))
        except (EnvironmentProblem, ResourceError) as error:
            failures.append(error)
            progress.message(f"{variant.name} could not be built here: {error}")
            rows.append(_not_built(variant, request, error))
    if len(failures) == len(chosen):
        raise failures[0]
    return rows


def _not_built(variant: VariantRecord, request: TargetRequest, error: EdgekilnError) -> dict[str, Any]:
    return {
        **_identity(variant, request),
        "file": None,
        "files": [],
        "verdict": "not-run",
        "reason": f"could not be built here: {error}",
        "figures": _inherited(variant),
    }


def _identity(variant: VariantRecord, request: TargetRequest) -> dict[str, Any]:
    """What a row takes from the parent's; another build may begin from it."""
    return {
        "name": variant.name,
        "backend": request.backend or variant.backend,
        "precision": _graph_precision(variant).value,
        "required": variant.required,
        "source": variant.source,
        "fallback_source": variant.fallback_source,
    }


def _inherited(variant: VariantRecord) -> dict[str, Any]:
    return {
        "products": variant.figures.get("products") or {},
        "asked_precision": _graph_precision(variant).value,
    }


def _graph_precision(variant: VariantRecord) -> Precision:
    """Of ``source``; an engine of the parent may have fallen back to another."""
    return Precision(variant.figures.get("asked_precision", variant.precision.value))


def _choose(parent: Bundle, request: TargetRequest) -> list[VariantRecord]:
    buildable = [v for v in parent.variants if v.source is not None]
    if request.variants:
        buildable = [parent.variant(name) for name in dict.fromkeys(request.variants)]
    if not buildable:
        raise UsageError(
            f"{parent.path} holds no graph to build an engine from.",
            hint="Its recipe needs a variant with backend = 'tensorrt' or 'tensorrt-rtx'; it need not build there.",
            path=parent.path,
        )
    for variant in buildable:
        if variant.source is None:
            raise UsageError(
                f"Variant {variant.name!r} is run by {variant.backend}: there is no engine to build."
            )
    return buildable


# --------------------------------------------------------------------------------------------------------------
# One variant


def _make_variant(
    parent: Bundle,
    variant: VariantRecord,
    request: TargetRequest,
    pictures: _Pictures | None,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Build one variant's engines into ``folder``; returns its entry of the manifest, with ``logits`` for `_write`."""
    assert variant.source is not None  # only such were chosen
    for name in (variant.source, variant.fallback_source):
        if name is not None:
            (folder / name).write_bytes(parent.read(name))
    build, gate = _read_wishes(parent, variant, request, folder)
    with progress.stage(variant.name):
        progress.message(f"{variant.name}: building with {build.flavour} ...")
        built = _build_or_fall_back(build, variant, folder, progress)
        progress.message(f"{variant.name}: {_tell_build(built)}")
        engines = [folder / file for file in built["files"]]
        judged, logits = _judge(build.flavour, engines, pictures, gate, built["failure"])
    figures = {key: value for key, value in judged.items() if key not in {"verdict", "reason", "flips"}}
    return {
        **_identity(variant, request),
        "precision": built["precision"],
        "file": built["files"][0],
        "files": built["files"],
        "verdict": judged["verdict"],
        "reason": judged["reason"],
        "figures": {**figures, **_inherited(variant), "build": built, "audit": built["audit"]},
        "logits": logits,
    }


def _read_wishes(
    parent: Bundle, variant: VariantRecord, request: TargetRequest, folder: Path
) -> tuple[EngineRequest, dict[str, Any]]:
    """What the parent's manifest and the caller wish for; raises BundleError where the manifest makes no sense."""
    assert variant.source is not None
    flavour: Any = request.backend or variant.backend
    try:
        wish = _wish(parent, variant.name)
        share = wish.get("min_precision_share")
        build = EngineRequest(
            name=variant.name,
            model=folder / variant.source,
            flavour=flavour,
            precision=_graph_precision(variant),
            settings=_merge_settings(flavour, wish.get("build") or {}, request.settings or {}),
            products={str(k): int(v) for k, v in _inherited(variant)["products"].items()},
            minimum_share=_DEFAULT_SHARE if share is None else float(share),
        )
        plan_builds(build)
        gate = {**_DEFAULT_GATE, **(parent.manifest.get("gate") or {})}
        if wish.get("max_drop") is not None:
            gate["max_drop"] = float(wish["max_drop"])
        return build, gate
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BundleError(
            f"{parent.path / 'manifest.json'}: the settings of {variant.name!r} cannot be used: {error}.",
            path=parent.path,
        ) from error


def _wish(parent: Bundle, name: str) -> Mapping[str, Any]:
    """The variant's part of the recipe that made the parent."""
    recipe = (parent.manifest.get("provenance") or {}).get("recipe") or {}
    variants = recipe.get("variants")
    entries = [v for v in variants if isinstance(v, dict)] if isinstance(variants, list) else []
    return next((v for v in entries if v.get("name") == name), {})


def _merge_settings(
    flavour: Flavour, settings: Mapping[str, Any], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """A recipe's settings without those that another flavour alone knows, and the caller's own over them."""
    foreign = {
        "tensorrt": {"capabilities"},
        "tensorrt-rtx": {"version_compatible", "hardware_compatibility", "typing"},
    }[flavour]
    known = {key: value for key, value in settings.items() if key not in foreign}
    if "batch" in wishes:
        known.pop("static_batches", None)  # a range instead of the recipe's sizes
    return known | dict(wishes)


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


def _judge(
    flavour: Any,
    engines: Sequence[Path],
    pictures: _Pictures | None,
    gate: Mapping[str, Any],
    failure: str | None,
) -> tuple[dict[str, Any], Logits | None]:
    """The verdict and its figures; and the logits, where they are of all the parent's test pictures."""
    if pictures is None:
        reason = failure or "built on this machine without pictures to judge it on; --data FOLDER judges it"
        return {"verdict": "fail" if failure else "unverified", "reason": reason}, None
    try:
        logits = _run(flavour, engines, pictures.frames)
    except (EnvironmentProblem, ResourceError) as problem:
        return {"verdict": "not-run", "reason": f"built, not run, because: {problem}"}, None
    except (NonFiniteError, EngineError) as error:
        return {"verdict": "fail", "reason": f"failed while running: {error}"}, None
    judged = judge_answers(
        pictures.reference,
        logits,
        max_drop=gate["max_drop"],
        confidence=gate["confidence"],
        metric=gate["metric"],
        failure=failure,
    )
    judged["judged_images"] = {"here": len(logits), "parent": pictures.known}
    return judged, logits if len(logits) == pictures.known else None


def _run(flavour: Any, engines: Sequence[Path], frames: Frames) -> Logits:
    session = open_session(flavour, [engine.read_bytes() for engine in engines])
    try:
        return np.concatenate([session.run(frames[i : i + _BATCH]) for i in range(0, len(frames), _BATCH)])
    finally:
        session.close()


# --------------------------------------------------------------------------------------------------------------
# Pictures


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Frames uint8 (N, H, W, 3) of those test pictures that were found, and what PyTorch said of them.

    ``known`` is how many test pictures the parent was judged on.
    """

    frames: Frames
    reference: Reference
    known: int


def _collect(parent: Bundle, folder: Path, progress: Progress) -> _Pictures:
    """Find the parent's test pictures below ``folder`` by the sha256 of their bytes."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", path=folder)
    answers = read_answers(parent)
    index = {digest: i for i, digest in enumerate(answers.digests)}
    found: dict[int, Path] = {}
    others = 0
    with progress.stage("pictures"):
        paths = sorted(_walk(folder))
        for number, path in enumerate(paths, start=1):
            position = index.get(_digest(path))
            if position is None:
                others += 1
            else:
                found.setdefault(position, path)
            progress.advance(number, len(paths), "looking for the parent's test pictures")
    progress.message(
        f"pictures: {len(found)} of the parent's {len(index)} test pictures found, {others} other files"
    )
    if not found:
        raise DataError(
            f"None of the {others} files below {folder} is one of the {len(index)} pictures that the parent was "
            "judged on.",
            hint="Copy the original files of its test split here, byte for byte; or leave --data out.",
            path=folder,
        )
    positions = sorted(found)
    frames = _prepare_all(parent.contract, [found[i] for i in positions])
    keys = [str(found[i].relative_to(folder)) for i in positions]
    reference = Reference(
        answers.baseline[positions], answers.labels[positions], keys, parent.contract.classes
    )
    return _Pictures(frames, reference, len(answers.digests))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, through linked folders too; a link that leads back is followed once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place) / file for file in files)


def _digest(path: Path) -> str:
    """sha256 of a file; empty for what cannot be one of the pictures: too large, unreadable, a pipe."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_PICTURE_BYTES:
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _prepare_all(contract: Contract, paths: Iterable[Path]) -> Frames:
    try:
        return np.stack([prepare(path, contract) for path in paths])
    except ImageError as error:
        raise DataError(
            f"A test picture of the parent cannot be decoded here: {error.message}",
            hint="Its bytes are right, so this machine's Pillow lacks its format.",
            path=error.path,
        ) from error


# --------------------------------------------------------------------------------------------------------------
# The derived bundle


def _write(parent: Bundle, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Add what the parent has for CPUs, its logits and the manifest."""
    built = {row["name"] for row in rows}
    carried = [
        entry
        for entry, variant in zip(parent.manifest["variants"], parent.variants, strict=True)
        if variant.device == "cpu" and variant.name not in built
    ]
    for name in sorted({name for entry in carried for name in parent.variant(entry["name"]).files}):
        (folder / name).write_bytes(parent.read(name))
    answers = {f"logits.{row['name']}": row.pop("logits", None) for row in rows}
    _write_answers(parent, answers, {entry["name"] for entry in carried}, folder)
    _remove_leftovers(rows, carried, folder, parent.manifest["logits"])
    content = {
        "name": parent.name,
        "contract": parent.manifest["contract"],
        "contract_digest": parent.contract.digest,
        "parent": {"digest": parent.digest, "name": parent.name, "machine": parent.manifest.get("machine")},
        "baseline": parent.manifest.get("baseline"),
        "gate": parent.manifest.get("gate"),
        "logits": parent.manifest["logits"],
        # What libraries said on this machine names its folders.
        "variants": [
            *strip_folders(rows, machine_folders(folder, parent.path)),
            *(_carry(entry, parent.manifest.get("machine")) for entry in carried),
        ],
        "provenance": parent.manifest.get("provenance"),
        "machine": describe_machine(),
    }
    write_sbom(folder, {**content, "recipe": (content["provenance"] or {}).get("recipe")})
    write_manifest(folder, content)
    return content


def _carry(entry: Mapping[str, Any], machine: object) -> dict[str, Any]:
    """A variant of the parent as it is, with the machine that it was judged on, which is not this one."""
    figures = {JUDGED_ON: machine, **entry["figures"]}  # what is carried a second time has its own already
    return {**entry, "figures": figures}


def _write_answers(
    parent: Bundle, answers: Mapping[str, Logits | None], carried: set[str], folder: Path
) -> None:
    """The parent's recorded answers without those of engines that were built anew, whose own take their place."""
    kept = {"image_sha256", "labels", "logits.baseline", *(f"logits.{name}" for name in carried)}
    name = parent.manifest["logits"]
    with np.load(io.BytesIO(parent.read(name)), allow_pickle=False) as arrays:
        values: dict[str, Any] = {key: arrays[key] for key in arrays.files if key in kept}
    values |= {key: own for key, own in answers.items() if own is not None}
    np.savez(folder / name, **values)


def _remove_leftovers(
    rows: Sequence[Mapping[str, Any]], carried: Sequence[Mapping[str, Any]], folder: Path, logits: str
) -> None:
    """Files of a build that failed half-way belong to no row."""
    named: set[Any] = {logits}
    for row in (*rows, *carried):
        named |= {*(row.get("files") or ()), row.get("file"), row.get("source"), row.get("fallback_source")}
    for entry in folder.iterdir():
        if entry.name not in named:
            entry.unlink()
