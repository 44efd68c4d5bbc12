"""INT8 for TensorRT: explicit Q/DQ placed by NVIDIA's ModelOpt, FP16 for the rest, real pictures for the ranges.

Symmetric, per output channel for weights, per tensor for activations, the identity branch of a residual Add
quantized: what TensorRT 10.3 to 11 fuse. The result is linted, since one pair in a wrong place costs a fusion.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.precision.blocks import PRODUCTS
from edgekiln.export.precision.modelopt import (
    finish_model,
    import_modelopt,
    quiet_modelopt,
    restored_onnxruntime,
)
from edgekiln.export.precision.outliers import EVERYTHING_QUANTIZED, FloatPlan, plan_float
from edgekiln.export.precision.qdq_lint import Finding, lint_qdq
from edgekiln.export.precision.ranges import FP16_MAX, ActivationPeak, measure_peaks, refuse_non_finite
from edgekiln.export.precision.repair.biases import correct_biases
from edgekiln.export.precision.repair.pairs import (
    hold_kept_products,
    quantize_skips,
    raise_small_scales,
    unify_concat_scales,
)
from edgekiln.export.precision.sums import measure_sums
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = ["Int8Report", "TensorRTCalibration", "choose_rest", "finish_quantized", "quantize_for_tensorrt"]

TensorRTCalibration = Literal["max", "entropy"]

_UNQUANTIZED = frozenset({"HardSwish"})
"""ModelOpt would put a pair between a convolution and this activation, where TensorRT then cannot fuse the two."""
_SUM_IMAGES = 8
_HEADROOM = 2.0  # other pictures than the calibration's reach further


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What was made.

    Attributes:
        rest: precision of everything that is not quantized; ``fp32`` where activations would not fit FP16.
        quantized: products (Conv, Gemm, MatMul) with INT8 inputs, of how many.
        raised_scales: weight channels so small that their scale was no normal FP16 number; it was raised.
        findings: of the lint; none of them is an error.
        kept_float: products that were left in ``rest`` on purpose.
        raised_activations: tensors that are zero or next to it on all calibration pictures; their scale was raised to
            the smallest that FP16 holds.
        plan: what stayed in ``rest`` by what it is or what its values are.
    """

    rest: Literal["fp16", "fp32"]
    quantized: tuple[int, int]
    raised_scales: int
    findings: tuple[Finding, ...]
    kept_float: tuple[str, ...] = ()
    plan: FloatPlan = EVERYTHING_QUANTIZED
    raised_activations: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "rest": self.rest,
            "quantized_products": self.quantized[0],
            "products": self.quantized[1],
            "kept_float": list(self.kept_float),
            "float_plan": self.plan.to_dict(),
            "raised_scales": self.raised_scales,
            "raised_activations": list(self.raised_activations),
            "lint": [asdict(finding) for finding in self.findings],
        }


def quantize_for_tensorrt(
    source: Path,
    target: Path,
    calibration: CalibrationSet,
    method: TensorRTCalibration = "max",
    *,
    keep_float: Collection[str] = (),
    rest: Literal["fp16", "fp32"] | None = None,
    plan: FloatPlan | None = None,
) -> Int8Report:
    """Quantize an exported FP32 file with explicit Q/DQ.

    Args:
        source: file written by ``export_onnx``; ``target`` takes uint8 and gives float32 logits.
        calibration: real training pictures; ``method`` says how activation ranges are taken from them.
        keep_float: names of products (Conv, Gemm, MatMul) that get no Q/DQ and compute in ``rest``.
        rest: precision of what is not quantized; taken from the activations' magnitudes where absent.
        plan: what ``plan_float`` gave for the same pictures; made where absent.

    Raises:
        PrecisionError: ModelOpt cannot take the graph, nothing was quantized, the lint found an error, or
            activations are not finite in FP32 already.
        MissingExtraError: nvidia-modelopt is not installed.
    """
    quantization = import_modelopt("modelopt.onnx.quantization")
    original = source.read_bytes()
    model = onnx.load_from_string(original)
    peaks = measure_peaks(original, calibration.frames)
    refuse_non_finite(peaks[0])
    plan = plan_float(model, calibration) if plan is None else plan
    excluded = dict.fromkeys([*keep_float, *plan.reasons])
    rest = rest or choose_rest(peaks, _float_sums(original, calibration, peaks, excluded))
    settings = {
        **_describe_calibration(_widest_first(calibration.frames, peaks), method),
        "op_types_to_exclude": list(_UNQUANTIZED & {node.op_type for node in model.graph.node}),
        "nodes_to_exclude": [rf"{re.escape(name)}\Z" for name in excluded] or None,  # it takes regexes
        "high_precision_dtype": rest,
    }
    quantized = _run_modelopt(quantization, original, settings)
    hold_kept_products(quantized.graph, onnx.load_from_string(original).graph, {*keep_float, *plan.products})
    largest = {peak.tensor: peak.value for peak in peaks}
    kept = tuple(sorted(keep_float))
    return finish_quantized(
        quantized, model, target, rest, kept_float=kept, plan=plan, peaks=largest, frames=calibration.frames
    )


def _describe_calibration(frames: Frames, method: TensorRTCalibration) -> dict[str, Any]:
    """The pictures and the method, as arguments of ModelOpt's ``quantize``."""
    return {
        "calibration_data": {INPUT_NAME: frames},
        "calibration_shapes": f"{INPUT_NAME}:1x{'x'.join(map(str, frames.shape[1:]))}",
        "calibration_method": method,
        "calibration_eps": ["cpu"],
    }


def _run_modelopt(quantization: Any, original: bytes, settings: dict[str, Any]) -> Any:
    """ModelOpt's quantizer on an ONNX file; returns the ModelProto with Q/DQ in it."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, quiet_modelopt(), restored_onnxruntime():
        raw = Path(folder) / "quantized.onnx"
        # Beside a copy: the library writes its intermediate files next to its input.
        copy = Path(folder) / "model.onnx"
        copy.write_bytes(original)
        try:
            quantization.quantize(
                str(copy), quantize_mode="int8", output_path=str(raw), log_level="ERROR", **settings
            )
            return onnx.load(raw)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the library raises whatever its parts raise
            raise PrecisionError(
                f"ModelOpt cannot quantize this graph: {type(error).__name__}: {error}",
                hint="Leave the INT8 variant out, or take another backbone.",
            ) from error


def choose_rest(
    peaks: tuple[ActivationPeak, ...], sums: Collection[ActivationPeak] = ()
) -> Literal["fp16", "fp32"]:
    """FP16 for what is not quantized, unless activations might not fit it, or sums inside nodes do not.

    Args:
        peaks: of all activations, the largest first.
        sums: that do not fit, of nodes that are not quantized; INT8 products sum up in int32.
    """
    return "fp16" if peaks[0].value * _HEADROOM < FP16_MAX and not sums else "fp32"


def _float_sums(
    original: bytes, calibration: CalibrationSet, peaks: tuple[ActivationPeak, ...], kept: Collection[str]
) -> list[ActivationPeak]:
    """Sums that may not fit FP16, of nodes that are not quantized."""
    products = {node.name for node in onnx.load_from_string(original).graph.node if node.op_type in PRODUCTS}
    sums = measure_sums(original, calibration.frames[:_SUM_IMAGES], peaks)
    return [found for found in sums if found.node not in products or found.node in kept]


def finish_quantized(
    quantized: Any,
    original: Any,
    target: Path,
    rest: Literal["fp16", "fp32"],
    *,
    kept_float: tuple[str, ...] = (),
    plan: FloatPlan = EVERYTHING_QUANTIZED,
    peaks: Mapping[str, float] | None = None,
    frames: Frames | None = None,
) -> Int8Report:
    """Lint a graph with explicit Q/DQ and write it as edgekiln keeps its files, however it was quantized.

    Args:
        quantized: ModelProto with Q/DQ in it; changed.
        original: ModelProto of the exported FP32 file, whose interface and contract it gets.
        target: file to write.
        rest: precision of what is not quantized.
        kept_float: products that were left in it on purpose.
        plan: what else was.
        peaks: largest |value| of each tensor of ``original``, for identity branches that lack a pair.
        frames: pictures uint8 (N, H, W, 3) to correct biases on; biases that were trained with Q/DQ are right.

    Raises:
        PrecisionError: nothing was quantized, the lint found an error, or the interface is another.
    """
    quantize_skips(quantized.graph, peaks or {}, np.float16 if rest == "fp16" else np.float32, plan.reasons)
    unify_concat_scales(quantized.graph)
    channels, activations = raise_small_scales(quantized.graph)
    findings = lint_qdq(
        quantized.graph, kept_float=plan.reasons, outliers=plan.residual_ratios(quantized.graph)
    )
    report = Int8Report(
        rest, _count_quantized(quantized.graph), channels, findings, kept_float, plan, activations
    )
    _check(report)
    if frames is not None:
        correct_biases(quantized, original, frames)
    target.write_bytes(finish_model(quantized, original))
    return report


def _widest_first(frames: Frames, peaks: tuple[ActivationPeak, ...]) -> Frames:
    """The picture that drives most tensors to their peaks, then the others.

    The bins of an entropy histogram are those of the first picture: after a plain grey one, thousands would be needed.
    """
    images, counts = np.unique([peak.image for peak in peaks], return_counts=True)
    first = int(images[counts.argmax()])
    ordered: Frames = frames[[first, *(i for i in range(len(frames)) if i != first)]]
    return ordered


def _count_quantized(graph: Any) -> tuple[int, int]:
    made_by = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    quantized = [
        n for n in products if n.input[0] in made_by and _is_dequantized(made_by[n.input[0]], made_by)
    ]
    return len(quantized), len(products)


def _is_dequantized(node: Any, made_by: dict[str, Any]) -> bool:
    while node.op_type in {"Cast", "Reshape", "Transpose"} and node.input[0] in made_by:
        node = made_by[node.input[0]]
    return bool(node.op_type == "DequantizeLinear")


def _check(report: Int8Report) -> None:
    if not report.quantized[0]:
        raise PrecisionError(
            f"ModelOpt quantized none of the {report.quantized[1]} products of this graph.",
            hint="Convolutions need at least 16 channels; take an FP16 variant instead.",
        )
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        told = "; ".join(f"{e.rule} at {', '.join(e.nodes[:3])}: {e.message}" for e in errors[:3])
        raise PrecisionError(
            f"The quantized graph breaks {len(errors)} of TensorRT's rules for Q/DQ: {told}",
            hint="Take an FP16 variant, or report the backbone.",
        )
