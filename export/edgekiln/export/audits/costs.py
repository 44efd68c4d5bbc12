"""What one image costs an engine, counted on its ONNX graph: multiply-accumulates and bytes.

These are the two numbers of the roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009): arithmetic and
traffic. The module knows nothing of machines, nor of what an engine fuses beyond what is said at ``count_costs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

import onnx

from edgekiln.export.audits.macs import PRODUCTS, count_macs, infer_one_image, known_shapes

__all__ = ["Costs", "count_costs"]

_ELEMENTWISE = {"Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Identity", "Cast"}
"""What engines compute in the epilogue of a product, so that its own output never reaches memory."""
_CHAIN = 8


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one image.

    Attributes:
        macs: multiply-accumulates of all products; one is two operations.
        weight_bytes: all constants, in the types that the engine reads.
        activation_bytes: sum over products of (input + output elements) times their element size. An upper bound of
            the traffic: what stays in a cache between two layers never reaches memory.
        input_bytes: of the image.
        output_bytes: of the answer.
        unknown: products and tensors that could not be counted.
    """

    macs: int
    weight_bytes: int
    activation_bytes: int
    input_bytes: int
    output_bytes: int
    unknown: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "unknown": list(self.unknown)}


def count_costs(model: bytes) -> Costs:
    """Count on the bytes of an ONNX file, with shapes inferred for a batch of 1.

    MACs as in ``macs.count_macs``. A tensor counts in the type in which it is kept in memory: a product's input from
    DequantizeLinear counts as the integers before it, its output as the integers of a QuantizeLinear that follows it
    directly or behind an activation, and a float weight that only QuantizeLinear or Cast reads as what that makes of
    it once, when the engine is built.
    """
    loaded = onnx.load_model_from_string(model)
    macs = count_macs(loaded)
    single, batch = infer_one_image(loaded)
    graph = _Graph(single.graph)
    unknown = list(macs.unknown)
    activations = 0
    for node in single.graph.node:
        for name in graph.activations_of(node):
            stored = graph.bytes_of(name)
            if stored is None:
                unknown.append(name)
            else:
                activations += stored
    return Costs(
        macs=sum(macs.values()),
        weight_bytes=graph.constant_bytes(),
        activation_bytes=activations // batch,
        input_bytes=_sum_known(graph.bytes_of(name, raw=True) for name in graph.inputs) // batch,
        output_bytes=_sum_known(graph.bytes_of(v.name, raw=True) for v in single.graph.output) // batch,
        unknown=tuple(dict.fromkeys(unknown)),
    )


class _Graph:
    """Who makes and who reads each tensor, its shape, and the type in which it lies in memory."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._shapes = known_shapes(graph)
        self._types = _element_types(graph)
        self._constants = _constants(graph)
        for name, tensor in self._constants.items():
            self._shapes[name], self._types[name] = tuple(tensor.dims), tensor.data_type
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in graph.output}
        self.inputs = [value.name for value in graph.input if value.name not in self._constants]

    def activations_of(self, node: onnx.NodeProto) -> list[str]:
        """The tensors that a product reads and writes, weights left out; none of any other node."""
        if node.op_type not in PRODUCTS:
            return []
        read = [name for name in node.input[:2] if not self._is_constant(name)]
        return [*read, node.output[0]]

    def _is_constant(self, name: str) -> bool:
        for _ in range(_CHAIN):
            if name in self._constants:
                return True
            maker = self._makers.get(name)
            if maker is None or maker.op_type not in {
                "DequantizeLinear",
                "QuantizeLinear",
                "Cast",
                "Transpose",
            }:
                return False
            name = maker.input[0]
        return False

    def bytes_of(self, name: str, *, raw: bool = False) -> int | None:
        """Bytes of a tensor; with ``raw`` in its own type, else in the one it is kept in."""
        shape = self._shapes.get(name)
        kept = self._types.get(name) if raw else self._kept_type(name)
        return None if shape is None or not kept else ceil(prod(shape) * _bits(kept) / 8)

    def _kept_type(self, name: str) -> int | None:
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return self._types.get(maker.input[0])
        written = name
        for _ in range(_CHAIN):
            readers = self._readers.get(written, [])
            if len(readers) != 1 or written in self._outputs:
                break
            if readers[0].op_type in _ELEMENTWISE | {"QuantizeLinear"}:
                written = readers[0].output[0]
            if readers[0].op_type not in _ELEMENTWISE:
                break
        return self._types.get(written)

    def constant_bytes(self) -> int:
        """Bytes of all constants, each once."""
        return sum(
            ceil(prod(tensor.dims) * _bits(self._built_type(name)) / 8)
            for name, tensor in self._constants.items()
        )

    def _built_type(self, name: str) -> int:
        """The type of a constant after what only converts it was computed at build time."""
        readers = self._readers.get(name, [])
        made = {
            self._types.get(reader.output[0])
            for reader in readers
            if reader.op_type in {"QuantizeLinear", "Cast"} and reader.input[0] == name
        }
        kinds = {reader.op_type for reader in readers}
        if len(made) == 1 and kinds <= {"QuantizeLinear", "Cast"}:
            return made.pop() or self._types[name]
        return self._types[name]


def _constants(graph: onnx.GraphProto) -> Mapping[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _bits(data_type: int) -> int:
    """Bits of one element as ONNX packs it."""
    if data_type in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1}:
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _sum_known(values: Iterable[int | None]) -> int:
    return sum(value or 0 for value in values)
