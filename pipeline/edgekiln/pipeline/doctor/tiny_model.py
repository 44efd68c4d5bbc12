"""A classifier of 200 bytes, written by hand so that no package is needed: the logits are the mean of each colour.

Its input and output are those of every edgekiln model: ``image`` uint8 (N, 8, 8, 3), ``logits`` float32 (N, 3).
Field numbers are those of onnx.proto; the encoding is protobuf's.
"""

from __future__ import annotations

__all__ = ["SIDE", "make_tiny_model"]

SIDE = 8
"""Height and width of its input, pixels."""

_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7  # AttributeProto.AttributeType


def make_tiny_model() -> bytes:
    """The serialized ModelProto: Cast to float, ReduceMean over height and width; opset 13, IR 8."""
    cast = _node("Cast", "image", "float_image", _attribute_int("to", _FLOAT))
    mean = _node(
        "ReduceMean", "float_image", "logits", _attribute_ints("axes", (1, 2)), _attribute_int("keepdims", 0)
    )
    graph = b"".join(
        [
            _bytes(1, cast),
            _bytes(1, mean),
            _bytes(2, b"tiny"),
            _bytes(11, _value("image", _UINT8, ("N", SIDE, SIDE, 3))),
            _bytes(12, _value("logits", _FLOAT, ("N", 3))),
        ]
    )
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _int(2, 13))


def _node(operator: str, source: str, target: str, *attributes: bytes) -> bytes:
    head = _bytes(1, source.encode()) + _bytes(2, target.encode()) + _bytes(4, operator.encode())
    return head + b"".join(_bytes(5, attribute) for attribute in attributes)


def _attribute_int(name: str, value: int) -> bytes:
    return _bytes(1, name.encode()) + _int(3, value) + _int(20, _ATTRIBUTE_INT)


def _attribute_ints(name: str, values: tuple[int, ...]) -> bytes:
    return _bytes(1, name.encode()) + b"".join(_int(8, v) for v in values) + _int(20, _ATTRIBUTE_INTS)


def _value(name: str, data_type: int, shape: tuple[int | str, ...]) -> bytes:
    dimensions = b"".join(
        _bytes(1, _int(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape
    )
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, data_type) + _bytes(2, dimensions)))


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
