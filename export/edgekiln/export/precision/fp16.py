"""FP16 and BF16 for TensorRT, FP16 for CUDA: the precision is written into the graph, as strongly typed networks want.

NVIDIA's AutoCast (nvidia-modelopt) decides node by node: what exceeds its magnitude limit on real pictures stays in
float32. BF16 has the range of float32, so nothing exceeds it there. Input and output keep their types, so such an
engine is used exactly as an FP32 one.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.precision.modelopt import BF16_OPSET, finish_model, import_modelopt, quiet_modelopt
from edgekiln.export.precision.ranges import (
    FP16_MAX,
    ActivationPeak,
    measure_peaks,
    refuse_non_finite,
    vanishing_weights,
)
from edgekiln.export.precision.sums import measure_sums
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = ["Fp16Report", "convert_to_bf16", "convert_to_fp16"]

MAX_MAGNITUDE = 512.0
"""Nodes whose values exceed it stay in float32: there, neighbouring FP16 numbers lie 0.5 apart. AutoCast's default."""
_NEAR_OVERFLOW = FP16_MAX / 4
_REFERENCE_IMAGES = 8  # AutoCast keeps every activation of every reference image in memory


@dataclass(frozen=True, slots=True)
class Fp16Report:
    """What was found before and while converting.

    Attributes:
        peak: the largest activation on the calibration pictures.
        near_overflow: tensors within a factor of four of FP16's largest number.
        large_sums: nodes with a sum inside that may exceed FP16's largest number although the result does not.
        kept_fp32: nodes left in float32, since they make, read or sum up something too large.
        vanishing: share of each weight tensor that FP16 turns into zero.
    """

    peak: ActivationPeak
    near_overflow: tuple[ActivationPeak, ...]
    large_sums: tuple[ActivationPeak, ...]
    kept_fp32: tuple[str, ...]
    vanishing: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; at most 20 entries of each list, with their number."""
        return {
            "peak": {"tensor": self.peak.tensor, "node": self.peak.node, "value": self.peak.value},
            "near_overflow": [{"node": p.node, "value": p.value} for p in self.near_overflow[:20]],
            "near_overflow_count": len(self.near_overflow),
            "large_sums": [{"node": p.node, "value": p.value} for p in self.large_sums[:20]],
            "large_sum_count": len(self.large_sums),
            "kept_fp32": list(self.kept_fp32[:20]),
            "kept_fp32_count": len(self.kept_fp32),
            "vanishing_weights": dict(sorted(self.vanishing.items())[:20]),
        }


def convert_to_fp16(source: Path, target: Path, calibration: CalibrationSet) -> Fp16Report:
    """Convert an exported FP32 file.

    Args:
        source: file written by ``export_onnx``.
        target: file to write: uint8 in, float32 logits out, FP16 between.
        calibration: real pictures; the magnitude rule sees all of them, AutoCast the most extreme.

    Raises:
        PrecisionError: AutoCast cannot take the graph, or activations are not finite in FP32 already.
        MissingExtraError: nvidia-modelopt is not installed.
    """
    autocast = import_modelopt("modelopt.onnx.autocast")
    original = source.read_bytes()
    peaks = measure_peaks(original, calibration.frames)
    refuse_non_finite(peaks[0])
    extremes = calibration.frames[_extreme_images(peaks)]
    sums = measure_sums(original, extremes, peaks)
    large = _nodes_at(
        onnx.load_from_string(original).graph, {p.tensor for p in peaks if p.value > MAX_MAGNITUDE}
    )
    converted = _run_autocast(
        autocast, source, extremes, excluded=[*large, *(peak.node for peak in sums)], data_max=MAX_MAGNITUDE
    )
    target.write_bytes(finish_model(converted, onnx.load_from_string(original)))
    return Fp16Report(
        peak=peaks[0],
        near_overflow=tuple(peak for peak in peaks if peak.value > _NEAR_OVERFLOW),
        large_sums=sums,
        kept_fp32=_nodes_in_fp32(converted),
        vanishing=vanishing_weights(original),
    )


def convert_to_bf16(source: Path, target: Path, calibration: CalibrationSet) -> tuple[str, ...]:
    """Convert an exported FP32 file to BF16: 8 bits of mantissa, and the range of float32.

    The file is of opset 22, the first in which ONNX lets a convolution be in BF16.

    Args:
        source: file written by ``export_onnx``.
        target: file to write: uint8 in, float32 logits out, BF16 between.
        calibration: real pictures, the first few of which AutoCast sees.

    Returns:
        Nodes left in float32.

    Raises:
        PrecisionError: AutoCast cannot take the graph.
        MissingExtraError: nvidia-modelopt is not installed.
    """
    autocast = import_modelopt("modelopt.onnx.autocast")
    frames = np.array(calibration.frames[:_REFERENCE_IMAGES])
    converted = _run_autocast(autocast, source, frames, excluded=[], data_max=np.inf, kind="bf16")
    target.write_bytes(finish_model(converted, onnx.load(source), max_opset=BF16_OPSET))
    return _nodes_in_fp32(converted)


def _run_autocast(
    autocast: Any,
    source: Path,
    frames: Frames,
    *,
    excluded: list[str],
    data_max: float,
    kind: Literal["fp16", "bf16"] = "fp16",
) -> Any:
    """AutoCast on an ONNX file, with the pictures that it may see; returns the ModelProto in FP16 or BF16."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, quiet_modelopt():
        reference = Path(folder) / "reference.npz"
        inputs: dict[str, Any] = {INPUT_NAME: frames}
        np.savez(reference, **inputs)
        try:
            return autocast.convert_to_mixed_precision(
                str(source),
                low_precision_type=kind,
                nodes_to_exclude=[f"^{re.escape(name)}$" for name in excluded],
                data_max=data_max,
                **({} if kind == "fp16" else {"init_max": np.inf}),
                keep_io_types=True,
                calibration_data=str(reference),
            )
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the library raises whatever its parts raise
            raise PrecisionError(
                f"AutoCast cannot convert this graph to {kind.upper()}: {type(error).__name__}: {error}",
                hint=f"Leave the {kind.upper()} variant out, or take another backbone or export.opset.",
            ) from error


def _nodes_at(graph: Any, tensors: set[str]) -> list[str]:
    """Nodes that make or read one of the tensors: who reads a large one in FP16 may read infinity."""
    return [node.name for node in graph.node if tensors & {*node.input, *node.output}]


def _extreme_images(peaks: tuple[ActivationPeak, ...]) -> list[int]:
    """The pictures that drove the most tensors to their peaks: the rule needs extremes, not a crowd."""
    images, counts = np.unique([peak.image for peak in peaks], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_REFERENCE_IMAGES]
    return sorted(int(image) for image in images[order])


def _nodes_in_fp32(model: Any) -> tuple[str, ...]:
    """Nodes that still compute in float32, conversions at the borders aside."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    wide = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return tuple(
        node.name
        for node in graph.node
        if node.op_type != "Cast" and any(name in wide for name in node.output)
    )
