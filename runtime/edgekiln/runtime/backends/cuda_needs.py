"""Which CUDA the installed libraries that run engines were made for, read from their metadata; none is loaded.

A driver runs what was made for its own major version of CUDA or an older one (NVIDIA's "minor version compatibility"),
so only the major version is asked for. JetPack's libraries come with their driver and tell nothing here.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["LIBRARIES", "needed_cuda"]

LIBRARIES = ("tensorrt", "tensorrt-lean", "tensorrt-dispatch", "tensorrt-rtx", "onnxruntime-gpu")
"""Distributions that start CUDA. Those of TensorRT name the CUDA of what they bring: tensorrt-rtx-cu13."""

_MAJORS = (13, 12)
_RUNTIME = re.compile(r"nvidia-cuda-runtime(?:-cu(\d+))?[^0-9;]*(\d+)")


def needed_cuda(library: str) -> tuple[int, int] | None:
    """CUDA version that a driver has to support at least, or ``None`` where the library is absent or does not tell.

    Args:
        library: name of its distribution or of its module, one of ``LIBRARIES``.
    """
    name = library.replace("_", "-")
    if name == "onnxruntime-gpu":
        try:
            return _needed_by(requires(name) or [])
        except PackageNotFoundError:
            return None
    for major in _MAJORS:
        try:
            version(f"{name}-cu{major}")
        except PackageNotFoundError:
            continue
        return major, 0
    return None


def _needed_by(lines: list[str]) -> tuple[int, int] | None:
    """``nvidia-cuda-runtime~=13.0; extra == "cuda"``, or ``nvidia-cuda-runtime-cu12~=12.0``."""
    for line in lines:
        match = _RUNTIME.match(line)
        if match is not None:
            return int(match[1] or match[2]), 0
    return None
