"""The stages: each a function from finished folders to files in its own folder. ``run`` puts them in order.

data (-> data.source) -> finetune -> export (-> qat.NAME) -> variant.NAME -> engine.NAME -> evaluate.NAME -> benchmark
-> mlperf -> bundle
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.pipeline.data import (
    describe_unjudged,
    fingerprint_source,
    load_split,
    prepare_splits,
    read_source,
)
from edgekiln.pipeline.recipe import DataSettings, Recipe, VariantSettings
from edgekiln.pipeline.variants.engines import build_variant, evaluate_variant
from edgekiln.pipeline.variants.fast_frames import keep_scaled_frames
from edgekiln.pipeline.variants.qat import train_variant
from edgekiln.pipeline.variants.variants import make_variant
from edgekiln.pipeline.workspace.stage_files import (
    BASELINE,
    MODEL_NAME,
    StageContext,
    read_contract,
    save_logits,
    write_json,
)
from edgekiln.runtime.backends import CPU_BACKENDS, open_session
from edgekiln.runtime.spec import Precision

if TYPE_CHECKING:
    from edgekiln.benchmarks.timing.latency import BenchmarkPlan

__all__ = ["Stage", "plan_stages", "plan_training", "stage_names"]

SOURCE_STAGE = "data.source"
_WITHOUT_EFFECT = {"checkpoint_seconds", "workers", "tensorboard"}  # of [finetune], on the weights

_INPUTS_NAME = "inputs.npz"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step.

    Attributes:
        inputs: names of the stages whose output it reads.
        settings: everything else that determines its output, as JSON values.
        tools: distributions whose versions matter.
        resumable: whether an interrupted attempt is continued.
        revision: raised when the code of the stage changes what it writes.
    """

    name: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any]
    tools: tuple[str, ...]
    work: Callable[[StageContext], None]
    resumable: bool = False
    revision: int = 1


def stage_names(recipe: Recipe) -> list[str]:
    """Names of all stages in their order; looks at the recipe only."""
    variants = [variant.name for variant in recipe.variants]
    return [
        "data",
        *([SOURCE_STAGE] if _source_task(recipe) else []),
        "finetune",
        "export",
        *(f"qat.{variant.name}" for variant in recipe.variants if variant.qat),
        *(f"variant.{name}" for name in variants),
        *(f"engine.{variant.name}" for variant in recipe.variants if variant.builds_engine),
        *(f"evaluate.{name}" for name in (BASELINE, *variants)),
        *(["benchmark"] if recipe.benchmark.enabled else []),
        *(["mlperf"] if recipe.benchmark.mlperf else []),
        "bundle",
    ]


def plan_stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe, each after those that it reads."""
    *stages, judging = plan_training(recipe)
    stages.append(_export_stage(recipe))
    stages += [_qat_stage(recipe, variant) for variant in recipe.variants if variant.qat]
    stages += [_variant_stage(recipe, variant) for variant in recipe.variants]
    stages += [_engine_stage(variant) for variant in recipe.variants if variant.builds_engine]
    stages.append(judging)
    stages += [_evaluate_stage(variant) for variant in recipe.variants]
    judged = tuple(stage.name for stage in stages)
    if recipe.benchmark.enabled:
        stages.append(_benchmark_stage(recipe, judged))
    if recipe.benchmark.mlperf:
        stages.append(_mlperf_stage(recipe, judged))
    stages.append(_bundle_stage(recipe, tuple(stage.name for stage in stages)))
    return stages


def plan_training(recipe: Recipe, fingerprints: dict[str, str] | None = None) -> list[Stage]:
    """The stages that train and judge the PyTorch model; nothing is exported.

    Args:
        recipe: the wish.
        fingerprints: of the sources that earlier calls looked at; filled here. A caller that plans many runs over the
            same pictures hands in one dict, and each source is looked at once.
    """
    seen = {} if fingerprints is None else fingerprints
    stages = [_data_stage(recipe, recipe.data, "data", seen)]
    if source := _source_task(recipe):
        stages.append(_data_stage(recipe, source, SOURCE_STAGE, seen))
    judging = Stage(
        f"evaluate.{BASELINE}",
        ("data", "finetune"),
        {"backbone": recipe.backbone.model_dump(mode="json")},
        ("torch",),
        _evaluate_baseline,
    )
    return [*stages, _finetune_stage(recipe), judging]


# --------------------------------------------------------------------------------------------------------------
# data


def _source_task(recipe: Recipe) -> DataSettings | None:
    """The source task's data, prepared as the target's; ``None`` where its loss has no weight."""
    task = recipe.source_task
    if task is None or task.alpha == 0:
        return None
    shaping = {"size", "resize", "shorter_side", "interpolation"}
    return task.data.model_copy(update={key: getattr(recipe.data, key) for key in shaping})


_LISTED_BY = ("source", "path", "path_column", "label_column", "download")
"""Keys of a data section that decide which pictures a source lists."""


def _data_stage(recipe: Recipe, data: DataSettings, name: str, fingerprints: dict[str, str]) -> Stage:
    listed = data.model_dump_json(include=set(_LISTED_BY))
    if listed not in fingerprints:
        fingerprints[listed] = fingerprint_source(read_source(data))
    return Stage(
        name,
        (),
        {
            # What is trained in memory is written to disk before: the same files.
            "data": data.model_dump(mode="json") | ({"cache": "disk"} if data.cache == "memory" else {}),
            "seed": recipe.seed,
            "pictures": fingerprints[listed],
        },
        ("numpy", "Pillow"),
        lambda context: _prepare_data(context, data),
        revision=3,
    )


def _prepare_data(context: StageContext, settings: DataSettings) -> None:
    index = prepare_splits(
        settings,
        seed=context.recipe.seed,
        folder=context.folder,
        advance=lambda done, total: context.progress.advance(done, total, "pictures"),
        message=context.progress.message,
    )
    scaled = keep_scaled_frames(settings, context.folder)
    counts = ", ".join(f"{name} {len(part['keys'])}" for name, part in index["splits"].items())
    context.progress.message(f"  {len(index['classes'])} classes; {counts}")
    if scaled:
        context.progress.message(
            f"  {scaled} test pictures are JPEGs that can also be decoded at a fraction of their size"
        )
    for kind, text in (
        ("unreadable", "unreadable pictures left out"),
        ("duplicates", "pictures left out because the same bytes stand in a split that judges"),
        ("conflicts", "pictures whose bytes also stand under another label"),
        ("ignored", "files or folders passed over: no picture's ending, or no split's name"),
    ):
        entries = [e if isinstance(e, str) else e["key"] for e in index[kind]]
        if entries:
            more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
            context.progress.message(f"  {len(entries)} {text}: {', '.join(entries[:5])}{more}")
    for notice in describe_unjudged(index["unjudged"]):
        context.progress.message(f"  {notice}")


# --------------------------------------------------------------------------------------------------------------
# finetune and export


def _finetune_stage(recipe: Recipe) -> Stage:
    import torch

    settings = recipe.finetune.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    weights = Path(recipe.backbone.weights)
    return Stage(
        "finetune",
        ("data", *([SOURCE_STAGE] if _source_task(recipe) else [])),
        {
            "backbone": recipe.backbone.model_dump(mode="json"),
            "weights_file": _file_digest(weights) if weights.suffix in {".pth", ".safetensors"} else None,
            "finetune": settings,
            # The checkpoint carries the contract: other rules may give the same pixels of these pictures.
            "preparation": recipe.data.model_dump(
                mode="json", include={"size", "resize", "shorter_side", "interpolation"}
            ),
            "code": _source_digest(recipe.backbone.model),
            "source_task": recipe.source_task.model_dump(mode="json", exclude={"data"})
            if recipe.source_task
            else None,
            "teacher": recipe.teacher
            and {
                **recipe.teacher.model_dump(mode="json", exclude={"checkpoint"}),
                "sha256": _file_digest(recipe.teacher.checkpoint),
            },
            "seed": recipe.seed,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
        ("torch", "torchvision", "timm", recipe.backbone.weights.removeprefix("package:")),
        _finetune,
        resumable=True,
        revision=2,
    )


def _source_digest(reference: str) -> str | None:
    """sha256 of the module that ``module:callable`` names; ``None`` for everything else."""
    module, colon, _ = reference.partition(":")
    spec = (
        importlib.util.find_spec(module.partition(".")[0]) and importlib.util.find_spec(module)
        if colon
        else None
    )
    return _file_digest(Path(spec.origin)) if spec is not None and spec.origin else None


def _file_digest(path: Path) -> str | None:
    from edgekiln.runtime.bundles.source import hash_file

    return hash_file(path.resolve())[0] if path.is_file() else None


def _finetune(context: StageContext) -> None:
    from edgekiln.pipeline.training.finetune import begin_training, finetune
    from edgekiln.pipeline.training.job import make_job
    from edgekiln.pipeline.training.parallel import has_followers, train_together

    job = make_job(context.recipe, context.inputs, context.progress.advance)
    if has_followers():  # what fails before the first step fails before anybody waits for it
        begin_training(job, context.folder)
    with train_together(context.recipe, context.inputs) as world:
        finetune(job, context.folder, world)


def _export_stage(recipe: Recipe) -> Stage:
    return Stage(
        "export",
        ("data", "finetune"),
        {
            "export": recipe.export.model_dump(mode="json"),
            "backbone": recipe.backbone.model_dump(mode="json"),
        },
        ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
        _export,
    )


def _export(context: StageContext) -> None:
    from edgekiln.export.parity import check_parity
    from edgekiln.export.to_onnx import export_onnx
    from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
    from edgekiln.pipeline.training.probe import evaluate_model

    recipe = context.recipe
    model, contract = load_checkpoint(context.inputs["finetune"] / CHECKPOINT_NAME, recipe.backbone)
    path = context.folder / MODEL_NAME
    context.progress.advance(0, 2, "torch.onnx")
    export_onnx(model, contract, path, opset=recipe.export.opset)
    context.progress.advance(1, 2, "parity on real images")
    frames, keys = _parity_images(context.inputs["data"], recipe.export.parity_images)
    session = open_session("onnxruntime-cpu", path.read_bytes())
    parity = check_parity(
        evaluate_model(model, frames).numpy(), session.run(frames), keys, recipe.export.parity_tolerance
    )
    write_json(
        context.folder / "parity.json",
        {
            "images": parity.images,
            "max_difference": parity.max_difference,
            "logit_range": parity.logit_range,
            "worst_image": parity.worst_image,
        },
    )


def _parity_images(data: Path, wanted: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
    """Real val images; a small val split is filled up with training images."""
    val, train = load_split(data, "val"), load_split(data, "train")
    taken = min(wanted, len(val))
    rest = min(wanted - taken, len(train))
    frames = np.concatenate([val.frames[:taken], train.frames[:rest]])
    return frames, [*val.keys[:taken], *train.keys[:rest]]


# --------------------------------------------------------------------------------------------------------------
# variants and engines


def _qat_stage(recipe: Recipe, variant: VariantSettings) -> Stage:
    import torch

    assert variant.qat is not None  # asked before
    return Stage(
        f"qat.{variant.name}",
        ("data", "finetune"),
        {
            "qat": variant.qat.model_dump(mode="json"),
            # Batches, augmentation and loss are those of fine-tuning; its own steps are in the checkpoint.
            "finetune": recipe.finetune.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
            "backbone": recipe.backbone.model_dump(mode="json"),
            "calibration_images": variant.calibration_images,
            "calibration_method": variant.calibration,
            "seed": recipe.seed,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
        ("torch", "torchvision", "timm", "nvidia-modelopt"),
        lambda context: train_variant(context, variant),
        resumable=True,
    )


def _variant_stage(recipe: Recipe, variant: VariantSettings) -> Stage:
    relevant: dict[str, Any] = {"precision": variant.precision.value, "engine": variant.builds_engine}
    if variant.precision is not Precision.FP32:
        relevant |= {
            # onnxruntime's and OpenVINO's INT8 graphs are the same; what audits and searches them is not.
            "family": _FAMILIES.get(variant.backend, "gpu"),
            "calibration_images": variant.calibration_images,
            "calibration_method": variant.calibration,
            "precision_share": variant.precision_share,
            "fallback": variant.fallback,
            "fp16_tolerance": recipe.export.fp16_tolerance,
            "seed": recipe.seed,
        }
    if variant.searches:
        budget = recipe.gate.max_drop if variant.max_drop is None else variant.max_drop
        relevant["search"] = [budget, recipe.gate.confidence, variant.search_seconds]
    trained = variant.qat is not None
    if trained:
        relevant["export"] = recipe.export.model_dump(mode="json")
    return Stage(
        f"variant.{variant.name}",
        ("data", "export", *([f"qat.{variant.name}"] if trained else [])),
        relevant,
        (
            *("onnx", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt"),
            *_own_tools(variant),
            *(["torch", "timm"] if trained else []),
        ),
        lambda context: make_variant(context, variant),
        resumable=variant.searches,  # judged candidates are kept, also for a stage of other search settings
        revision=4,
    )


_FAMILIES = {"onnxruntime-cpu": "cpu", "openvino": "openvino"}


def _own_tools(variant: VariantSettings) -> tuple[str, ...]:
    """What no other backend uses: its coming and going leaves the stages of the others as they are."""
    return ("openvino",) if variant.backend == "openvino" else ()


def _engine_stage(variant: VariantSettings) -> Stage:
    return Stage(
        f"engine.{variant.name}",
        (f"variant.{variant.name}",),
        {
            "backend": variant.backend,
            "build": variant.build.model_dump(mode="json"),
            "precision_share": variant.precision_share,
            "devices": _visible_devices(),
        },
        _ENGINE_LIBRARIES,
        lambda context: build_variant(context, variant),
    )


_ENGINE_LIBRARIES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-lean", "tensorrt-rtx")


def _visible_devices() -> list[Any]:
    """GPUs and driver, in the keys of what needs them: what could not run once is tried again when it can."""
    from edgekiln.runtime.cuda.driver import probe_driver

    state = probe_driver()
    return [state.version, *([d.name, d.compute_capability, d.multiprocessors] for d in state.devices)]


# --------------------------------------------------------------------------------------------------------------
# evaluate


def _evaluate_baseline(context: StageContext) -> None:
    from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
    from edgekiln.pipeline.training.probe import evaluate_model

    model, _ = load_checkpoint(context.inputs["finetune"] / CHECKPOINT_NAME, context.recipe.backbone)
    test = load_split(context.inputs["data"], "test")
    save_logits(context.folder, evaluate_model(model, test.frames).numpy())


def _evaluate_stage(variant: VariantSettings) -> Stage:
    makers = [f"variant.{variant.name}", *([f"engine.{variant.name}"] if variant.builds_engine else [])]
    return Stage(
        f"evaluate.{variant.name}",
        ("data", *makers),
        {
            "backend": variant.backend,
            "devices": None if variant.backend in CPU_BACKENDS else _visible_devices(),
        },
        (
            "onnxruntime",
            "onnxruntime-gpu",
            "pycuda",
            "cuda-bindings",
            *_ENGINE_LIBRARIES,
            *_own_tools(variant),
        ),
        lambda context: evaluate_variant(context, variant),
        revision=3,
    )


# --------------------------------------------------------------------------------------------------------------
# benchmark


def _benchmark_stage(recipe: Recipe, inputs: tuple[str, ...]) -> Stage:
    from edgekiln.benchmarks.environment import describe_machine

    machine = describe_machine()
    own = {tool for variant in recipe.variants for tool in _own_tools(variant)}
    tools = sorted(own | ({"openvino"} & set(recipe.benchmark.peers)))
    return Stage(
        "benchmark",
        inputs,
        {
            "benchmark": recipe.benchmark.model_dump(mode="json", exclude={"mlperf", "mlperf_seconds"}),
            "backbone": recipe.backbone.model_dump(mode="json"),
            "variants": [v.name for v in recipe.variants],
            "machine": {key: machine[key] for key in ("cpu", "cores", "avx2", "vnni", "gpus")},
        },
        ("torch", "onnxruntime", "onnxruntime-gpu", *tools),
        _benchmark,
        resumable=True,
        revision=6,
    )


def _mlperf_stage(recipe: Recipe, judged: tuple[str, ...]) -> Stage:
    from edgekiln.pipeline.proof.mlperf import drive_engines

    return Stage(
        "mlperf",
        (*judged, "benchmark"),
        {
            "seconds": recipe.benchmark.mlperf_seconds,
            # An engine is driven when it passed, and verdicts depend on the gate.
            "gate": recipe.gate.model_dump(mode="json", exclude={"inconclusive"}),
            "max_drops": [variant.max_drop for variant in recipe.variants],
        },
        ("mlcommons-loadgen", "onnxruntime", "onnxruntime-gpu"),
        drive_engines,
        resumable=True,  # finished results lie beside mlperf.json until it is written
        revision=2,
    )


def _benchmark(context: StageContext) -> None:
    """Writes benchmark.json. Until then finished rounds lie beside it; an attempt that resumes finds them again."""
    from edgekiln.benchmarks.timing.contender import choose_images, save_inputs
    from edgekiln.benchmarks.timing.journal import clear_journal
    from edgekiln.benchmarks.timing.latency import run_benchmark
    from edgekiln.pipeline.proof.contenders import choose_field
    from edgekiln.pipeline.proof.limits import add_limits, read_products

    test = load_split(context.inputs["data"], "test")
    chosen = choose_images(len(test), context.recipe.benchmark.images)
    inputs = context.folder / _INPUTS_NAME
    pictures = _encoded_pictures(context.recipe, [test.keys[i] for i in chosen])
    save_inputs(inputs, np.array(test.frames[chosen]), pictures, read_contract(context).to_json())
    field = choose_field(context, chosen)
    plan, advance = _benchmark_plan(context.recipe), context.progress.advance
    timings, count = plan.count_units(len(field.contenders)), len(field.contenders)
    result = run_benchmark(
        field.contenders,
        inputs,
        plan=plan,
        folder=context.folder,
        advance=lambda done, total, note: advance(done, total + count, note),
        message=context.progress.message,
    )
    values = result.to_dict()
    add_limits(
        values,
        field.contenders,
        read_products(context),
        inputs,
        lambda done, note: advance(timings + done, timings + count, note),
    )
    values["images"] = len(chosen)
    values["peers"] = [asdict(peer) for peer in field.peers if peer.name not in result.left_out]
    values["absent_peers"] = [asdict(absent) for absent in field.absent] + [
        {"name": name, "reason": reason} for name, reason in result.left_out.items()
    ]
    write_json(context.folder / "benchmark.json", values)
    inputs.unlink()
    clear_journal(context.folder)


def _benchmark_plan(recipe: Recipe) -> BenchmarkPlan:
    from edgekiln.benchmarks.timing.latency import BenchmarkPlan

    settings = recipe.benchmark.model_dump()
    return BenchmarkPlan(**{field.name: settings[field.name] for field in fields(BenchmarkPlan)})


def _encoded_pictures(recipe: Recipe, keys: Sequence[str]) -> list[bytes]:
    """The files that the keys stand for; none where the source has arrays instead of files."""
    source = read_source(recipe.data)
    samples = {s.key: s.picture for part in (source.train, source.val or (), source.test or ()) for s in part}
    pictures = [samples.get(key) for key in keys]
    if not all(isinstance(picture, str | os.PathLike) for picture in pictures):
        return []
    return [Path(str(picture)).read_bytes() for picture in pictures]


# --------------------------------------------------------------------------------------------------------------
# bundle


def _bundle_stage(recipe: Recipe, inputs: tuple[str, ...]) -> Stage:
    from edgekiln.pipeline.proof.packing import pack_bundle, public_recipe

    return Stage(
        "bundle",
        inputs,
        {"recipe": public_recipe(recipe)},
        ("jinja2", "matplotlib"),
        pack_bundle,
        revision=4,
    )
