"""Files for libraries that read no ONNX, made of the checkpoint that our engines come from: LiteRT's and ncnn's.

Each library gets its own converter and, for INT8, its own quantizer, calibrated with the pictures of our INT8 variant.
They run in a child process, since such tools may crash, and answer the whole test split there. How fast a file is, is
not known here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.benchmarks.judging.accuracy import measure_accuracy, pair_answers
from edgekiln.benchmarks.judging.gate import tango_interval
from edgekiln.benchmarks.timing.peers import open_litert, open_ncnn, output_to
from edgekiln.export.child import Child
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.proof.baseline import load_fused
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME
from edgekiln.pipeline.variants.calibrating import choose_calibration_set
from edgekiln.pipeline.workspace.stage_files import BASELINE, StageContext, read_logits
from edgekiln.runtime.errors import BuildError, ResourceError
from edgekiln.runtime.spec import Frames, Logits, Precision

__all__ = ["CONVERTED", "PEER_FOLDER", "PeerFile", "make_peer_files", "why_not_convertible"]

PEER_FOLDER = "peers"
"""Below the stage's folder; deleted when all is timed."""
_LEAST_AGREEING = 0.75
"""Of the test pictures: another network, or a conversion that went wrong, answers fewer as PyTorch does."""


@dataclass(frozen=True, slots=True)
class _Library:
    """What a library needs: packages by the name that Python imports them by, and which precisions it is tried in."""

    packages: Mapping[str, str]
    refused: Mapping[Precision, str]


CONVERTED: Mapping[str, _Library] = {
    "litert": _Library(
        {
            "ai_edge_litert": "ai-edge-litert",
            "ai_edge_quantizer": "ai-edge-quantizer",
            "litert_torch": "litert-torch",
        },
        {},
    ),
    "ncnn": _Library(
        {"ncnn": "ncnn", "pnnx": "pnnx"},
        {Precision.INT8: "its packages bring no quantizer: ncnn2table and ncnn2int8 are to be compiled"},
    ),
}
"""The entries of ``benchmark.peers`` that are converted here."""


@dataclass(frozen=True, slots=True)
class PeerFile:
    """A file that was made for a library.

    Attributes:
        name: ``LIBRARY:PRECISION``.
        precision: that it computes in.
        arguments: of the library's factory in ``timing.peers``.
        logits: float32 (N, C), what it answered to the test split with one thread.
        about: JSON values for the report: size in bytes, accuracy, drop against PyTorch, and how it was ``made``.
    """

    name: str
    precision: Precision
    arguments: Mapping[str, Any]
    logits: Logits
    about: Mapping[str, Any]


def why_not_convertible(library: str, variants: Sequence[VariantSettings]) -> str | None:
    """Why a library's files cannot be made here at all, ``None`` where they can; ``variants`` are those on the CPU."""
    if not variants:
        return "no variant for a CPU was evaluated that it could be compared with"
    missing = [name for module, name in CONVERTED[library].packages.items() if not _is_installed(module)]
    if missing:
        return f"{', '.join(missing)} not installed. Run: pip install 'edgekiln[{library}]'"
    return None


def make_peer_files(
    context: StageContext, library: str, variants: Sequence[VariantSettings]
) -> tuple[list[PeerFile], dict[str, str]]:
    """A file for each precision that our variants have, and by name why others were not made."""
    made: list[PeerFile] = []
    absent: dict[str, str] = {}
    with Child(library) as child:
        for precision in (Precision.FP32, Precision.INT8):
            first = next((v for v in variants if v.precision is precision), None)
            name = f"{library}:{precision.value}"
            if first is None:
                continue
            if precision in CONVERTED[library].refused:
                absent[name] = CONVERTED[library].refused[precision]
                continue
            context.progress.message(f"  {name} is converted")
            try:
                made.append(_make_file(context, child, name, first))
            except (BuildError, ResourceError) as error:
                absent[name] = str(error)
    return made, absent


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _make_file(context: StageContext, child: Child, name: str, variant: VariantSettings) -> PeerFile:
    library, _, precision = name.partition(":")
    folder = context.folder / PEER_FOLDER / name.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    calibration = choose_calibration_set(context, variant) if variant.precision is Precision.INT8 else None
    arguments, logits, how = child.call(
        _convert,
        library,
        {
            "checkpoint": str(context.inputs["finetune"] / CHECKPOINT_NAME),
            "backbone": context.recipe.backbone.model_dump(mode="json"),
        },
        folder,
        None if calibration is None else calibration.frames,
        context.inputs["data"],
    )
    used = {} if calibration is None else {"images": len(calibration.frames), "digest": calibration.digest}
    versions = tool_versions((*CONVERTED[library].packages.values(), "torch"))
    files = [Path(arguments["path"]), Path(arguments["path"]).with_suffix(".bin")]
    about = {
        "size": sum(file.stat().st_size for file in files if file.exists()),
        **_judge(context, name, logits),
        "made": {"how": how, "versions": versions, "calibration": used or None},
    }
    return PeerFile(name, Precision(precision), arguments, logits, about)


def _judge(context: StageContext, name: str, logits: Logits) -> dict[str, Any]:
    """Accuracy, and the drop against PyTorch; a peer is told to be worse, and refused only as another network."""
    exact, labels = (
        read_logits(context.inputs[f"evaluate.{BASELINE}"]),
        load_split(context.inputs["data"], "test").labels,
    )
    if logits.shape != exact.shape or not np.isfinite(logits).all():
        raise BuildError(
            f"{name} answers {logits.shape} or what is no number, not {exact.shape} finite logits."
        )
    counts = pair_answers(exact, logits, labels)
    if counts.agreeing < _LEAST_AGREEING * counts.images:
        raise BuildError(
            f"what was converted is another network: it answers {counts.agreeing} of {counts.images} test "
            "pictures as PyTorch does."
        )
    low, high = tango_interval(counts.broken, counts.mended, counts.images, context.recipe.gate.confidence)
    return {
        "accuracy": measure_accuracy(logits, labels).to_dict(),
        "agreeing": counts.agreeing,
        "drop": {"value": counts.drop, "low": low, "high": high},
    }


# --------------------------------------------------------------------------------------------------------------
# In the child


def _convert(
    library: str, network: Mapping[str, Any], folder: Path, calibration: Frames | None, data: Path
) -> tuple[dict[str, Any], Logits, str]:
    """Arguments of the library's factory, its answers to the test split, and how the file was made.

    Raises:
        BuildError: the library refused, with what it said; it may say anything.
    """
    convert = _make_litert if library == "litert" else _make_ncnn
    open_file: Any = open_litert if library == "litert" else open_ncnn
    try:
        with output_to(str(folder / "converter.log")):
            arguments, how = convert(network, folder, calibration)
            session: Any = open_file(**arguments, threads=1)
            frames = load_split(data, "test").frames
            logits = np.concatenate([session.run(np.array(frames[i : i + 1])) for i in range(len(frames))])
            if not session.takes_batches():
                arguments, how = {**arguments, "one_by_one": True}, f"{how}; it takes one picture a call"
    except Exception as error:
        told = str(error).strip().splitlines()
        raise BuildError(
            f"it could not be converted: {type(error).__name__}: {told[0] if told else ''}"
        ) from None
    return arguments, logits, how


def _make_litert(
    network: Mapping[str, Any], folder: Path, calibration: Frames | None
) -> tuple[dict[str, Any], str]:
    """litert-torch's file with a channels-last input; its weights and activations INT8 where there are pictures."""
    import litert_torch
    import torch

    model, contract = load_fused(**network)
    fp32 = folder / "fp32.tflite"
    example = torch.zeros(1, contract.height, contract.width, 3)
    litert_torch.convert(litert_torch.to_channel_last_io(model.eval().network, args=[0]), (example,)).export(
        fp32
    )
    scale, offset = model.scale.flatten().numpy(), model.offset.flatten().numpy()
    arguments = {"path": str(fp32), "scale": scale.tolist(), "offset": offset.tolist()}
    how = "litert_torch.convert with a channels-last input"
    if calibration is None:
        return arguments, how
    int8 = folder / "int8.tflite"
    inputs = [frame * scale + offset for frame in calibration[:, None]]
    ends = np.array([0, 255], np.float32)[:, None] * scale + offset
    _quantize_litert(fp32, int8, inputs, (float(ends.min()), float(ends.max())))
    how += (
        "; ai_edge_quantizer's recipe static_wi8_ai8, ranges the least and greatest values over the calibration "
        "pictures, that of the input all of a pixel's values"
    )
    return {**arguments, "path": str(int8)}, how


def _quantize_litert(fp32: Path, int8: Path, inputs: Sequence[Any], whole: tuple[float, float]) -> None:
    """AEQ's static INT8, the input's range being ``whole``.

    Its usual moving average of ranges clips what the last pictures happen not to reach.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, recipe, recipe_manager
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    file = Interpreter(str(fp32))
    (signature, names), *_ = file.get_signature_list().items()
    watcher = calibrator.Calibrator(str(fp32), num_threads=1, qsv_update_func=min_max_update)
    watcher.calibrate({signature: [{names["inputs"][0]: value} for value in inputs]}, manager)
    ranges = dict(watcher.get_model_qsvs())
    entry = ranges[file.get_input_details()[0]["name"]]
    low, high = (
        np.full_like(np.asarray(entry[key]), value) for key, value in zip(("min", "max"), whole, strict=True)
    )
    ranges[file.get_input_details()[0]["name"]] = {"min": low, "max": high}
    Quantizer(str(fp32), recipe.static_wi8_ai8()).quantize(ranges).export_model(str(int8), overwrite=True)


def _make_ncnn(
    network: Mapping[str, Any], folder: Path, calibration: Frames | None
) -> tuple[dict[str, Any], str]:
    """pnnx's file of the traced network, its weights float32."""
    import pnnx
    import torch

    assert calibration is None, "ncnn's INT8 is refused before"
    model, contract = load_fused(**network)
    example = torch.zeros(1, 3, contract.height, contract.width)
    pnnx.export(model.eval().network, str(folder / "network.pt"), inputs=example, fp16=False)
    scale, offset = (values.flatten().tolist() for values in (model.scale, model.offset))
    path = folder / "network.ncnn.param"
    return {"path": str(path), "scale": scale, "offset": offset}, "pnnx.export with fp16=False"
