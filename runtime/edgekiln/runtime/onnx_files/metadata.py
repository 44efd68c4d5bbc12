"""What an ONNX file says of itself: the ``metadata_props`` of its ``ModelProto``, read without an ONNX library."""

from __future__ import annotations

import re

from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.onnx_files.wire import BYTES, Reader

__all__ = [
    "CONTRACT_DIGEST_KEY",
    "CONTRACT_KEY",
    "MAX_STATIC_BATCH",
    "MAX_STATIC_BATCHES",
    "PRECISION_KEY",
    "STATIC_BATCHES_KEY",
    "read_metadata",
    "read_static_batches",
]

CONTRACT_KEY = "edgekiln.contract"
"""Under it the export writes the contract that the graph was made for, as JSON."""
CONTRACT_DIGEST_KEY = "edgekiln.contract_digest"
"""And under this one its digest."""

PRECISION_KEY = "edgekiln.precision"
"""And under this one what the graph is to compute in, where its types do not say so: ``bf16`` for OpenVINO."""

STATIC_BATCHES_KEY = "edgekiln.static_batches"
"""And under this one the batch sizes for which OpenVINO is to compile a model of static shape: ``8,32``."""
MAX_STATIC_BATCHES, MAX_STATIC_BATCH = 8, 64
"""How many sizes a file may name, each of which takes time to compile, and memory; and the largest."""

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


def read_static_batches(model: bytes) -> tuple[int, ...]:
    """The batch sizes that a file names under ``STATIC_BATCHES_KEY``, ascending; empty where it names none.

    Raises:
        EngineError: they are no sizes, or too large or too many.
    """
    asked = read_metadata(model, STATIC_BATCHES_KEY)
    if asked is None:
        return ()
    numbers = re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", asked, re.ASCII)
    sizes = {int(size) for size in asked.split(",")} if numbers else {0}
    if len(sizes) > MAX_STATIC_BATCHES or not all(2 <= size <= MAX_STATIC_BATCH for size in sizes):
        raise EngineError(
            f"The model asks for the static batches {asked[:40]!r}, wanted at most {MAX_STATIC_BATCHES} sizes from 2 "
            f"to {MAX_STATIC_BATCH}, as 8,32.",
            hint="Name them in build.static_batches of the recipe, and run it again.",
        )
    return tuple(sorted(sizes))
