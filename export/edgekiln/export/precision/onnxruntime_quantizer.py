"""onnxruntime's own calibrators and quantizer, run on real pictures: quiet, in bounded memory, their refusals told.

Ranges of activations are read here. Which scales and which nodes the quantizer gets is the caller's choice.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from edgekiln.export.calibration import CalibrationSet
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = [
    "ActivationRanges",
    "CalibrationMethod",
    "measure_activations",
    "measure_ranges",
    "refusals_told",
    "run_quantizer",
]

CalibrationMethod = Literal["minmax", "entropy", "percentile"]
ActivationRanges = dict[str, list[dict[str, Any]]]
"""(rmin, rmax) of every activation, as onnxruntime's TensorQuantOverrides."""
_BATCH = 8  # calibration images per call: bounds the memory of all activations together


def measure_ranges(
    source: Path, calibration: CalibrationSet, method: CalibrationMethod = "minmax"
) -> ActivationRanges:
    """Activation ranges of an exported FP32 file, for several calls of ``quantize_for_cpu``.

    Raises:
        PrecisionError: onnxruntime's calibrator cannot take the file.
    """
    import_onnxruntime("cpu")
    with refusals_told("calibrator"):
        return measure_activations(onnx.shape_inference.infer_shapes(onnx.load(source)), calibration, method)


@contextlib.contextmanager
def refusals_told(part: str, hint: str | None = None) -> Iterator[None]:
    """Whatever a part of onnxruntime raises about a graph, as PrecisionError; the machine's faults pass unchanged."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise PrecisionError(
            f"onnxruntime's {part} cannot take this graph: {type(error).__name__}: {error}", hint=hint
        ) from error


def measure_activations(
    model: Any, calibration: CalibrationSet, method: CalibrationMethod
) -> ActivationRanges:
    """(rmin, rmax) of every activation of a ModelProto with inferred shapes; raises whatever the library raises."""
    quantization = import_extra("onnxruntime.quantization", "onnx")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, _quiet_quantizer():
        inferred = Path(folder) / "inferred.onnx"
        onnx.save(model, inferred)
        return _activation_ranges(quantization, inferred, calibration, method)


def run_quantizer(
    model: Any,
    calibration: CalibrationSet,
    overrides: ActivationRanges,
    excluded: list[str],
    *,
    float_outputs: bool = False,
) -> Any:
    """onnxruntime's own quantizer, with our ranges and weight scales; the nodes ``excluded`` stay in float.

    With ``float_outputs`` linear layers answer in float unless who reads it is quantized; their INT8 kernels can.
    """
    linear = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]} if float_outputs else {}
    quantization = import_extra("onnxruntime.quantization", "onnx")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, _quiet_quantizer():
        inferred, raw = Path(folder) / "inferred.onnx", Path(folder) / "raw.onnx"
        onnx.save(model, inferred)
        quantization.quantize_static(
            inferred,
            raw,
            _reader(quantization, calibration.frames[:1]),  # every range is given in the overrides
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # int8 would leave a third of Lite0 in float
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=excluded,
            extra_options={"TensorQuantOverrides": overrides} | linear,
        )
        return onnx.load(raw)


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """The quantizer prints to stdout, and advises a pre-processing that the exporter has already done."""

    def drop(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logging.getLogger().addFilter(drop)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger().removeFilter(drop)


def _activation_ranges(
    quantization: Any, model: Path, calibration: CalibrationSet, method: CalibrationMethod
) -> ActivationRanges:
    """(rmin, rmax) of every activation.

    Pictures pass in small groups, since the calibrators keep all activations of what they are given at once. The
    histograms keep the library's number of bins: four times as many made its entropy search clip Lite0 from 0.997
    to 0.478 top-1 on the demo's pictures.
    """
    calibrate = import_extra("onnxruntime.quantization.calibrate", "onnx")
    calibrator = calibrate.create_calibrator(
        model,
        augmented_model_path=str(model.with_name("augmented.onnx")),
        calibrate_method=_method(quantization, method),
    )
    for start in range(0, len(calibration.frames), _BATCH):
        calibrator.collect_data(_reader(quantization, calibration.frames[start : start + _BATCH]))
    return {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in ((n, data.range_value) for n, data in calibrator.compute_data().items())
    }


def _method(quantization: Any, method: CalibrationMethod) -> Any:
    methods = quantization.CalibrationMethod
    return {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[method]


def _reader(quantization: Any, frames: Frames) -> Any:
    """A calibration reader of one batch."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # untyped library
        def __init__(self) -> None:
            self._batches = iter([{INPUT_NAME: frames}])

        def get_next(self) -> dict[str, Frames] | None:
            return next(self._batches, None)

    return Reader()
