"""A fake-quantized network to an ONNX file with explicit Q/DQ: what ``int8_tensorrt`` makes, with trained weights.

torch's TorchScript exporter writes it, since ModelOpt's quantizers have symbolic functions for that one alone. What is
not quantized becomes FP16 by the converter that ModelOpt applies to its own quantized graphs; AutoCast refuses them.
The file then passes the lint and the checks of every other INT8 graph for TensorRT.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.parity import check_parity
from edgekiln.export.precision.int8_tensorrt import Int8Report, choose_rest, finish_quantized
from edgekiln.export.precision.modelopt import import_modelopt, quiet_modelopt
from edgekiln.export.precision.ranges import measure_peaks, refuse_non_finite
from edgekiln.export.precision.simulation import simulate
from edgekiln.export.qat.fake_quantization import quantizers_off, snap_weights
from edgekiln.export.to_onnx import PixelModel, quiet_exporter
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames, Logits

__all__ = ["export_fake_quantized"]

_PARITY_IMAGES = 64
_SHAPE_ARITHMETIC = frozenset(
    {
        *(
            "Cast",
            "Concat",
            "ConstantOfShape",
            "Gather",
            "Reshape",
            "Slice",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        )
    }
    | {*("Add", "Div", "Mul", "Sub")}
)
_BATCH = 32
_LARGEST_SHARE = 0.75
_FLOAT_NOISE = 1e-4  # of the logits' range, where quantization changes next to nothing


def export_fake_quantized(
    model: PixelModel,
    source: Path,
    target: Path,
    calibration: CalibrationSet,
    *,
    opset: int = 18,
    tolerance: float = 1e-3,
) -> Int8Report:
    """Write a fake-quantized model with explicit Q/DQ.

    Args:
        model: on the CPU; its network has calibrated quantizers (``fake_quantization``). INT8 weights are snapped to
            their grid, which changes no answer.
        source: FP32 file of the same network, written by ``export_onnx``: the interface and contract to keep.
        target: file to write: uint8 in, float32 logits out.
        calibration: real training pictures; magnitudes are read on all, the answers compared on the first 64.
        opset: of the export; FP16 scales raise it to 19.
        tolerance: largest |logit difference| of the file without Q/DQ, as a share of the logits' range.

    Raises:
        PrecisionError: the graph cannot be exported, the lint found an error, or activations are not finite.
        ParityError: the file answers otherwise than the network, Q/DQ aside.
    """
    model.eval()
    snap_weights(model.network)
    size, frames = calibration.frames.shape[1:3], calibration.frames[:_PARITY_IMAGES]
    with quantizers_off(model.network):
        plain, in_float = _export(model, size, opset), _answer(model, frames)
    keys = [f"calibration image {i}" for i in range(len(frames))]
    check_parity(in_float, simulate(plain, frames), keys, tolerance)
    peaks = measure_peaks(plain, calibration.frames)
    refuse_non_finite(peaks[0])
    rest = choose_rest(peaks)
    exported = _export(model, size, opset)
    _check_alike(_answer(model, frames), simulate(exported, frames), in_float)
    quantized = onnx.load_from_string(exported)
    _lift_constants(quantized.graph)
    _fold_shapes(quantized)
    if rest == "fp16":
        quantized = _convert_rest(quantized)
    return finish_quantized(quantized, onnx.load(source), target, rest)


def _check_alike(trained: Logits, exported: Logits, in_float: Logits) -> None:
    """Whether the file is nearer to the trained network than Q/DQ nodes left out or put wrongly would bring it.

    One rounding that falls to the other side (x / s here, x * (1 / s) there) is followed by others, so single answers
    may differ by as much as quantization itself changes; their root mean square may not.
    """
    away, change = (float(np.sqrt(np.square(a - trained).mean())) for a in (exported, in_float))
    noise = _FLOAT_NOISE * float(np.ptp(trained))
    if not away <= _LARGEST_SHARE * change + noise:
        raise PrecisionError(
            f"The exported Q/DQ graph is no copy of the trained network: their answers differ by {away:.3g} (root mean "
            f"square), and quantization itself changes them by {change:.3g}.",
            hint="Leave qat out for this backbone, or report it.",
        )


def _export(model: PixelModel, size: tuple[int, ...], opset: int) -> bytes:
    """The model by the TorchScript exporter, float32, with a dynamic batch."""
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder, quiet_exporter(), quiet_modelopt():
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
            )
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the exporter raises whatever its parts raise
            raise PrecisionError(
                f"torch cannot export the fake-quantized network: {type(error).__name__}: {error}",
                hint="Leave qat out, or take another backbone.",
            ) from error
        return path.read_bytes()


def _lift_constants(graph: Any) -> None:
    """Constant nodes become initializers, as the other exporter has them: scales are looked for there."""
    names = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in nodes:
        assert node.output[0] not in names  # names are unique in a valid graph
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


def _fold_shapes(model: Any) -> None:
    """Integers that are computed from constants become constants: the exporter computes the sizes of a padding in the
    graph, where nobody who infers shapes can follow. Q/DQ of weights stay as they are."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type not in _SHAPE_ARITHMETIC or not all(name in constants for name in node.input if name):
            continue
        values = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input if name})
        if all(value.dtype == np.int64 for value in values):
            constants.update(zip(node.output, values, strict=True))
            graph.initializer.extend(
                numpy_helper.from_array(value, name) for name, value in zip(node.output, values, strict=True)
            )
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _convert_rest(quantized: Any) -> Any:
    """Everything between the input and the logits in FP16, scales included."""
    autocast = import_modelopt("modelopt.onnx.autocast.convert")
    with quiet_modelopt():
        try:
            return autocast.convert_to_f16(quantized, low_precision_type="fp16", keep_io_types=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the library raises whatever its parts raise
            raise PrecisionError(
                f"ModelOpt cannot convert the quantized graph to FP16: {type(error).__name__}: {error}",
                hint="Leave qat out, or take another backbone.",
            ) from error


def _answer(model: PixelModel, frames: Frames) -> Logits:
    """What the fake-quantized network itself answers, float32 (N, C)."""
    with torch.no_grad():
        parts: list[Tensor] = [
            model(torch.from_numpy(np.array(frames[i : i + _BATCH]))) for i in range(0, len(frames), _BATCH)
        ]
    logits: Logits = torch.cat(parts).numpy()
    return logits
