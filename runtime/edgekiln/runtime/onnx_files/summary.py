"""What an ONNX file holds, for people: versions, operators, and INT8 weights that some processors add up wrong.

Read from the bytes without an ONNX library, of a file that ``check_onnx`` has let pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgekiln.runtime.onnx_files.wire import BYTES, VARINT, Reader

__all__ = ["OnnxSummary", "summarize_onnx"]

# Numbers of fields, from onnx.proto.
_IR_VERSION, _GRAPH, _OPSETS, _FUNCTIONS = 1, 7, 8, 25  # of ModelProto
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2  # of OperatorSetIdProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_FUNCTION_NODE = 7  # of FunctionProto
_OPERATOR, _ATTRIBUTE = 4, 5  # of NodeProto
_TENSORS, _SUBGRAPHS = (5, 10), (6, 11)  # of AttributeProto
_DIMS, _DATA_TYPE, _INT32_DATA, _RAW_DATA = 1, 2, 5, 9  # of TensorProto
_INT8 = 3  # of TensorProto.DataType

_LOWEST_RAW = b"\x80"  # -128 as a byte,
_LOWEST_VARINT = b"\x80" + b"\xff" * 8 + b"\x01"  # and as protobuf's int32: ten bytes, sign extended
_QUANTIZERS = frozenset({
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
})  # fmt: skip
"""Operators that make activations of 8 bits or take them; without one, INT8 weights only save space."""


@dataclass(frozen=True, slots=True)
class OnnxSummary:
    """What was found in an ONNX file.

    Attributes:
        ir_version: of the file's format.
        opset: version of each domain's operators; ``ai.onnx`` is ONNX's own.
        operators: how many nodes of the graph have each operator; those of subgraphs and functions are left out.
        lowest_weights: INT8 weights of -128 in a model that computes in INT8, 0 in any other. Two products of them
            with the lowest activation are 2 * 128 * 128 = 32,768, one more than 16 bits hold. ARM cores without dot
            product add pairs of products in 16 bits, where the sum wraps and the answer may be wrong.
    """

    ir_version: int
    opset: dict[str, int]
    operators: dict[str, int]
    lowest_weights: int

    @property
    def warning(self) -> str | None:
        """What to know before it runs on an ARM core without dot product; ``None`` where nothing speaks against it."""
        if self.lowest_weights < 2:  # one alone cannot overflow
            return None
        return (
            f"{self.lowest_weights} of its INT8 weights are -128. ARM cores without dot product (Cortex-A53, A57, A72, "
            "A73: Raspberry Pi 3 and 4, Jetson Nano) add pairs of products in 16 bits, where two of them may overflow: "
            "answers may be wrong there. The INT8 files that edgekiln makes for CPUs hold no such weight."
        )


@dataclass(slots=True)
class _Found:
    """What all graphs and functions hold together."""

    operators: set[str] = field(default_factory=set)
    lowest_weights: int = 0


def summarize_onnx(model: bytes) -> OnnxSummary:
    """Versions, operators and lowest weights of a model.

    Args:
        model: the bytes of a file that ``check_onnx`` has let pass, which bounds how deep its graphs go.

    Raises:
        EngineError: the bytes are no ONNX ``ModelProto``.
    """
    reader, found = Reader(model), _Found()
    ir_version, opset, operators = 0, dict[str, int](), Counter[str]()
    for number, wire, start, stop in reader.fields(0, len(model)):
        if (number, wire) == (_IR_VERSION, VARINT):
            ir_version = reader.varint(start, stop)[0]
        elif (number, wire) == (_OPSETS, BYTES):
            domain, version = _read_opset(reader, start, stop)
            opset[domain or "ai.onnx"] = version
        elif (number, wire) == (_GRAPH, BYTES):
            operators += _look_into(reader, start, stop, found, node=_NODE)
        elif (number, wire) == (_FUNCTIONS, BYTES):
            _look_into(reader, start, stop, found, node=_FUNCTION_NODE)
    lowest = found.lowest_weights if found.operators & _QUANTIZERS else 0
    return OnnxSummary(ir_version, opset, dict(sorted(operators.items())), lowest)


def _read_opset(reader: Reader, start: int, stop: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire, begin, end in reader.fields(start, stop):
        if (number, wire) == (_OPSET_DOMAIN, BYTES):
            domain = reader.model[begin:end].decode("utf-8", "replace")
        elif (number, wire) == (_OPSET_VERSION, VARINT):
            version = reader.varint(begin, end)[0]
    return domain, version


def _look_into(reader: Reader, start: int, stop: int, found: _Found, *, node: int) -> Counter[str]:
    """Operators of a graph or function by number; what lies deeper goes into ``found`` alone."""
    operators = Counter[str]()
    for number, wire, begin, end in reader.fields(start, stop):
        if wire != BYTES:
            continue
        if number == node:
            operators[_read_node(reader, begin, end, found)] += 1
        elif number == _INITIALIZER and node == _NODE:
            found.lowest_weights += _count_lowest(reader, begin, end)
    found.operators |= operators.keys()
    return operators


def _read_node(reader: Reader, start: int, stop: int, found: _Found) -> str:
    """Its operator; weights may stand in a Constant's attribute, and graphs in those of If, Loop and Scan."""
    operator = ""
    for number, wire, begin, end in reader.fields(start, stop):
        if (number, wire) == (_OPERATOR, BYTES):
            operator = reader.model[begin:end].decode("utf-8", "replace")
        elif (number, wire) == (_ATTRIBUTE, BYTES):
            for inner, kind, first, last in reader.fields(begin, end):
                if kind == BYTES and inner in _TENSORS:
                    found.lowest_weights += _count_lowest(reader, first, last)
                elif kind == BYTES and inner in _SUBGRAPHS:
                    _look_into(reader, first, last, found, node=_NODE)
    return operator


def _count_lowest(reader: Reader, start: int, stop: int) -> int:
    """How many elements of an INT8 tensor of at least two dimensions are -128; fewer have scalars and zero points."""
    dimensions, kind, lowest = 0, 0, 0
    for number, wire, begin, end in reader.fields(start, stop):
        if number == _DIMS:  # packed, or one field for each
            packed = sum(byte < 0x80 for byte in reader.model[begin:end]) if wire == BYTES else 1
            dimensions += packed
        elif (number, wire) == (_DATA_TYPE, VARINT):
            kind = reader.varint(begin, end)[0]
        elif (number, wire) == (_RAW_DATA, BYTES):
            lowest += reader.model.count(_LOWEST_RAW, begin, end)
        elif number == _INT32_DATA:  # packed, or one field for each
            lowest += reader.model.count(_LOWEST_VARINT, begin, end)
    return lowest if kind == _INT8 and dimensions >= 2 else 0
