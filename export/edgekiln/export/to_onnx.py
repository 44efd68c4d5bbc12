"""A PyTorch network to one ONNX file: uint8 NHWC pixels in, normalization in the graph, float32 logits out.

The graph begins with Cast, Transpose, one Mul and one Add, in this order: TensorRT accepts uint8 only into a
Cast, and a later step replaces exactly this chain. Precision variants are made from the file elsewhere.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgekiln.runtime.contract import Contract, Normalization
from edgekiln.runtime.errors import ContractError, GateError
from edgekiln.runtime.onnx_files.metadata import (
    CONTRACT_DIGEST_KEY,
    CONTRACT_KEY,
    PRECISION_KEY,
    STATIC_BATCHES_KEY,
)
from edgekiln.runtime.spec import INPUT_NAME, OUTPUT_NAME, Precision

__all__ = [
    "MAX_IR_VERSION",
    "SHAPE_OPERATORS",
    "PixelModel",
    "ask_for_precision",
    "ask_for_static_batches",
    "entry_chain",
    "export_onnx",
    "normalize",
    "quiet_exporter",
    "read_contract",
]

MAX_IR_VERSION = 10
"""The newest that TensorRT 10.3 (JetPack 6) reads."""
SHAPE_OPERATORS = frozenset({"Shape", "Range", "Gather", "Size", "Slice", "NonZero", "If", "Loop"})
"""Shape arithmetic: a plain CNN has none, and where it appears an exporter has lost a static shape."""


class PixelModel(nn.Module):
    """What ships: uint8 (N, H, W, 3) to float32 logits (N, C)."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        std = torch.tensor(normalization.std, dtype=torch.float64)
        mean = torch.tensor(normalization.mean, dtype=torch.float64)
        # (x - mean) / std as one Mul and one Add; exact in float32 for the shared normalization.
        self.register_buffer("scale", (1 / std).float().view(1, 3, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        # Without .contiguous() the exporter leaves Shape, Range and Gather nodes around pooling.
        pixels = frames.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits: Tensor = self.network(normalize(pixels, self.scale, self.offset))
        return logits.float()


def normalize(pixels: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Float pixels (N, 3, H, W), 0 to 255, to the network's input."""
    return pixels * scale + offset


def export_onnx(model: PixelModel, contract: Contract, path: Path, *, opset: int = 18) -> None:
    """Write ``model`` as one self-contained ONNX file with a dynamic batch.

    Args:
        model: in evaluation mode, on the CPU.
        contract: written into the file's metadata together with its digest.
        path: file to write.
        opset: 18 to 20; TensorRT 10.3 reads up to 20.

    Raises:
        GateError: the exporter produced a graph that cannot ship, with what is wrong.
    """
    # A batch of 2: with 1 the exporter specializes and refuses the dynamic dimension.
    example = torch.zeros((2, contract.height, contract.width, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"frames": {0: batch}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _explain(error, opset) from error
    assert program is not None  # it is None only where a file name was given
    proto = program.model_proto
    _finish(proto, contract, opset)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _explain(error: Exception, opset: int) -> GateError:
    """The exporter's error as it began: it wraps what the network's own code or one operator raised."""
    cause = error.__cause__ or error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
    return GateError(
        f"The network cannot be exported to ONNX with opset {opset}: {reason}.",
        hint="Its code may neither branch on the pictures' values nor fix the number of pictures; for an operator that "
        "is not known, try another export.opset (18 to 20) or another backbone.model.",
    )


def _finish(proto: Any, contract: Contract, opset: int) -> None:
    """Metadata, and the promises of this module checked on the graph itself."""
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    proto.producer_name = "edgekiln"
    for node in proto.graph.node:  # exporters write the paths of source files into every node
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    _drop_identities(proto.graph)
    metadata = {
        CONTRACT_KEY: contract.to_json(),
        CONTRACT_DIGEST_KEY: contract.digest,
        "edgekiln.classes": "\n".join(contract.classes),
    }
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets.get("", 99) > 20 or proto.ir_version > MAX_IR_VERSION:
        raise GateError(
            f"The exporter wrote opset {opsets} and IR {proto.ir_version}; wanted opset {opset}, "
            f"IR <= {MAX_IR_VERSION}."
        )
    entry_chain(proto.graph)
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise GateError("The exporter fixed the batch dimension.", hint="Avoid batch-dependent Python code.")


def _drop_identities(graph: Any) -> None:
    """A slice that takes everything leaves an Identity, and quantizers see no convolution behind it."""
    results = {value.name for value in graph.output}
    sources: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.output[0] not in results]:
        sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = sources.get(name, name)
    for value in [value for value in graph.value_info if value.name in sources]:
        graph.value_info.remove(value)


def entry_chain(graph: Any) -> list[Any]:
    """The Cast, Transpose, Mul and Add that turn pixels into the network's input; Shape nodes only look on.

    Raises:
        GateError: the graph begins otherwise.
    """
    chain: list[Any] = []
    name = INPUT_NAME
    for operator in ("Cast", "Transpose", "Mul", "Add"):
        consumers = [node for node in graph.node if name in node.input and node.op_type != "Shape"]
        if [node.op_type for node in consumers] != [operator]:
            got = " and ".join(node.op_type for node in consumers) or "nothing"
            raise GateError(
                f"The graph begins with {got} where {operator} was expected.",
                hint="Quantize files that edgekiln exported.",
            )
        chain += consumers
        name = consumers[0].output[0]
    return chain


class quiet_exporter:
    """Silences the exporter's own chatter: deprecations inside torch, and warnings about absent converters."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("torch.onnx").setLevel(self._level)
        self._warnings.__exit__(None, None, None)


def read_contract(proto: Any) -> Contract:
    """The contract in an ONNX file's metadata.

    Raises:
        ContractError: the file holds none.
    """
    for entry in proto.metadata_props:
        if entry.key == CONTRACT_KEY:
            return Contract.from_json(entry.value)
    raise ContractError(
        "This ONNX file holds no edgekiln contract in its metadata.",
        hint="Take a graph that `edgekiln run` exported: only there it is told how a picture becomes the input.",
    )


def ask_for_precision(model: bytes, precision: Precision) -> bytes:
    """A file that asks the library that runs it to compute in ``precision``, which its graph does not say."""
    return _ask(model, PRECISION_KEY, precision.value)


def ask_for_static_batches(model: bytes, sizes: Iterable[int]) -> bytes:
    """A file that asks OpenVINO for a model of static shape for each of these batch sizes."""
    return _ask(model, STATIC_BATCHES_KEY, ",".join(map(str, sorted(set(sizes)))))


def _ask(model: bytes, key: str, value: str) -> bytes:
    asking = onnx.load_from_string(model)
    told = {entry.key: entry.value for entry in asking.metadata_props}
    onnx.helper.set_model_props(asking, {**told, key: value})
    return bytes(asking.SerializeToString(deterministic=True))
