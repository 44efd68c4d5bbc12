"""Is this an ONNX model, and does it hold all of its weights itself? Told from its bytes, before a library parses them.

A tensor may name another file as the place of its values (``TensorProto.external_data``). Such a file is covered by no
digest of the model's, and some libraries open whatever path stands there. This module walks the protobuf wire format
(https://protobuf.dev/programming-guides/encoding/) with the field numbers of onnx.proto, as far as tensors can hide:
initializers, sparse ones, attributes, subgraphs, functions and training graphs. It knows nothing of what the graph
means: whether a model is valid is for the library to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.runtime.errors import EngineError

__all__ = ["MAX_DEPTH", "MAX_FIELDS", "check_self_contained"]

MAX_DEPTH = 100
"""Messages inside one another; protobuf itself refuses more."""
MAX_FIELDS = 1_000_000
"""In all messages together, which bounds time and memory; a network of a hundred layers has some ten thousand."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_TAG = 2**32  # a longer tag would be cut to 32 bits by some parsers, and so mean another field to them

# Message kinds, and for each the fields that lead to a tensor: number to the kind inside. From onnx.proto (IR 13).
_CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "TensorProto": {},
}
_IR_VERSION, _GRAPH = 1, 7  # of ModelProto
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # of TensorProto


def check_self_contained(model: bytes) -> None:
    """Let only an ONNX model pass that keeps nothing in other files. No file is opened.

    Raises:
        EngineError: the bytes are no ONNX ``ModelProto`` (or a cut one), or a tensor is kept elsewhere.
    """
    reader = _Reader(model)
    present = {(number, wire) for number, wire, _, _ in reader.fields(0, len(model))}
    if not present >= {(_IR_VERSION, _VARINT), (_GRAPH, _BYTES)}:
        raise _refuse("it has no IR version or no graph")
    waiting = [("ModelProto", 0, len(model), 1)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _refuse(f"its messages are nested more than {MAX_DEPTH} deep")
        if kind == "TensorProto":
            _check_tensor(reader, start, end)
            continue
        children = _CHILDREN[kind]
        for number, wire, begin, stop in reader.fields(start, end):
            if number not in children:
                continue
            if wire != _BYTES:
                raise _refuse(f"field {number} of a {kind} has wire type {wire}")
            waiting.append((children[number], begin, stop, depth + 1))


def _check_tensor(reader: _Reader, start: int, end: int) -> None:
    """Refuse a tensor whose values stand elsewhere, or that says where although their place is inside."""
    name, external = b"", False
    for number, wire, begin, stop in reader.fields(start, end):
        if (number, wire) == (_TENSOR_NAME, _BYTES):
            name = reader.model[begin:stop][:80]
        external |= number == _EXTERNAL_DATA
        external |= number == _DATA_LOCATION and (wire != _VARINT or reader.varint(begin, stop)[0] != 0)
    if external:
        raise EngineError(
            f"The tensor {name.decode('utf-8', 'replace')!r} of the model is kept in another file (external data), "
            "which the model's digest says nothing about.",
            hint="Save the model as one file: onnx.save(onnx.load(path), path).",
        )


class _Reader:
    """Reads protobuf's wire format; never past ``end``, and at most ``MAX_FIELDS`` fields in all."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._left = MAX_FIELDS

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and start and end of the value of each field in a message; nothing inside is read."""
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise _refuse(f"it has more than {MAX_FIELDS:,} fields")
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if not number or tag >= _MAX_TAG:
                raise _refuse(f"a field has the number {number}")
            start, stop = self._find_value(wire, position, end)
            if stop > end:
                raise _refuse("it ends in the middle of a field")
            yield number, wire, start, stop
            position = stop

    def _find_value(self, wire: int, position: int, end: int) -> tuple[int, int]:
        if wire == _VARINT:
            return position, self.varint(position, end)[1]
        if wire == _BYTES:
            size, start = self.varint(position, end)
            return start, start + size
        if wire in _FIXED_SIZES:
            return position, position + _FIXED_SIZES[wire]
        raise _refuse(f"a field has wire type {wire}")  # groups, which ONNX never had, and nonsense

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A variable-length integer of at most ten bytes, and where it ends."""
        value = shift = 0
        for at in range(position, min(position + 10, end)):
            byte = self.model[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at + 1
            shift += 7
        raise _refuse(
            "it ends in the middle of a number" if end - position < 10 else "a number has over ten bytes"
        )


def _refuse(why: str) -> EngineError:
    return EngineError(
        f"This is no ONNX model: {why}.", hint="Take a fresh copy of the file, or export the model again."
    )
