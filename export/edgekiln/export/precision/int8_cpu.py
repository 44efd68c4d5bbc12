"""INT8 for CPUs: onnxruntime's own quantizer, plus three steps that it lacks.

1. Saturation-safe weight scales (``saturation.py``).
2. The pixel as its own quantized input (``int8_cpu_graph.py``).
3. Bias correction (``repair/biases.py``).

The quantizer itself is run by ``onnxruntime_quantizer.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path

import onnx

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.precision.blocks import float_neighbours
from edgekiln.export.precision.int8_cpu_graph import adapt_graph, finish_graph, pixel_override
from edgekiln.export.precision.onnxruntime_quantizer import (
    ActivationRanges,
    CalibrationMethod,
    measure_activations,
    refusals_told,
    run_quantizer,
)
from edgekiln.export.precision.outliers import FloatPlan, plan_float
from edgekiln.export.precision.repair.biases import correct_biases
from edgekiln.export.precision.repair.pairs import hold_kept_products
from edgekiln.export.precision.saturation import check_saturation, weight_overrides
from edgekiln.export.to_onnx import entry_chain, read_contract
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.contract import SHARED_NORMALIZATION

__all__ = ["quantize_for_cpu"]


def quantize_for_cpu(
    source: Path,
    target: Path,
    calibration: CalibrationSet,
    method: CalibrationMethod = "minmax",
    *,
    keep_float: Collection[str] = (),
    ranges: ActivationRanges | None = None,
    plan: FloatPlan | None = None,
    signed_pixels: bool = False,
) -> bool:
    """Quantize an exported FP32 file: explicit Q/DQ, uint8 activations, int8 weights per output channel.

    Args:
        source: file written by ``export_onnx``; ``target`` is the one to write.
        calibration: real training pictures; ``method`` says how activation ranges are taken from them.
        keep_float: names of products (Conv, Gemm, MatMul) that compute in float, and tensors between two such.
        ranges: what ``measure_ranges`` gave for them, and ``plan`` what ``plan_float`` did; made where absent.
        signed_pixels: for OpenVINO, see ``int8_cpu_graph.py``. onnxruntime has no such kernel.

    Returns:
        Whether pixels feed the first layer directly: not where it is in float, or the backbone normalizes itself.

    Raises:
        PrecisionError: the file was not exported by edgekiln, or onnxruntime's quantizer cannot take it.
    """
    import_onnxruntime("cpu")
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    entry = entry_chain(model.graph)
    shared = read_contract(model).normalization == SHARED_NORMALIZATION
    pixel = {entry[-1].output[0]: pixel_override(signed_pixels)} if shared else {}
    plan = plan_float(model, calibration) if plan is None else plan
    kept = {*keep_float, *plan.products}
    with refusals_told("quantizer", hint="Leave the INT8 variant out, or take another backbone."):
        overrides = copy.deepcopy(ranges or measure_activations(model, calibration, method))
        overrides |= weight_overrides(model.graph) | pixel
        excluded = [*(n.name for n in entry), *plan.reasons, *kept, *float_neighbours(model.graph, kept)]
        quantized = run_quantizer(model, calibration, overrides, excluded, float_outputs=bool(plan.reasons))
    hold_kept_products(quantized.graph, model.graph, kept)
    pixels_feed_directly = adapt_graph(quantized.graph, model.graph, kept, bool(pixel), signed_pixels)
    finish_graph(quantized, model)
    correct_biases(quantized, model, calibration.frames)
    check_saturation(quantized)
    target.write_bytes(quantized.SerializeToString(deterministic=True))
    return pixels_feed_directly
