"""The measured networks as ONNX files: FP32, FP16, and INT8 with real Q/DQ, as the recipes make them.

Each is taken from a folder that was prepared elsewhere, or else made here with what is installed: edgekiln's exporter
or PyTorch's older one, nvidia-modelopt or onnxconverter-common. It knows no engine.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.pipeline.gpu_suite.networks import (
    CLASSES,
    MODELS,
    find_file,
    make_frames,
    make_network,
    onnx_name,
)
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME

__all__ = ["PRECISIONS", "count_products", "export_models", "macs_name", "make_graph", "write_macs"]

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_FRAMES = 32


def export_models(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """See that each model has its graphs: taken from ``given``, or else made in ``work``.

    Args:
        arguments: ``models``: names; ``given``: a folder or ``None``; ``work``: a folder.
        tell: told of each file.

    Returns:
        For each file name: ``state``, ``reason``, ``made_by``, ``bytes`` and ``sha256``.
    """
    files: dict[str, Any] = {}
    for model in arguments["models"]:
        for precision in PRECISIONS:
            name = onnx_name(model, precision)
            tell({"model": name})
            files[name] = _provide(model, precision, arguments.get("given"), Path(arguments["work"]))
    return files


def _provide(model: str, precision: str, given: str | None, work: Path) -> dict[str, Any]:
    name = onnx_name(model, precision)
    found = find_file(name, (given,))
    if found is not None:
        return _describe(found, "given")
    partial = work / f"{name}.partial"
    try:
        maker = make_graph(model, precision, (given, str(work)), partial)
    except SkippedPart as error:
        return {"state": "skipped", "reason": str(error)}
    except Exception as error:  # exporters raise anything; the other files may do
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
    partial.replace(work / name)
    return _describe(work / name, maker)


def _describe(path: Path, made_by: str) -> dict[str, Any]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {"state": "done", "reason": None, "made_by": made_by, "bytes": len(data), "sha256": digest}


def make_graph(model: str, precision: str, folders: Sequence[str | None], target: Path) -> str:
    """Write one graph; returns who did it.

    Args:
        model: name in ``MODELS``.
        precision: of ``PRECISIONS``; the lower ones are made from the FP32 graph.
        folders: where that one and the weights may lie.
        target: file to write.

    Raises:
        SkippedPart: what makes it is not installed, or there is no FP32 graph.
    """
    if precision == "fp32":
        return _export_fp32(model, folders, target)
    source = find_file(onnx_name(model, "fp32"), folders)
    if source is None:
        raise SkippedPart("there is no FP32 graph to make it from")
    makers: dict[str, Callable[[Path, Path, int], str]] = {"fp16": _convert_fp16, "int8": _quantize}
    return makers[precision](source, target, MODELS[model].size)


# --------------------------------------------------------------------------------------------------------------
# What weighs how much


def macs_name(model: str) -> str:
    """File name of a model's multiply-accumulates by graph and node: an audit weighs by them, and needs no onnx."""
    return f"{model}.macs.json"


def write_macs(model: str, folders: Sequence[str | None], target: Path) -> None:
    """Count those of each graph that is there.

    Raises:
        SkippedPart: onnx is not installed, or there is no graph.
    """
    found = {p: path for p in PRECISIONS if (path := find_file(onnx_name(model, p), folders)) is not None}
    if not found:
        raise SkippedPart("there is no graph to count in")
    target.write_text(json.dumps({p: _count(path) for p, path in found.items()}, indent=1), "utf-8")


def count_products(model: str, precision: str, folders: Sequence[str | None]) -> dict[str, int]:
    """MACs by ONNX node: from the prepared file, or else counted in the graph.

    Raises:
        SkippedPart: neither can be had.
    """
    prepared = find_file(macs_name(model), folders)
    if prepared is not None:
        counts: dict[str, dict[str, int]] = json.loads(prepared.read_text("utf-8"))
        if precision in counts:
            return counts[precision]
    path = find_file(onnx_name(model, precision), folders)
    if path is None:
        raise SkippedPart(f"there is no {onnx_name(model, precision)}")
    return _count(path)


def _count(path: Path) -> dict[str, int]:
    if not is_installed("onnx"):
        raise SkippedPart("onnx is not installed, and no counts were prepared")
    import onnx

    from edgekiln.export.audits.macs import count_macs

    return dict(count_macs(onnx.load(str(path))))


# --------------------------------------------------------------------------------------------------------------
# Makers


def _export_fp32(model: str, folders: Sequence[str | None], target: Path) -> str:
    if not is_installed("onnx"):
        raise SkippedPart("onnx is not installed")
    network = make_network(model, folders)
    from edgekiln.export.to_onnx import PixelModel, export_onnx
    from edgekiln.runtime.contract import SHARED_NORMALIZATION

    pixel_model = PixelModel(network, SHARED_NORMALIZATION).eval()
    size = MODELS[model].size
    if is_installed("onnxscript"):
        contract = Contract(height=size, width=size, classes=tuple(f"class {i}" for i in range(CLASSES)))
        export_onnx(pixel_model, contract, target)
        return "edgekiln.export.to_onnx"
    _export_torchscript(pixel_model, size, target)
    return "torch's TorchScript exporter, since onnxscript is not installed"


def _export_torchscript(pixel_model: Any, size: int, path: Path) -> None:
    """PyTorch's older exporter, which needs no onnxscript."""
    import onnx
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        torch.onnx.export(
            pixel_model,
            (torch.zeros((2, size, size, 3), dtype=torch.uint8),),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
        )
    model = onnx.load(str(path))
    _drop_last_cast(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _drop_last_cast(graph: Any) -> None:
    """Take out the cast from float32 to float32 that this exporter ends with: FP16 converters trip over it."""
    last = next(node for node in graph.node if OUTPUT_NAME in node.output)
    if last.op_type == "Cast":
        before = next(node for node in graph.node if last.input[0] in node.output)
        before.output[0] = OUTPUT_NAME
        graph.node.remove(last)


def _convert_fp16(source: Path, target: Path, size: int) -> str:
    if is_installed("modelopt"):
        from edgekiln.export.precision.fp16 import convert_to_fp16

        convert_to_fp16(source, target, _calibration(size))
        return "edgekiln.export.precision.fp16 (nvidia-modelopt)"
    if is_installed("onnxconverter_common"):
        _convert_with_onnxconverter(source, target)
        return "onnxconverter-common"
    raise SkippedPart("neither nvidia-modelopt nor onnxconverter-common is installed")


def _quantize(source: Path, target: Path, size: int) -> str:
    if not is_installed("modelopt"):
        raise SkippedPart("nvidia-modelopt is not installed")
    from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt

    report = quantize_for_tensorrt(source, target, _calibration(size))
    done, products = report.quantized
    return f"nvidia-modelopt: {done} of {products} products quantized, {report.rest} for the rest"


def _calibration(size: int) -> Any:
    from edgekiln.export.calibration import CalibrationSet

    frames = make_frames(CALIBRATION_FRAMES, size, seed=2)
    return CalibrationSet(frames, np.arange(len(frames)), hashlib.sha256(frames.tobytes()).hexdigest())


def _convert_with_onnxconverter(source: Path, target: Path) -> None:
    import onnx
    from onnxconverter_common import float16

    model = onnx.load(str(source))
    # It would declare the results of casts to float32 as float16, and leave the casts as they are.
    casts = [node.name for node in model.graph.node if node.op_type == "Cast"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each weight that FP16 rounds
        converted = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=casts)
    target.write_bytes(converted.SerializeToString(deterministic=True))
