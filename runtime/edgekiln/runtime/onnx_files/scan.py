"""May a library be shown these bytes? An ONNX model, bounded, that holds all of its weights and runs known operators.

Told from the bytes, before onnxruntime, OpenVINO or TensorRT parses them. A tensor may name another file as the place
of its values (``TensorProto.external_data``). Such a file is covered by no digest of the model's, and some libraries
open whatever path stands there. An operator of another domain than ONNX's own runs code that the library's owner
registered, or a part of the library that few people test. Subgraphs and functions are followed by recursion, and
functions are written out where they are called, so that a few hundred bytes may become any number of nodes.

This module walks the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) with the field numbers
of onnx.proto, as far as tensors and nodes can hide: initializers, sparse ones, attributes, subgraphs, functions and
training graphs. It knows nothing of what the graph means: whether a model is valid is for the library to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.onnx_files.edges import check_edges
from edgekiln.runtime.onnx_files.wire import BYTES, VARINT, Reader, refuse

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_SUBGRAPHS",
    "MAX_VERSION",
    "ONNX_DOMAINS",
    "check_onnx",
]

MAX_BYTES = 2**30
"""Of the whole file, as for a member of a zip bundle; protobuf itself takes less than twice that."""
MAX_DEPTH = 100
"""Messages inside one another; protobuf itself refuses more."""
MAX_SUBGRAPHS = 16
"""Graphs inside one another, by If, Loop, Scan and what else has a graph as an attribute; libraries recurse."""
MAX_NODES = 100_000
"""Of all graphs, with every function written out at each of its calls."""
MAX_VERSION = 1000
"""Of the IR and of an opset; today's are 13 and 26."""
ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"})
"""The standard's own. The empty name and ``ai.onnx`` are the same one."""

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
_IR_VERSION, _GRAPH, _OPSETS, _FUNCTIONS = 1, 7, 8, 25  # of ModelProto
_FUNCTION_OPSETS, _OPSET_VERSION = 9, 2  # of FunctionProto and of OperatorSetIdProto
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # of TensorProto
# Kinds with a name in a domain: the numbers of domain, name and overload.
_NAMED = {"NodeProto": (7, 4, 8), "FunctionProto": (10, 1, 13)}

_Name: TypeAlias = "tuple[bytes, bytes, bytes]"
"""Domain, name and overload of an operator or a function, as they stand in the file."""


@dataclass(slots=True)
class _Body:
    """What runs when a function is called, or for ``None`` in the model's own graphs: its nodes by operator."""

    nodes: Counter[_Name] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message still to be read: what it is, where it stands, how deep, and in whose body."""

    kind: str
    start: int
    end: int
    depth: int
    graphs: int
    body: _Body


def check_onnx(model: bytes, *, allow_operators: Collection[str] = ()) -> None:
    """Let only a bounded ONNX model pass that keeps nothing in other files. No file is opened.

    Args:
        model: the bytes of the file.
        allow_operators: operators of other domains than ONNX's that may stand in it, as ``com.microsoft::Gelu``.

    Raises:
        EngineError: the bytes are no ONNX ``ModelProto`` (or a cut one), exceed a limit above, keep a tensor
            elsewhere, hold an operator of another domain that is not allowed, or a node that reads what nothing before
            it writes.
    """
    if len(model) > MAX_BYTES:
        raise refuse(f"it has {len(model)} bytes, over {MAX_BYTES}")
    reader = Reader(model)
    parts = [(number, wire) for number, wire, _, _ in reader.fields(0, len(model))]
    if not {*parts} >= {(_IR_VERSION, VARINT), (_GRAPH, BYTES)}:
        raise refuse("it has no IR version or no graph")
    _check_versions(reader)
    bodies = _walk(reader)
    _check_operators(bodies, allow_operators)
    _check_written_out(bodies)
    if parts.count((_GRAPH, BYTES)) > 1:
        raise refuse("it has several graphs")
    check_edges(Reader(model))


def _check_versions(reader: Reader) -> None:
    """Refuse versions that do not exist: OpenVINO looks for an older one step by step, from 2^62 for ever."""
    for number, wire, start, stop in reader.fields(0, len(reader.model)):
        if (number, wire) == (_IR_VERSION, VARINT):
            _check_version("IR", reader.varint(start, stop)[0])
        elif (number, wire) == (_OPSETS, BYTES):
            _check_opset(reader, start, stop)
        elif (number, wire) == (_FUNCTIONS, BYTES):
            for inner, kind, begin, end in reader.fields(start, stop):
                if (inner, kind) == (_FUNCTION_OPSETS, BYTES):
                    _check_opset(reader, begin, end)


def _check_opset(reader: Reader, start: int, stop: int) -> None:
    for number, wire, begin, end in reader.fields(start, stop):
        if (number, wire) == (_OPSET_VERSION, VARINT):
            _check_version("opset", reader.varint(begin, end)[0])


def _check_version(what: str, version: int) -> None:
    if not 1 <= version <= MAX_VERSION:
        raise refuse(f"its {what} version is {version}")


def _walk(reader: Reader) -> dict[_Name | None, _Body]:
    """Every node by the body that it stands in: of the function of that name, or of the graphs under ``None``."""
    bodies: dict[_Name | None, _Body] = {None: _Body()}
    waiting = [_Message("ModelProto", 0, len(reader.model), 1, 0, bodies[None])]
    while waiting:
        message = waiting.pop()
        if message.depth > MAX_DEPTH:
            raise refuse(f"its messages are nested more than {MAX_DEPTH} deep")
        if message.graphs > MAX_SUBGRAPHS:
            raise refuse(f"its graphs are nested more than {MAX_SUBGRAPHS} deep")
        if message.kind == "TensorProto":
            _check_tensor(reader, message.start, message.end)
            continue
        waiting += _read_message(reader, message, bodies)
    return bodies


def _read_message(reader: Reader, message: _Message, bodies: dict[_Name | None, _Body]) -> Iterator[_Message]:
    """The messages inside that lead to tensors; a node is counted in its body, a function opens one of its own."""
    body = message.body
    if message.kind in _NAMED:
        name = _read_name(reader, message)
        if message.kind == "NodeProto":
            body.nodes[name] += 1
        elif name in bodies:
            raise refuse(f"it defines the function {_tell(name)} twice")
        else:
            body = bodies[name] = _Body()
    children = _CHILDREN[message.kind]
    for number, wire, begin, stop in reader.fields(message.start, message.end):
        if number not in children:
            continue
        if wire != BYTES:
            raise refuse(f"field {number} of a {message.kind} has wire type {wire}")
        kind = children[number]
        graphs = message.graphs + (kind == "GraphProto")
        yield _Message(kind, begin, stop, message.depth + 1, graphs, body)


def _read_name(reader: Reader, message: _Message) -> _Name:
    """Of fields that stand there several times the last one counts, as for any parser."""
    found = {
        number: reader.model[begin:stop]
        for number, wire, begin, stop in reader.fields(message.start, message.end)
        if wire == BYTES
    }
    domain, name, overload = (found.get(number, b"") for number in _NAMED[message.kind])
    return b"" if domain == b"ai.onnx" else domain, name, overload


def _check_operators(bodies: dict[_Name | None, _Body], allowed: Collection[str]) -> None:
    """Refuse operators of other domains, but for the model's own functions, whose nodes are checked as all others."""
    for body in bodies.values():
        for name in body.nodes:
            known = name[0].decode("utf-8", "replace") in ONNX_DOMAINS
            if not known and name not in bodies and _tell(name) not in allowed:
                raise EngineError(
                    f"The model holds the operator {_tell(name)}, which is not one of ONNX's own.",
                    hint=f"Where you know what it runs: load(..., allow_operators=[{_tell(name)!r}]).",
                )


def _check_written_out(bodies: dict[_Name | None, _Body]) -> None:
    """Refuse functions that call themselves, and more nodes than allowed once all calls are written out."""
    sizes: dict[_Name | None, int] = {}
    begun: set[_Name | None] = set()
    waiting = list(bodies)
    while waiting:
        name = waiting[-1]
        calls = bodies[name].nodes
        unsized = [callee for callee in calls if callee in bodies and callee not in sizes]
        if name in begun and name not in sizes and unsized:
            raise refuse(f"its function {_tell(unsized[0])} calls itself")  # it was met again above itself
        begun.add(name)
        waiting += unsized
        if unsized:
            continue
        waiting.pop()
        sizes[name] = sum(times * sizes.get(callee, 1) for callee, times in calls.items())
        if sizes[name] > MAX_NODES:
            raise refuse(f"it has more than {MAX_NODES:,} nodes, with its functions written out")


def _tell(name: _Name) -> str:
    """An operator for people and for the list of those allowed: ``domain::name``."""
    domain, operator = (part[:80].decode("utf-8", "replace") for part in name[:2])
    return f"{domain or 'ai.onnx'}::{operator}"


def _check_tensor(reader: Reader, start: int, end: int) -> None:
    """Refuse a tensor whose values stand elsewhere, or that says where although their place is inside."""
    name, external = b"", False
    for number, wire, begin, stop in reader.fields(start, end):
        if (number, wire) == (_TENSOR_NAME, BYTES):
            name = reader.model[begin:stop][:80]
        external |= number == _EXTERNAL_DATA
        external |= number == _DATA_LOCATION and (wire != VARINT or reader.varint(begin, stop)[0] != 0)
    if external:
        raise EngineError(
            f"The tensor {name.decode('utf-8', 'replace')!r} of the model is kept in another file (external data), "
            "which the model's digest says nothing about.",
            hint="Save the model as one file: onnx.save(onnx.load(path), path).",
        )
