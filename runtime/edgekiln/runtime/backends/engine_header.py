"""What an engine file is, read from its first bytes: nothing is deserialized, so nothing of it can run.

The layout is that of ``trtexec --getPlanVersionOnly`` (TensorRT's open-source samples, sampleEngines.cpp): a magic
number, and the version in bytes 24 to 27. TensorRT-RTX adds a mask of compute capabilities at byte 32, read off
engines that were built for each of them. TensorRT's own plans do not tell their GPU here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from edgekiln.runtime.errors import EngineError

__all__ = ["HEADER_BYTES", "EngineHeader", "Flavour", "explain_refusal", "read_engine_header"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]

HEADER_BYTES = 64
_MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
_CAPABILITY_BITS = {75: 0x01, 80: 0x02, 86: 0x04, 89: 0x08, 120: 0x10, 121: 0x20}
_UPGRADES = {(8, 10), (10, 11)}
"""Majors between which NVIDIA supports version-compatible engines (support matrix of TensorRT 11.4)."""


@dataclass(frozen=True, slots=True)
class EngineHeader:
    """What a plan says of itself.

    Attributes:
        version: of the library that built it: major, minor, patch, build (build modulo 256: it has one byte).
        capabilities: compute capabilities (86 is 8.6) that a TensorRT-RTX engine was built for; ``None`` for TensorRT.
    """

    flavour: Flavour
    version: tuple[int, int, int, int]
    capabilities: tuple[int, ...] | None

    @property
    def version_text(self) -> str:
        """As in ``10.3.0.26``."""
        return ".".join(map(str, self.version))


def read_engine_header(data: bytes) -> EngineHeader:
    """Read the first ``HEADER_BYTES`` of a plan.

    Raises:
        EngineError: it is no plan of TensorRT or TensorRT-RTX, or too short for one.
    """
    flavour = _MAGIC.get(data[:4])
    if flavour is None or len(data) < HEADER_BYTES:
        raise EngineError(
            f"This is no TensorRT engine: it begins with {data[:4]!r} and has {len(data)} bytes.",
            hint="Engines begin with b'ftrt' (TensorRT) or b'vtrt' (TensorRT-RTX).",
        )
    major, minor, patch, build = data[24:28]
    capabilities = None
    if flavour == "tensorrt-rtx":
        (mask,) = struct.unpack_from("<I", data, 32)
        capabilities = tuple(sm for sm, bit in _CAPABILITY_BITS.items() if mask & bit)
    return EngineHeader(flavour, (major, minor, patch, build), capabilities)


def explain_refusal(
    header: EngineHeader, flavour: Flavour, library: str, capability: tuple[int, int] | None
) -> str | None:
    """Why an engine cannot load here, as far as its header tells; ``None`` where nothing speaks against it.

    Args:
        header: of the engine.
        flavour: of the library at hand.
        library: its version, for example ``10.16.1.11``.
        capability: compute capability of the GPU, (major, minor); ``None`` where unknown.
    """
    if header.flavour != flavour:
        return f"it was built by {header.flavour} {header.version_text}, and {flavour} {library} is asked to run it"
    here = _parse_version(library)
    if flavour == "tensorrt-rtx" and header.version != here:
        return f"it was built by TensorRT-RTX {header.version_text} and runs with exactly that; here is {library}"
    if header.version[:3] > here[:3]:
        return f"it was built by TensorRT {header.version_text}, newer than the {library} that is here"
    if header.version[0] != here[0] and (header.version[0], here[0]) not in _UPGRADES:
        return f"TensorRT {library} runs no engine of TensorRT {header.version[0]}"
    return _explain_capability(header, capability)


def _explain_capability(header: EngineHeader, capability: tuple[int, int] | None) -> str | None:
    if header.capabilities is None or capability is None:
        return None
    sm = capability[0] * 10 + capability[1]
    # A capability without a bit of its own (8.7, 9.0) is left to the library, which knows more than this table.
    if sm in _CAPABILITY_BITS and sm not in header.capabilities:
        built = ", ".join(map(str, header.capabilities)) or "none that is known"
        return f"it was built for compute capabilities {built}, and this GPU has {sm}"
    return None


def _parse_version(text: str) -> tuple[int, int, int, int]:
    numbers = [int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:4]]
    major, minor, patch, build = (*numbers, 0, 0, 0, 0)[:4]
    return major, minor, patch, build % 256
