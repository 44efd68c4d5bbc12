"""Datatypes: the many spellings of TensorRT and its documents, and how wide each is. Knows no layer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekiln.runtime.spec import Precision

__all__ = ["WANTED_WIDTH", "WIDTHS", "normalize_datatype", "widest", "width_of"]

# Most specific first: "uint8" holds "int8", "bfloat16" holds "float". "float8..." and "fp8" are 8 bit wide.
_DATATYPES = (
    ("uint8", r"\buint8|\bui8\b"),
    ("int8", r"\bint8|\bi8\b"),
    ("fp8", r"\bfp8|float8|\be4m3|\be5m2"),
    ("bf16", r"bfloat16|\bbfloat\b|\bbf16"),
    ("fp16", r"\bfp16|\bfloat16|\bhalf\b|\bf16\b"),
    ("fp32", r"\bfp32|\bfloat(32)?\b|\bf32\b"),
    ("int64", r"\bint64"),
    ("int32", r"\bint32"),
    ("bool", r"\bbool"),
)
_DATATYPE_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _DATATYPES)

WIDTHS = {"int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
"""Bits of each type that a product can be computed in."""
WANTED_WIDTH = {Precision.INT8: 8, Precision.FP16: 16, Precision.BF16: 16, Precision.FP32: 32}
"""The widest that keeps the promise of a precision, in bits."""


def normalize_datatype(text: object) -> str:
    """A datatype as TensorRT, its inspector or a plan spells it, in one spelling.

    Takes ``Half``, ``DataType.HALF``, ``Channel major FP16 format where channel % 8 == 0``, ``float8_e4m3``.

    Returns:
        fp32, fp16, bf16, int8, fp8, int32, uint8, bool, int64, or ``unknown``
        (``N/A due to dynamic shapes`` is what the inspector reports where shapes are dynamic).
    """
    plain = str(text)
    return next((name for name, pattern in _DATATYPE_PATTERNS if pattern.search(plain)), "unknown")


def width_of(datatype: str) -> int:
    """Bits; 0 for a type that is unknown, which is no island."""
    return WIDTHS.get(datatype, 0)


def widest(datatypes: Iterable[str]) -> str:
    """The widest; ``unknown`` where any is, or where there is none."""
    found = list(datatypes)
    if not found or any(name not in WIDTHS for name in found):
        return "unknown"
    return max(found, key=width_of)
