"""INT8 for onnxruntime on CPUs: its own quantizer, plus two steps that it lacks.

1. Saturation-safe weight scales. Without VNNI the kernels multiply pairs of uint8 by int8 with ``vpmaddubsw``,
   which adds two products in 16 bits and saturates. Keeping every pair sum of weights within 128 keeps every sum
   within 255 * 128 = 32,640 < 32,767; it costs nothing at run time, where ``reduce_range`` gives up a bit.
2. The pixel as its own quantized input. With (x - 127) / 128 a pixel is an exact quantization of the input, scale
   1/128, zero point 127, so Cast, Mul, Add and QuantizeLinear disappear from the graph.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.precision.blocks import check_kept, float_neighbours
from edgekiln.export.to_onnx import entry_chain, read_contract
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.contract import SHARED_NORMALIZATION
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames

__all__ = ["ActivationRanges", "CalibrationMethod", "largest_pair_sums", "measure_ranges", "quantize_for_cpu",
           "saturation_safe_scales"]  # fmt: skip

CalibrationMethod = Literal["minmax", "entropy", "percentile"]
ActivationRanges = dict[str, list[dict[str, Any]]]
"""(rmin, rmax) of every activation, as onnxruntime's TensorQuantOverrides."""
MAX_PAIR_SUM = 128
"""255 * 128 = 32,640 is the largest product sum that fits 16 signed bits."""
_SIXTEEN_BITS = 2**15 - 1
_PIXEL_SCALE, _PIXEL_ZERO_POINT = 1 / 128, 127
_BATCH = 8  # calibration images per call: bounds the memory of all activations together


def quantize_for_cpu(
    source: Path,
    target: Path,
    calibration: CalibrationSet,
    method: CalibrationMethod = "minmax",
    *,
    keep_float: Collection[str] = (),
    ranges: ActivationRanges | None = None,
) -> bool:
    """Quantize an exported FP32 file: explicit Q/DQ, uint8 activations, int8 weights per output channel.

    Args:
        source: file written by ``export_onnx``.
        target: file to write.
        calibration: real training pictures.
        method: how activation ranges are taken from them.
        keep_float: names of products (Conv, Gemm, MatMul) that keep float weights and compute in float. A tensor
            between two products stays in float where both do.
        ranges: what ``measure_ranges`` gave for the same pictures and method; measured where absent.

    Returns:
        Whether pixels feed the first layer directly. They do not where the normalization is the backbone's own,
        or where the first layer stays in float; the graph then normalizes in float.

    Raises:
        PrecisionError: the file was not exported by edgekiln, or onnxruntime's quantizer cannot take it.
    """
    import_onnxruntime("cpu")
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    entry = entry_chain(model.graph)
    pixel_is_input = read_contract(model).normalization == SHARED_NORMALIZATION
    overrides = _weight_overrides(model.graph)
    if pixel_is_input:
        overrides[entry[-1].output[0]] = _pixel_override()
    with _refusals_told("quantizer", hint="Leave the INT8 variant out, or take another backbone."):
        overrides = copy.deepcopy(ranges or _measure(model, calibration, method)) | overrides
        excluded = [*(node.name for node in entry), *keep_float, *float_neighbours(model.graph, keep_float)]
        quantized = _run_quantizer(model, calibration, overrides, excluded)
    check_kept(quantized.graph, model.graph, keep_float)
    pixels_feed_directly = _adapt_graph(quantized.graph, model.graph, keep_float, pixel_is_input)
    _finish(quantized, model)
    _check_saturation(quantized)
    target.write_bytes(quantized.SerializeToString(deterministic=True))
    return pixels_feed_directly


@contextlib.contextmanager
def _refusals_told(part: str, hint: str | None = None) -> Iterator[None]:
    """Whatever a part of onnxruntime raises about a graph, as PrecisionError; the machine's faults pass unchanged."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise PrecisionError(
            f"onnxruntime's {part} cannot take this graph: {type(error).__name__}: {error}", hint=hint
        ) from error


def measure_ranges(
    source: Path, calibration: CalibrationSet, method: CalibrationMethod = "minmax"
) -> ActivationRanges:
    """Activation ranges of an exported FP32 file, for several calls of ``quantize_for_cpu``.

    Raises:
        PrecisionError: onnxruntime's calibrator cannot take the file.
    """
    import_onnxruntime("cpu")
    with _refusals_told("calibrator"):
        return _measure(onnx.shape_inference.infer_shapes(onnx.load(source)), calibration, method)


def _measure(model: Any, calibration: CalibrationSet, method: CalibrationMethod) -> ActivationRanges:
    quantization = import_extra("onnxruntime.quantization", "onnx")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, _quiet_quantizer():
        inferred = Path(folder) / "inferred.onnx"
        onnx.save(model, inferred)
        return _activation_ranges(quantization, inferred, calibration, method)


def _run_quantizer(
    model: Any, calibration: CalibrationSet, overrides: ActivationRanges, excluded: list[str]
) -> Any:
    """onnxruntime's own quantizer, with our ranges and weight scales; the nodes ``excluded`` stay in float."""
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
            extra_options={"TensorQuantOverrides": overrides},
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


# --------------------------------------------------------------------------------------------------------------
# Saturation-safe weights


def saturation_safe_scales(rows: NDArray[np.float32], *, paired: bool = True) -> NDArray[np.float32]:
    """Smallest weight scale per output channel with which no pair of products can saturate 16 bits.

    scale_c = max( max|w| / 127 , largest same-sign pair sum / 128 ), pairs (0, 1), (2, 3), ... in the order in
    which the kernel multiplies. After rounding no pair exceeds 128: two values whose sum is at most 128 can both
    round up only where the fractions reach 1/2 together, which rounding half to even prevents at 128 exactly.

    Args:
        rows: float32 (channels, K), each row in multiplication order.
        paired: ``False`` for depthwise convolutions, whose products are added in 32 bits.

    Returns:
        float32 (channels,), positive.
    """
    values = rows.astype(np.float64)
    scales = np.abs(values).max(axis=1) / 127
    if paired:
        scales = np.maximum(scales, _pair_sums(values).max(axis=1) / MAX_PAIR_SUM)
    # A channel of zeros needs some scale; this one keeps its bias well inside 32 bits.
    scales = np.where(scales > 0, scales, 1 / 127)
    # Rounded up to float32: one unit below would let the largest weight round past its limit.
    return np.nextafter(scales.astype(np.float32), np.float32(np.inf))


def _pair_sums(rows: NDArray[Any]) -> NDArray[Any]:
    """Per row and pair the largest |sum| that activations >= 0 can select: of the positives or the negatives."""
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = padded.reshape(len(padded), -1, 2)
    sums: NDArray[Any] = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2))
    return sums


def _kernel_rows(node: Any, weight: NDArray[Any]) -> tuple[NDArray[Any], int, bool]:
    """A weight as (channels, K) in multiplication order, its channel axis, and whether products pair up."""
    if node.op_type == "Conv":
        # onnxruntime's kernels walk (kernel y, kernel x, input channel).
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        # One input and one output channel per group takes the depthwise kernel, which adds in 32 bits. A single
        # input channel otherwise (grey, or a channel multiplier) takes the general one and pairs kernel positions.
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        depthwise = groups > 1 and weight.shape[1] == 1 and groups == len(weight)
        return rows, 0, not depthwise
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return (weight, 0, True) if transposed else (weight.T, 1, True)


def _weight_overrides(graph: Any) -> dict[str, list[dict[str, Any]]]:
    """onnxruntime's TensorQuantOverrides for every constant weight of a product."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.input[1] not in weights:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        if weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        rows, axis, paired = _kernel_rows(node, weight)
        zero = np.array(0, np.int8)
        scales = saturation_safe_scales(rows, paired=paired)
        other = overrides.get(node.input[1])
        if other is not None:  # one weight, two users: the larger scale is safe for both
            same_axis = other[0]["axis"] == axis
            known = np.array([entry["scale"] for entry in other])
            scales = (
                np.maximum(scales, known)
                if same_axis
                else np.full_like(known, max(scales.max(), known.max()))
            )
            axis = other[0]["axis"]
        overrides[node.input[1]] = [{"axis": axis, "scale": scale, "zero_point": zero} for scale in scales]
    return overrides


def _check_saturation(model: Any) -> None:
    for name, largest in largest_pair_sums(model).items():
        if largest > _SIXTEEN_BITS:
            raise PrecisionError(
                f"A sum of two products in {name} can reach {largest}, over {_SIXTEEN_BITS}."
            )


def largest_pair_sums(model: Any) -> dict[str, int]:
    """For every paired product of an INT8 file: the largest |sum of two products| that any input can cause.

    Read from the int8 weights in the file; 32,767 is the limit of 16 signed bits.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    sums: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        dequantize = producers.get(node.input[1])
        if dequantize is None or dequantize.input[0] not in weights:
            continue
        weight = numpy_helper.to_array(weights[dequantize.input[0]]).astype(np.int64)
        rows, _, paired = _kernel_rows(node, weight)
        if paired:
            sums[node.name] = int(255 * _pair_sums(rows).max())
    return sums


# --------------------------------------------------------------------------------------------------------------
# Graph surgery


def _adapt_graph(graph: Any, float_graph: Any, keep_float: Collection[str], pixel_is_input: bool) -> bool:
    """What the quantizer lacks: shielded products, float logits, pixels as input. Whether those feed directly."""
    _shield_kept(graph, keep_float)
    pixels_feed_directly = pixel_is_input and _feed_pixels(graph)
    _keep_float_logits(graph, float_graph)
    return pixels_feed_directly


def _pixel_override() -> list[dict[str, Any]]:
    """A pixel's own quantization, as onnxruntime's TensorQuantOverrides has it."""
    return [
        {
            "scale": np.array(_PIXEL_SCALE, np.float32),
            "zero_point": np.array(_PIXEL_ZERO_POINT, np.uint8),
        }
    ]


def _feed_pixels(graph: Any) -> bool:
    """Replace Cast, Transpose, Mul, Add, QuantizeLinear by one Transpose of uint8, where they stand so."""
    cast, transpose, multiply, add = entry_chain(graph)
    consumers = [n for n in graph.node if add.output[0] in n.input]
    if [n.op_type for n in consumers] != ["QuantizeLinear"]:
        return False
    quantize = consumers[0]
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scale, zero_point = (constants[name] for name in quantize.input[1:3])
    if float(scale) != _PIXEL_SCALE or int(zero_point) != _PIXEL_ZERO_POINT:
        raise PrecisionError(f"The input was quantized with {scale}, {zero_point}; a pixel is 1/128, 127.")
    pixels = helper.make_node(
        "Transpose", [INPUT_NAME], [quantize.output[0]], name="pixels", perm=[0, 3, 1, 2]
    )
    for node in (cast, transpose, multiply, add, quantize):
        graph.node.remove(node)
    graph.node.insert(0, pixels)
    return True


def _shield_kept(graph: Any, keep_float: Collection[str]) -> None:
    """Keep onnxruntime from quantizing float weights after all.

    Between a DequantizeLinear and a QuantizeLinear its WeightBiasQuantization transformer puts the float weights of
    Conv and Gemm into int8 with one scale for the whole tensor (onnxruntime 1.31, qdq_transformer): worse than what
    the file was spared, and neither saturation-safe. It asks for a scalar input scale, so these nodes read the
    same 8-bit values through a DequantizeLinear that repeats scale and zero point for every channel.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [n for n in graph.node if n.name in keep_float and n.op_type in {"Conv", "Gemm"}]:
        dequantize = made_by.get(node.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        names = [f"{node.name}.input_{part}" for part in ("scale", "zero_point")]
        for name, old in zip(names, dequantize.input[1:], strict=True):
            repeated = np.full(_input_channels(node, constants), constants[old], constants[old].dtype)
            graph.initializer.append(numpy_helper.from_array(repeated, name))
        shielded = helper.make_node(
            "DequantizeLinear",
            [dequantize.input[0], *names],
            [f"{node.name}.input"],
            f"{node.name}.shield",
            axis=1,
        )
        graph.node.insert(list(graph.node).index(node), shielded)
        node.input[0] = shielded.output[0]
        if not any(dequantize.output[0] in other.input for other in graph.node):
            graph.node.remove(dequantize)


def _input_channels(node: Any, constants: dict[str, NDArray[Any]]) -> int:
    attributes = {a.name: a.i for a in node.attribute}
    shape = constants[node.input[1]].shape
    if node.op_type == "Conv":
        return int(shape[1]) * int(attributes.get("group", 1))
    return int(shape[1] if attributes.get("transB") else shape[0])


def _keep_float_logits(graph: Any, float_graph: Any) -> None:
    """Drop the Q/DQ pair before the output: 256 steps of logit would make ties of near answers.

    Not where the network ends in a ReLU or Clip: the quantizer has folded it into the pair's own limits.
    """
    last = next(node.op_type for node in float_graph.node if OUTPUT_NAME in node.output)
    producers = {output: node for node in graph.node for output in node.output}
    dequantize = producers[OUTPUT_NAME]
    quantize = producers.get(dequantize.input[0])
    if dequantize.op_type != "DequantizeLinear" or quantize is None or quantize.op_type != "QuantizeLinear":
        return
    source = producers[quantize.input[0]]
    if source.op_type != last or sum(quantize.input[0] in node.input for node in graph.node) > 1:
        return
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    source.output[list(source.output).index(quantize.input[0])] = OUTPUT_NAME


def _finish(quantized: Any, source: Any) -> None:
    used = {name for node in quantized.graph.node for name in node.input}
    kept = [tensor for tensor in quantized.graph.initializer if tensor.name in used]
    del quantized.graph.initializer[:]
    quantized.graph.initializer.extend(kept)
    del quantized.graph.value_info[:]  # inferred for the FP32 graph
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(source.metadata_props)
    quantized.ir_version = source.ir_version
    quantized.producer_name = "edgekiln"
    onnx.checker.check_model(quantized, full_check=True)
