"""Writes one variant of a bundle as a model of a Triton model repository.

``DIR/MODEL/config.pbtxt``, ``labels.txt``, ``contract.json``, ``README.md``, ``warmup/`` and ``1/model.onnx`` or
``1/model.plan``. The engine's bytes are the bundle's own, checked against its manifest as they are read. A model's
folder appears under its name when it is complete, so a server that polls the repository loads no half of one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekiln.pipeline.shipping.triton.config import (
    LABELS_NAME,
    MODEL_FILES,
    ModelConfig,
    Platform,
    WarmupSample,
    write_config,
)
from edgekiln.pipeline.shipping.triton.warmup import WarmupWish, choose_frames
from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.backends.engine_header import read_engine_header
from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.bundles.bundle import Bundle, check_usable
from edgekiln.runtime.bundles.manifest import PREFERENCE, VariantRecord
from edgekiln.runtime.errors import EnvironmentProblem, ResourceError, UsageError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames

__all__ = ["CONTRACT_NAME", "PackedModel", "TritonWish", "pack_for_triton"]

CONTRACT_NAME = "contract.json"
_VERSION = "1"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEFAULT_MAX_BATCH = 8  # of ONNX files, which take any; as much as a Batcher's
_PLATFORMS: Mapping[Backend, Platform] = {
    "onnxruntime-cpu": "onnxruntime_onnx",
    "onnxruntime-cuda": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
}
_REMEDIES: Mapping[Backend, str] = {
    "tensorrt-rtx": "Triton runs TensorRT's own engines: add a variant with backend = 'tensorrt' to the recipe, "
    "or take one of onnxruntime",
    "openvino": "Take the onnxruntime-cpu variant of the same precision",
}


@dataclass(frozen=True, slots=True)
class TritonWish:
    """How the model is to be served.

    Attributes:
        variant: by name; ``None`` takes the first in ``PREFERENCE`` that passed, that Triton serves and that runs here.
        name: of the model; ``None`` takes the bundle's.
        max_batch: the largest batch that Triton may make; ``None`` takes all that an engine was built for, or 8.
        queue_delay_us: how long a request waits for others, microseconds.
        instances: copies that run at a time, on each GPU or on the CPU.
        warmup, pictures: see ``choose_frames``.
        allow_unverified: also a variant, named by ``variant``, whose gate did not pass.
    """

    variant: str | None = None
    name: str | None = None
    max_batch: int | None = None
    queue_delay_us: int = 1000
    instances: int = 1
    warmup: WarmupWish = "auto"
    pictures: tuple[Path, ...] = ()
    allow_unverified: bool = False


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model that was written: its name and folder, and the engine file of the bundle that it serves."""

    name: str
    folder: Path
    file: str
    config: ModelConfig


def pack_for_triton(
    bundle: Bundle, repository: Path, wish: TritonWish
) -> tuple[list[PackedModel], list[str]]:
    """Write the models of one variant, and say what somebody must know: one model, or one for each static batch size.

    Raises:
        UsageError: nothing that Triton serves, a model of that name is there, or a wish that the engine cannot fulfil.
        BundleError: the bundle was altered.
        EngineError: the engine is not what the bundle's contract describes.
        ResourceError: the repository cannot be written.
    """
    variant, notices = _choose(bundle, wish)
    models = _plan_models(bundle, variant, wish)
    frames, source = choose_frames(bundle, wish.warmup, wish.pictures, wanted=_frames_needed(models))
    notices.append(source)
    targets = [repository / model.name for model, _ in models]
    for target in targets:
        if os.path.lexists(target):
            raise UsageError(
                f"{target} exists.", hint="Give another name with --name, or remove it first.", path=target
            )
    packed: list[PackedModel] = []
    try:
        for (config, file), target in zip(models, targets, strict=True):
            complete = _add_warmup(config, frames, wish.warmup)
            _write_model(bundle, file, complete, frames, target)
            packed.append(PackedModel(config.name, target, file, complete))
    except BaseException:
        for model in packed:  # all sizes or none
            shutil.rmtree(model.folder, ignore_errors=True)
        raise
    if packed[0].config.fixed_batch is not None:
        notices.append(
            "each engine has one batch size: clients send whole batches, and Triton forms none; build the variant with "
            "a range (build.batch) for dynamic batching"
        )
    return packed, notices


# --------------------------------------------------------------------------------------------------------------
# which variant


def _choose(bundle: Bundle, wish: TritonWish) -> tuple[VariantRecord, list[str]]:
    """The variant to serve, and notices about it. Its session was opened, where that is possible here."""
    if wish.variant is not None:
        variant = bundle.variant(wish.variant)
        _check_servable(variant, wish.allow_unverified)
        problem = _try_opening(bundle, variant)
        return variant, [] if problem is None else [
            f"{variant.name} was not tried, as it cannot run here: {problem}"
        ]
    passed = [v for v in bundle.variants if v.deployable and v.backend in _PLATFORMS]
    skipped: list[str] = []
    for variant in sorted(passed, key=lambda v: PREFERENCE.index((v.backend, v.precision))):
        problem = _try_opening(bundle, variant)
        if problem is None:
            return variant, skipped
        skipped.append(
            f"{variant.name} cannot run here ({problem}): --variant {variant.name} packs it all the same"
        )
    verdicts = ", ".join(f"{v.name} on {v.backend}: {v.verdict}" for v in bundle.variants)
    raise UsageError(
        f"{bundle.path} has no variant that passed, that Triton serves, and that runs here ({verdicts}).",
        hint="Name one with --variant; --allow-unverified takes one that did not pass.",
        path=bundle.path,
    )


def _check_servable(variant: VariantRecord, allow_unverified: bool) -> None:
    if variant.backend not in _PLATFORMS:
        raise UsageError(
            f"Triton cannot serve variant {variant.name!r}: it is for {variant.backend}.",
            hint=f"{_REMEDIES[variant.backend]}.",
        )
    check_usable(variant, allow_unverified=allow_unverified)


def _try_opening(bundle: Bundle, variant: VariantRecord) -> str | None:
    """Open the engine and compare it with the contract: ``None`` where it is right, else why it cannot run here.

    Opening checks names, types and ranks of what goes in and out: those that the config promises.
    """
    engines = [bundle.read(name) for name in variant.files]
    try:
        session = open_session(variant.backend, engines)
    except (EnvironmentProblem, ResourceError) as problem:
        if variant.backend == "onnxruntime-cuda":  # the file itself can be checked without a GPU
            _check_contract(open_session("onnxruntime-cpu", engines), bundle, variant)
        return problem.message
    _check_contract(session, bundle, variant)
    return None


def _check_contract(session: Session, bundle: Bundle, variant: VariantRecord) -> None:
    got = (*session.frame_shape, session.num_classes)
    session.close()
    contract = bundle.contract
    wanted = (contract.height, contract.width, len(contract.classes))
    if got != wanted:
        raise UsageError(
            f"{variant.file} takes {got[0]} x {got[1]} pixels and gives {got[2]} logits; the bundle's contract says "
            f"{wanted[0]} x {wanted[1]} and {wanted[2]}.",
            hint="Make the bundle again.",
            path=bundle.path,
        )


# --------------------------------------------------------------------------------------------------------------
# what it becomes


def _plan_models(bundle: Bundle, variant: VariantRecord, wish: TritonWish) -> list[tuple[ModelConfig, str]]:
    """The config of each model, warm-up apart, with the bundle's file that it serves."""
    name = bundle.name if wish.name is None else wish.name
    if not _MODEL_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a model: wanted {_MODEL_NAME.pattern}.", hint="Give another --name."
        )
    if any("\n" in label or "\r" in label for label in bundle.contract.classes):
        raise UsageError(
            "A class name holds a line break, and Triton's labels stand one in a line.",
            hint="Rename the class.",
        )
    if _PLATFORMS[variant.backend] == "onnxruntime_onnx":
        batching: dict[str, Any] = {"max_batch": wish.max_batch or _DEFAULT_MAX_BATCH}
        return [(_config(name, bundle, variant, variant.files[0], wish, batching), variant.files[0])]
    models = []
    for file in variant.files:
        batching = _plan_batching(_read_profiles(variant, file), wish, file)
        own = (
            f"{name}-b{batching['fixed_batch']}"
            if "fixed_batch" in batching and len(variant.files) > 1
            else name
        )
        models.append((_config(own, bundle, variant, file, wish, batching), file))
    return models


def _read_profiles(variant: VariantRecord, file: str) -> list[dict[str, int]]:
    """Batch sizes that an engine was built for: min, opt, max of each optimization profile."""
    builds = (variant.figures.get("build") or {}).get("builds") or {}
    try:
        batch = builds[file]["options"]["batch"]
        several = batch if isinstance(batch, list) else [batch]
        return [{key: int(profile[key]) for key in ("min", "opt", "max")} for profile in several]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"The bundle does not say for which batch sizes {file} was built.",
            hint="Make the bundle again, or build the engine with `edgekiln build`.",
        ) from error


def _plan_batching(profiles: Sequence[Mapping[str, int]], wish: TritonWish, file: str) -> dict[str, Any]:
    least, most = min(p["min"] for p in profiles), max(p["max"] for p in profiles)
    if least == most:
        if wish.max_batch not in {None, most}:
            raise UsageError(f"{file} has the fixed batch size {most}.", hint="Leave --max-batch out.")
        return {"max_batch": 0, "fixed_batch": most}
    largest = wish.max_batch or most
    if largest > most:
        raise UsageError(
            f"{file} was built for batches of up to {most}, got --max-batch {largest}.",
            hint="Take less, or build it with a larger build.batch.max.",
        )
    for size in range(1, largest + 1):
        if not any(p["min"] <= size <= p["max"] for p in profiles):
            raise UsageError(
                f"{file} takes no batch of {size}, and Triton sends requests of every size up to {largest}.",
                hint="Build it with batch ranges that begin at 1 and leave no size out.",
            )
    preferred = {min(p["opt"], largest) for p in profiles if p["min"] <= largest}
    return {
        "max_batch": largest,
        "preferred_batch": tuple(sorted(preferred)),
        "profiles": len(profiles),
    }


def _config(
    name: str,
    bundle: Bundle,
    variant: VariantRecord,
    file: str,
    wish: TritonWish,
    batching: Mapping[str, Any],
) -> ModelConfig:
    contract = bundle.contract
    kind: Literal["KIND_CPU", "KIND_GPU"] = "KIND_CPU" if variant.device == "cpu" else "KIND_GPU"
    return ModelConfig(
        name=name,
        platform=_PLATFORMS[variant.backend],
        kind=kind,
        frame=(contract.height, contract.width),
        classes=len(contract.classes),
        queue_delay_us=wish.queue_delay_us,
        instances=wish.instances,
        comment=_describe_origin(bundle, variant, file),
        **batching,
    )


def _describe_origin(bundle: Bundle, variant: VariantRecord, file: str) -> list[str]:
    lines = [
        f"Made by `edgekiln pack` from {file} of the bundle {bundle.name}, manifest sha256 {bundle.digest}.",
        f"Variant {variant.name}, {variant.backend}, {variant.precision.value}, verdict {variant.verdict}.",
        f"{INPUT_NAME}: pictures, prepared as {CONTRACT_NAME} says. {OUTPUT_NAME}: one for each line of {LABELS_NAME}.",
    ]
    if _PLATFORMS[variant.backend] == "tensorrt_plan":
        version = read_engine_header(bundle.read(file)).version_text
        lines.append(
            f"The plan was built by TensorRT {version}: take the Triton release that holds this TensorRT, and a GPU of "
            "the kind that it was built on."
        )
    return lines


def _frames_needed(models: Sequence[tuple[ModelConfig, str]]) -> int:
    return max(config.fixed_batch or len({1, config.max_batch}) for config, _ in models)


def _add_warmup(config: ModelConfig, frames: Frames, wish: WarmupWish) -> ModelConfig:
    if wish == "none":
        return config
    # Triton repeats one request's data to fill a batch, and adds no batch axis where it makes no batches.
    sizes = [1] if config.fixed_batch is not None else sorted({1, config.max_batch})
    samples = [
        WarmupSample(size, f"picture-{i}.raw" if len(frames) else None) for i, size in enumerate(sizes)
    ]
    return replace(config, warmup=samples)


# --------------------------------------------------------------------------------------------------------------
# writing


def _write_model(bundle: Bundle, file: str, config: ModelConfig, frames: Frames, target: Path) -> None:
    """Write one model beside its place, and move it there in one step."""
    beside = place_beside(target)
    try:
        (beside / _VERSION).mkdir(parents=True)
        (beside / _VERSION / MODEL_FILES[config.platform]).write_bytes(bundle.read(file))
        (beside / "config.pbtxt").write_text(write_config(config), "utf-8")
        (beside / LABELS_NAME).write_text("".join(f"{c}\n" for c in bundle.contract.classes), "utf-8")
        (beside / CONTRACT_NAME).write_text(f"{bundle.contract.to_json()}\n", "utf-8")
        (beside / "README.md").write_text(_describe_model(config), "utf-8")
        _write_frames(config, frames, beside / "warmup")
        beside.rename(target)
    except OSError as error:
        raise ResourceError(
            f"The model repository {target.parent} cannot be written: {error.strerror or error}.",
            hint="Choose a folder of your own with --triton, on a disk with room.",
            path=error.filename or target,
        ) from error
    finally:
        remove(beside)


def _write_frames(config: ModelConfig, frames: Frames, folder: Path) -> None:
    """One raw file for each sample: a frame, or as many as the engine's one batch holds, repeated where too few."""
    for number, sample in enumerate(config.warmup):
        if sample.file is None:
            continue
        folder.mkdir(exist_ok=True)
        chosen = [frames[(number + i) % len(frames)] for i in range(config.fixed_batch or 1)]
        (folder / sample.file).write_bytes(b"".join(frame.tobytes() for frame in chosen))


def _describe_model(config: ModelConfig) -> str:
    shape = ", ".join(map(str, config.input_dims))
    batch = f"N x ({shape}), N <= {config.max_batch}" if config.max_batch else f"({shape})"
    origin = "\n".join(f"- {line}" for line in config.comment)
    return (
        f"# {config.name}\n\n{origin}\n\n"
        f"Input `{INPUT_NAME}`: uint8 {batch}, RGB, as `edgekiln.runtime.prepare(picture, contract)` makes it with\n"
        f"`{CONTRACT_NAME}`. Output `{OUTPUT_NAME}`: float32, one logit per class of `{LABELS_NAME}`. Normalization is "
        "part of the model.\n\n"
        "Serve the folder above this one: `tritonserver --model-repository=FOLDER`.\n"
    )
