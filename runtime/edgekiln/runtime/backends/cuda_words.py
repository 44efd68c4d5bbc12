"""What a library's words say of CUDA: that it does not start, that memory ran out. Knows texts, and no library."""

from __future__ import annotations

import re

__all__ = ["OLD_DRIVER", "tells_of_cuda", "tells_of_driver", "tells_of_memory", "tells_of_old_driver"]

OLD_DRIVER = (
    "`nvidia-smi` shows the newest CUDA that the driver knows: update the driver, or install the library for that "
    "CUDA; `edgekiln doctor` compares the two."
)
"""The hint where a library and the driver do not fit."""

# What libraries say where CUDA itself does not start, by number or by the text of cudaGetErrorString: 35 (driver older
# than the library), 100 (no device), 803 and 804 (parts of two drivers, or forward compatibility without its hardware),
# 802 and 999 (a driver that is not up). Not 46 and 2: a device in use or full.
_NUMBERED = r"(?:CUDA (?:initialization )?failure with error:? |CUDA failure |cudaError )"
_NO_CUDA = re.compile(
    rf"{_NUMBERED}(?:35|100|802|803|804|999)\b"
    r"|driver version is insufficient|insufficient driver|no CUDA-capable device|forward compatibility"
    r"|unsupported display driver|driver initialization failed|initialization error|system not yet initialized",
    re.IGNORECASE,
)

_FULL = re.compile(rf"{_NUMBERED}2\b", re.IGNORECASE)
_CUDA = re.compile(r"\bCUDA[ _](?:failure|error)|\bcuDNN[ _]|\bcuBLAS[ _]", re.IGNORECASE)
_OLD = re.compile(r"(?:error:? |failure |cudaError )35\b|driver version is insufficient", re.IGNORECASE)


def tells_of_driver(words: str) -> bool:
    """Whether a library's words say that CUDA does not start here: no driver, an old one, or no device."""
    return _NO_CUDA.search(words) is not None


def tells_of_old_driver(words: str) -> bool:
    """Whether a library's words say that the driver is older than the library."""
    return _OLD.search(words) is not None


def tells_of_cuda(words: str) -> bool:
    """Whether a library's words say that CUDA, cuDNN or cuBLAS failed, for whatever reason."""
    return _CUDA.search(words) is not None


def tells_of_memory(words: str) -> bool:
    """Whether a library's words say that memory of the GPU ran out."""
    short = words.lower().replace(" ", "").replace("_", "")
    said = ("outofmemory", "failedtoallocatememory", "smallerthanrequestedbytes", "statusallocfailed")
    return _FULL.search(words) is not None or any(text in short for text in said)
