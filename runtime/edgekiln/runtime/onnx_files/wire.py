"""Protobuf's wire format as far as ONNX files need it: fields by number, with where their values stand.

See https://protobuf.dev/programming-guides/encoding/. Nothing is decoded that is not asked for, and time and memory are
bounded. This module knows no field of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.runtime.errors import EngineError

__all__ = ["BYTES", "MAX_FIELDS", "VARINT", "Reader", "refuse"]

MAX_FIELDS = 1_000_000
"""In all messages together, for each walk over them; a network of a hundred layers has some ten thousand."""

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_TAG = 2**32  # a longer tag would be cut to 32 bits by some parsers, and so mean another field to them


class Reader:
    """Reads protobuf's wire format; never past ``end``, and at most ``MAX_FIELDS`` fields in all."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._left = MAX_FIELDS

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and start and end of the value of each field in a message; nothing inside is read."""
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise refuse(f"it has more than {MAX_FIELDS:,} fields")
            tag = self.model[position]
            if tag < 0x80:  # most are one byte: a call for each would take half of the walk's time
                position += 1
            else:
                tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if not number or tag >= _MAX_TAG:
                raise refuse(f"a field has the number {number}")
            start, stop = self._find_value(wire, position, end)
            if stop > end:
                raise refuse("it ends in the middle of a field")
            yield number, wire, start, stop
            position = stop

    def _find_value(self, wire: int, position: int, end: int) -> tuple[int, int]:
        if wire == VARINT:
            return position, self.varint(position, end)[1]
        if wire == BYTES:
            if position < end and (size := self.model[position]) < 0x80:
                return position + 1, position + 1 + size
            size, start = self.varint(position, end)
            return start, start + size
        if wire in _FIXED_SIZES:
            return position, position + _FIXED_SIZES[wire]
        raise refuse(f"a field has wire type {wire}")  # groups, which ONNX never had, and nonsense

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A variable-length integer of at most ten bytes, and where it ends."""
        value = shift = 0
        for at in range(position, min(position + 10, end)):
            byte = self.model[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at + 1
            shift += 7
        raise refuse(
            "it ends in the middle of a number" if end - position < 10 else "a number has over ten bytes"
        )


def refuse(why: str) -> EngineError:
    """The error that says that some bytes are no ONNX model."""
    return EngineError(
        f"This is no ONNX model: {why}.", hint="Take a fresh copy of the file, or export the model again."
    )
