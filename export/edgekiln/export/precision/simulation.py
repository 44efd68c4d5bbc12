"""What a TensorRT graph answers, told by onnxruntime on a CPU: evidence before a GPU is at hand, never a verdict.

Two things differ from the engine, and both are why this is called a simulation. Q/DQ pairs are computed as written,
in floating point (``session.disable_quant_qdq``): onnxruntime's fused INT8 kernels saturate on CPUs without VNNI and
would libel a symmetric INT8 graph by nine points of top-1. And values between FP16 nodes are kept in float32. BF16, for
which onnxruntime has no kernels on CPUs, is emulated: float32 arithmetic, and each result rounded to BF16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.parity import Compared, Parity, check_parity
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.errors import EngineError, NonFiniteError
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Frames, Logits

__all__ = ["Simulation", "check_simulated_parity", "emulate_bf16", "simulate"]

_BATCH = 32
_BF16 = TensorProto.BFLOAT16
_CONVERTED = Compared(
    "The converted graph",
    "the FP32 graph",
    "The network's values suit 16 bits badly: train it longer, raise export.fp16_tolerance, or take FP32.",
)


class Runs(Protocol):
    """A graph that was opened: uint8 (N, H, W, 3) to float32 (N, C)."""

    def run(self, frames: Frames) -> Logits:
        """The logits of a batch."""

    def close(self) -> None:
        """Free it."""


class Simulation:
    """A graph with FP16, BF16 or explicit Q/DQ in it, computed as written.

    Raises:
        EngineError: onnxruntime refuses it.
    """

    def __init__(self, model: bytes) -> None:
        ort = import_onnxruntime("cpu")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = ort.InferenceSession(
                emulate_bf16(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors share no base class
            raise _refusal(error) from error

    def run(self, frames: Frames) -> Logits:
        """float32 (N, C) for uint8 (N, H, W, 3). Raises EngineError where onnxruntime fails."""
        try:
            logits: Logits = self._session.run([OUTPUT_NAME], {INPUT_NAME: frames})[0]
        except Exception as error:
            raise _refusal(error) from error
        return logits

    def close(self) -> None:
        """Free it."""
        self._session = None


def emulate_bf16(model: bytes) -> bytes:
    """A graph in float32 that rounds to BF16 what the given one computes in it; one without BF16 as it is.

    Each result becomes the pair Cast to BF16, Cast to float32; weights are rounded already.
    """
    if not _holds_bf16(loaded := onnx.load_from_string(model)):
        return model
    typed = onnx.shape_inference.infer_shapes(loaded).graph
    rounded = {value.name for value in typed.value_info if value.type.tensor_type.elem_type == _BF16}
    graph, nodes = loaded.graph, []
    for tensor in [t for t in graph.initializer if t.data_type == _BF16]:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )
    for node in graph.node:
        results = [name for name in node.output if name in rounded]
        if node.op_type == "Cast" and results:
            node.attribute[0].i = TensorProto.FLOAT
        for number, name in enumerate(node.output):
            if name in rounded:
                node.output[number] = f"{name}/exact"
        nodes.append(node)
        for name in results:
            nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/bf16"], to=_BF16))
            nodes.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(loaded.SerializeToString())


def _holds_bf16(model: onnx.ModelProto) -> bool:
    casts = (node for node in model.graph.node if node.op_type == "Cast")
    return any(attribute.i == _BF16 for node in casts for attribute in node.attribute)


def _refusal(error: Exception) -> EngineError:
    return EngineError(f"onnxruntime cannot run the converted graph: {error}")


def simulate(model: bytes, frames: Frames, open_graph: Callable[[bytes], Runs] = Simulation) -> Logits:
    """float32 (N, C) logits of a graph with FP16 or explicit Q/DQ in it, for uint8 (N, H, W, 3).

    Args:
        model: the ONNX file's bytes.
        frames: may be memory-mapped.
        open_graph: ``Simulation``, or what opens one in another process.

    Raises:
        EngineError: onnxruntime refuses the graph.
        NonFiniteError: NaN or infinity came out.
    """
    session = open_graph(model)
    try:
        logits: Logits = np.concatenate(
            [session.run(np.array(frames[i : i + _BATCH])) for i in range(0, len(frames), _BATCH)]
        )
    finally:
        session.close()
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise NonFiniteError(
            f"The converted graph gives NaN or infinity for {bad.size} of {len(frames)} images; "
            f"the first is number {bad[0]}.",
            hint="Keep the layers named above in float32, or take FP32.",
        )
    return logits


def check_simulated_parity(
    source: bytes,
    converted: bytes,
    frames: Frames,
    tolerance: float,
    open_graph: Callable[[bytes], Runs] = Simulation,
) -> Parity:
    """Compare an FP16 graph with its FP32 source on real pictures, before anything is built from it.

    Args:
        source: the FP32 file.
        converted: the FP16 file.
        frames: uint8 (N, H, W, 3).
        tolerance: largest |difference| as a share of the range of the FP32 logits.
        open_graph: see ``simulate``.

    Raises:
        ParityError: they differ more, or disagree about a clear top-1.
        NonFiniteError: NaN or infinity.
    """
    keys = [f"calibration image {i}" for i in range(len(frames))]
    reference, logits = (simulate(model, frames, open_graph) for model in (source, converted))
    return check_parity(reference, logits, keys, tolerance, _CONVERTED)
