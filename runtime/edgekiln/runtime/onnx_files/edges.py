"""Does every node of an ONNX model read what stands before it? Told from the bytes; the standard demands it.

OpenVINO's reader looks up the writer of each tensor, and the writer's inputs in turn: it runs for ever where nodes go
in a circle, and crashes where a node lacks an input that its operator needs. Both were found by fuzzing.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.runtime.onnx_files.operators import MINIMUM_INPUTS
from edgekiln.runtime.onnx_files.wire import BYTES, Reader, refuse

__all__ = ["check_edges"]

# Numbers of fields, from onnx.proto.
_GRAPH, _FUNCTIONS = 7, 25  # of ModelProto
_NODE, _INITIALIZER, _SPARSE, _INPUT, _OUTPUT = 1, 5, 15, 11, 12  # of GraphProto
_FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE = 4, 5, 7  # of FunctionProto
_READ, _WRITTEN, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_SUBGRAPHS = (6, 11)  # of AttributeProto
_VALUE_NAME, _TENSOR_NAME, _SPARSE_VALUES = 1, 8, 1  # of ValueInfoProto, TensorProto, SparseTensorProto

_Span = tuple[int, int]
_Scopes = tuple[set[bytes], ...]
"""Names of the graphs around a graph, without a copy for each: there may be many, with many names."""


def check_edges(reader: Reader) -> None:
    """Follow the nodes of the graph, its subgraphs and the functions in their order; ``reader`` bounds the walk.

    Raises:
        EngineError: a node or an output reads a name that nothing before it gives, a name is written twice, or a node
            of the standard lacks an input. Graphs are at most ``MAX_SUBGRAPHS`` deep, as ``check_onnx`` has seen.
    """
    model = _fields(reader, (0, len(reader.model)))
    for graph in model.get(_GRAPH, ()):
        _check_graph(reader, graph, ())
    for function in model.get(_FUNCTIONS, ()):
        _check_function(reader, function)


def _fields(reader: Reader, span: _Span) -> dict[int, list[_Span]]:
    """Where the fields of a message stand that hold text, bytes or messages, by their numbers."""
    found: dict[int, list[_Span]] = {}
    for number, wire, start, stop in reader.fields(*span):
        if wire == BYTES:
            found.setdefault(number, []).append((start, stop))
    return found


def _texts(reader: Reader, fields: dict[int, list[_Span]], number: int) -> list[bytes]:
    return [reader.model[start:stop] for start, stop in fields.get(number, ())]


def _names(reader: Reader, fields: dict[int, list[_Span]], number: int, name: int) -> Iterator[bytes]:
    """Of every message under ``number`` its field ``name``."""
    for span in fields.get(number, ()):
        yield from _texts(reader, _fields(reader, span), name)


def _check_graph(reader: Reader, span: _Span, outer: _Scopes) -> None:
    graph = _fields(reader, span)
    own = {*_names(reader, graph, _INPUT, _VALUE_NAME), *_names(reader, graph, _INITIALIZER, _TENSOR_NAME)}
    for sparse in graph.get(_SPARSE, ()):
        own.update(_names(reader, _fields(reader, sparse), _SPARSE_VALUES, _TENSOR_NAME))
    for node in graph.get(_NODE, ()):
        _check_node(reader, node, own, outer)
    _check_outputs([*_names(reader, graph, _OUTPUT, _VALUE_NAME)], (*outer, own))


def _check_function(reader: Reader, span: _Span) -> None:
    function = _fields(reader, span)
    own = {*_texts(reader, function, _FUNCTION_INPUT)}
    for node in function.get(_FUNCTION_NODE, ()):
        _check_node(reader, node, own, ())
    _check_outputs(_texts(reader, function, _FUNCTION_OUTPUT), (own,))


def _check_node(reader: Reader, span: _Span, own: set[bytes], outer: _Scopes) -> None:
    """What the node writes joins ``own``, the names of its graph; ``outer`` are those around it."""
    node = _fields(reader, span)
    read, operator = _texts(reader, node, _READ), _last(_texts(reader, node, _OPERATOR))
    if not operator:
        raise refuse("a node names no operator")
    for name in read:
        if name and not _is_known(name, (*outer, own)):
            raise refuse(f"a node {_tell(operator)} reads {_tell(name)}, which nothing before it writes")
    if _last(_texts(reader, node, _DOMAIN)) in {b"", b"ai.onnx"}:
        needed = MINIMUM_INPUTS.get(operator, 0)
        if len(read) < needed or not all(read[:needed]):
            raise refuse(f"a node {_tell(operator)} lacks an input that it needs")
    for attribute in node.get(_ATTRIBUTE, ()):
        fields = _fields(reader, attribute)
        for graph in (span for number in _SUBGRAPHS for span in fields.get(number, ())):
            _check_graph(reader, graph, (*outer, own))
    for name in filter(None, _texts(reader, node, _WRITTEN)):
        if name in own:
            raise refuse(f"a node {_tell(operator)} writes {_tell(name)}, which is there already")
        own.add(name)


def _last(texts: list[bytes]) -> bytes:
    """Of a field that stands there several times the last one counts, as for any parser."""
    return texts[-1] if texts else b""


def _is_known(name: bytes, scopes: _Scopes) -> bool:
    return any(name in scope for scope in scopes)


def _check_outputs(outputs: list[bytes], scopes: _Scopes) -> None:
    for name in outputs:
        if not _is_known(name, scopes):
            raise refuse(f"nothing writes its output {_tell(name)}")


def _tell(name: bytes) -> str:
    return repr(name[:80].decode("utf-8", "replace"))
