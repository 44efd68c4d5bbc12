"""What determines the output of each kind of stage, besides the stages that it reads: the values in a stage's key.

A function is given the wish and the stage's subject, and returns JSON values, or names of distributions.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

from edgekiln.pipeline.data import fingerprint_source, read_source
from edgekiln.pipeline.recipe import DataSettings, Recipe, VariantSettings
from edgekiln.pipeline.recipe.variants import AUTO_SECONDS
from edgekiln.pipeline.stages.stage import Listed, Wish
from edgekiln.pipeline.workspace.data_memory import remember_data
from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.spec import Precision

__all__ = [
    "ENGINE_LIBRARIES",
    "listed_of_data",
    "settings_of_baseline",
    "settings_of_benchmark",
    "settings_of_bundle",
    "settings_of_data",
    "settings_of_engine",
    "settings_of_evaluate",
    "settings_of_evidence",
    "settings_of_export",
    "settings_of_finetune",
    "settings_of_mlperf",
    "settings_of_qat",
    "settings_of_variant",
    "tools_of_benchmark",
    "tools_of_evaluate",
    "tools_of_evidence",
    "tools_of_variant",
]

_WITHOUT_EFFECT = {"checkpoint_seconds", "workers", "tensorboard"}  # of [finetune], on the weights
_LISTED_BY = ("source", "path", "path_column", "label_column", "download", "sensor_bits")
"""Keys of a data section that decide which pictures a source lists."""
_PREPARED_BY = {"size", "resize", "shorter_side", "interpolation", "sensor_bits"}
"""Keys of it that decide how a picture becomes a frame."""
_ADDED_LATER = ("leaks", "sensor_bits")
"""Keys of it that are left out of a stage's key where they are left out of the recipe: what is on disk stays good."""
_FAMILIES = {"onnxruntime-cpu": "cpu", "openvino": "openvino"}
ENGINE_LIBRARIES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-lean", "tensorrt-rtx")


def settings_of_data(wish: Wish, data: DataSettings) -> dict[str, Any]:
    """The section, the seed, and which pictures the source lists now."""
    listed = _listed_by(data)
    if listed not in wish.fingerprints:
        images = read_source(data)
        wish.fingerprints[listed] = fingerprint_source(images)
        files = [(s.key, s.picture) for part in (images.train, images.test or ()) for s in part]
        where = None if data.path is None else str(data.path.resolve())
        memory = remember_data(
            data.source, where, [(key, file) for key, file in files if isinstance(file, str | Path)]
        )
        wish.listed[listed] = Listed(images.notices, memory)
    return {
        # What is trained in memory is written to disk before: the same files.
        "data": _without_unset(data) | ({"cache": "disk"} if data.cache == "memory" else {}),
        "seed": wish.recipe.seed,
        "pictures": wish.fingerprints[listed],
    }


def listed_of_data(wish: Wish, data: DataSettings) -> Listed | None:
    """What ``settings_of_data`` found."""
    return wish.listed.get(_listed_by(data))


def _listed_by(data: DataSettings) -> str:
    return data.model_dump_json(include=set(_LISTED_BY))


def _without_unset(data: DataSettings) -> dict[str, Any]:
    """The section without ``_ADDED_LATER`` where that is not set."""
    return data.model_dump(mode="json", exclude={key for key in _ADDED_LATER if getattr(data, key) is None})


def settings_of_finetune(wish: Wish, _: None) -> dict[str, Any]:
    """All that decides the weights: sections, files of weights and code by content, seed and device."""
    recipe = wish.recipe
    weights, task, teacher = Path(recipe.backbone.weights), recipe.source_task, recipe.teacher
    return {
        "backbone": recipe.backbone.model_dump(mode="json"),
        "weights_file": _file_digest(weights) if recipe.backbone.from_file else None,
        "finetune": recipe.finetune.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        # The checkpoint carries the contract: other rules may give the same pixels of these pictures.
        "preparation": {key: v for key, v in _without_unset(recipe.data).items() if key in _PREPARED_BY},
        "code": _source_digest(recipe.backbone.model),
        "source_task": task.model_dump(mode="json", exclude={"data"}) if task else None,
        "teacher": teacher
        and {
            **teacher.model_dump(mode="json", exclude={"checkpoint"}),
            "sha256": _file_digest(teacher.checkpoint),
        },
        "seed": recipe.seed,
        "device": _training_device(),
    }


def _training_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _source_digest(reference: str) -> str | None:
    """sha256 of the module that ``module:callable`` names; ``None`` for everything else."""
    module, colon, _ = reference.partition(":")
    if not colon or importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    spec = importlib.util.find_spec(module)
    return _file_digest(Path(spec.origin)) if spec is not None and spec.origin else None


def _file_digest(path: Path) -> str | None:
    from edgekiln.runtime.bundles.source import hash_file

    return hash_file(path.resolve())[0] if path.is_file() else None


def settings_of_baseline(wish: Wish, _: None) -> dict[str, Any]:
    """The network; its weights are a stage that is read."""
    return {"backbone": wish.recipe.backbone.model_dump(mode="json")}


def settings_of_export(wish: Wish, _: None) -> dict[str, Any]:
    """The network and how it is exported."""
    return {"export": wish.recipe.export.model_dump(mode="json"), **settings_of_baseline(wish, None)}


def settings_of_qat(wish: Wish, variant: VariantSettings) -> dict[str, Any]:
    """What fine-tuning is given too, and the variant's own steps and calibration."""
    recipe = wish.recipe
    assert variant.qat is not None  # asked before
    return {
        "qat": variant.qat.model_dump(mode="json"),
        # Batches, augmentation and loss are those of fine-tuning; its own steps are in the checkpoint.
        "finetune": recipe.finetune.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        "backbone": recipe.backbone.model_dump(mode="json"),
        "calibration_images": variant.calibration_images,
        "calibration_method": variant.calibration,
        "seed": recipe.seed,
        "device": _training_device(),
    }


def settings_of_variant(wish: Wish, variant: VariantSettings) -> dict[str, Any]:
    """Only what changes the graph: an FP32 variant is the exported file itself, whatever else the recipe says."""
    recipe = wish.recipe
    relevant: dict[str, Any] = {"precision": variant.precision.value, "engine": variant.builds_engine}
    if variant.precision is not Precision.FP32:
        relevant |= {
            # onnxruntime's and OpenVINO's INT8 graphs are the same; what audits and searches them is not.
            "family": _FAMILIES.get(variant.backend, "gpu"),
            "calibration_images": variant.calibration_images,
            "calibration_method": variant.calibration,
            **({"calibration_seconds": AUTO_SECONDS} if _may_choose(variant) else {}),
            "precision_share": variant.precision_share,
            "fallback": variant.fallback,
            "fp16_tolerance": recipe.export.fp16_tolerance,
            "seed": recipe.seed,
        }
    if variant.searches:
        budget = recipe.gate.max_drop if variant.max_drop is None else variant.max_drop
        relevant["search"] = [budget, recipe.gate.confidence, variant.search_seconds]
    if variant.static_models:
        relevant["static_batches"] = variant.static_models
    if variant.qat is not None:
        relevant["export"] = recipe.export.model_dump(mode="json")
    return relevant


def _may_choose(variant: VariantSettings) -> bool:
    """Whether methods of calibration are compared only where that is cheap."""
    return variant.calibration == "auto" and variant.calibration_method is None


def tools_of_variant(_: Recipe, variant: VariantSettings) -> tuple[str, ...]:
    """What makes graphs, and what audits or trains this one."""
    trained = ("torch", "timm") if variant.qat is not None else ()
    graph = ("onnx", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt")
    return (*graph, *_own_tools(variant), *trained)


def _own_tools(variant: VariantSettings) -> tuple[str, ...]:
    """What no other backend uses: its coming and going leaves the stages of the others as they are."""
    return ("openvino",) if variant.backend == "openvino" else ()


def settings_of_engine(_: Wish, variant: VariantSettings) -> dict[str, Any]:
    """How it is built, and the GPUs that are there: kernels are chosen by their times."""
    return {
        "backend": variant.backend,
        "build": variant.build.model_dump(mode="json", exclude=variant.build.unused),
        "precision_share": variant.precision_share,
        "devices": _visible_devices(),
        **_power_mode(),
    }


def _visible_devices() -> list[Any]:
    """GPUs and driver, in the keys of what needs them: what could not run once is tried again when it can."""
    from edgekiln.runtime.cuda.driver import probe_driver

    state = probe_driver()
    return [state.version, *([d.name, d.compute_capability, d.multiprocessors] for d in state.devices)]


def _power_mode() -> dict[str, str]:
    """A Jetson's, which decides how fast everything is; nothing on other machines."""
    from edgekiln.benchmarks.environment import read_jetson

    jetson = read_jetson()
    return {"power_mode": jetson["power_mode"]} if jetson and jetson["power_mode"] else {}


def settings_of_evaluate(_: Wish, variant: VariantSettings) -> dict[str, Any]:
    """Where it runs; the GPUs only for what needs one."""
    on_cpu = variant.backend in CPU_BACKENDS
    return {"backend": variant.backend, "devices": None if on_cpu else _visible_devices()}


def settings_of_evidence(wish: Wish, variant: VariantSettings | None) -> dict[str, Any]:
    """As for test: of PyTorch where there is no variant."""
    return settings_of_baseline(wish, None) if variant is None else settings_of_evaluate(wish, variant)


def tools_of_evidence(recipe: Recipe, variant: VariantSettings | None) -> tuple[str, ...]:
    """As for test."""
    return ("torch",) if variant is None else tools_of_evaluate(recipe, variant)


def tools_of_evaluate(_: Recipe, variant: VariantSettings) -> tuple[str, ...]:
    """What runs engines."""
    # cuda-bindings runs nothing any more. It stays, since without it keys would change and kept answers be lost.
    libraries = ("onnxruntime", "onnxruntime-gpu", "pycuda", "cuda-bindings", *ENGINE_LIBRARIES)
    return (*libraries, *_own_tools(variant))


def settings_of_benchmark(wish: Wish, _: None) -> dict[str, Any]:
    """What is timed, and the machine that it is timed on."""
    from edgekiln.benchmarks.environment import describe_machine

    machine = describe_machine()
    return {
        "benchmark": wish.recipe.benchmark.model_dump(
            mode="json",
            # A key that was added later and is not used: what is on disk stays good.
            exclude={"mlperf", "mlperf_seconds", *(() if wish.recipe.benchmark.batches else ("batches",))},
        ),
        "backbone": wish.recipe.backbone.model_dump(mode="json"),
        "variants": [v.name for v in wish.recipe.variants],
        "machine": {key: machine[key] for key in _machine_keys()},
        # A container's, which decides the times; without one, keys stay as they were.
        **({"cpu_quota_cores": machine["cpu_quota_cores"]} if machine["cpu_quota_cores"] is not None else {}),
        **_power_mode(),
    }


def _machine_keys() -> tuple[str, ...]:
    """What tells two machines apart: times kept from one are none of the other's."""
    x86 = ("cpu", "cores", "avx2", "vnni", "gpus")
    # Boards with the same ARM cores differ in memory, clocks and cooling. Keys of x86 stay as they were.
    return x86 if platform.machine() == "x86_64" else (*x86, "board", "cpu_flags")


_PEER_TOOLS = {"litert": ("ai-edge-litert", "ai-edge-quantizer", "litert-torch"), "ncnn": ("ncnn", "pnnx")}
"""What peers are made and run with, where that is not what runs our engines."""


def tools_of_benchmark(recipe: Recipe, _: None) -> tuple[str, ...]:
    """What is timed beside PyTorch."""
    own = {tool for variant in recipe.variants for tool in _own_tools(variant)}
    return (
        "torch",
        "onnxruntime",
        "onnxruntime-gpu",
        *sorted(own | ({"openvino"} & set(recipe.benchmark.peers))),
        *(tool for peer in recipe.benchmark.peers for tool in _PEER_TOOLS.get(peer, ())),
    )


def settings_of_mlperf(wish: Wish, _: None) -> dict[str, Any]:
    """How long, and which engines pass."""
    return {
        "seconds": wish.recipe.benchmark.mlperf_seconds,
        # An engine is driven when it passed, and verdicts depend on the gate.
        "gate": wish.recipe.gate.model_dump(mode="json", exclude={"inconclusive", *_left_out(wish.recipe)}),
        "max_drops": [variant.max_drop for variant in wish.recipe.variants],
    }


def _left_out(recipe: Recipe) -> set[str]:
    """Keys of the gate that were added later and are not used: what is on disk stays good."""
    gate = recipe.gate
    return (set() if gate.judges_val else {"evidence"}) | ({"min_top1"} if gate.min_top1 is None else set())


def settings_of_bundle(wish: Wish, _: None) -> dict[str, Any]:
    """The recipe as it ships."""
    from edgekiln.pipeline.proof.public_recipe import public_recipe

    return {"recipe": public_recipe(wish.recipe)}
