"""What an ONNX file says of itself: the ``metadata_props`` of its ``ModelProto``, read without an ONNX library."""

from __future__ import annotations

from edgekiln.runtime.onnx_files.wire import BYTES, Reader

__all__ = ["CONTRACT_DIGEST_KEY", "CONTRACT_KEY", "PRECISION_KEY", "read_metadata"]

CONTRACT_KEY = "edgekiln.contract"
"""Under it the export writes the contract that the graph was made for, as JSON."""
CONTRACT_DIGEST_KEY = "edgekiln.contract_digest"
"""And under this one its digest."""

PRECISION_KEY = "edgekiln.precision"
"""And under this one what the graph is to compute in, where its types do not say so: ``bf16`` for OpenVINO."""

_METADATA, _KEY, _VALUE = 14, 1, 2  # of ModelProto, and of StringStringEntryProto; from onnx.proto


def read_metadata(model: bytes, key: str) -> str | None:
    """The value of ``key``, the last one where it stands there several times; ``None`` where it does not.

    Raises:
        EngineError: the bytes are no ONNX ``ModelProto``.
    """
    reader, value = Reader(model), None
    for number, wire, start, stop in reader.fields(0, len(model)):
        if (number, wire) != (_METADATA, BYTES):
            continue
        parts = {
            inner: model[begin:end] for inner, kind, begin, end in reader.fields(start, stop) if kind == BYTES
        }
        if parts.get(_KEY) == key.encode():
            value = parts.get(_VALUE, b"").decode("utf-8", "replace")
    return value
