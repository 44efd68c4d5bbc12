"""What a refusal of TensorRT's means: the error to raise for its words, or for an engine built for elsewhere.

Knows texts and headers, and no object of the library.
"""

from __future__ import annotations

import re

from edgekiln.runtime.backends.cuda_words import OLD_DRIVER, tells_of_driver, tells_of_memory
from edgekiln.runtime.backends.engine_header import EngineHeader, Flavour, explain_refusal
from edgekiln.runtime.errors import (
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ResourceError,
)

__all__ = ["REBUILD", "convert_no_start", "convert_refusal", "refuse_foreign"]

REBUILD = "Build it here from the bundle's ONNX file: edgekiln build BUNDLE --data FOLDER --out DIR"
"""The hint for an engine that this machine does not run."""

_INSTALL_AGAIN = (
    "`edgekiln doctor` tells whether driver and library fit; where they do, install the library again."
)

# What TensorRT says of an engine of another version or GPU (texts of its plan reader, 10.x to 11.x and RTX).
_FOREIGN = re.compile(
    r"not compatible with this version|incompatible device|compute capability", re.IGNORECASE
)


def convert_no_start(library: str, words: str) -> EdgekilnError:
    """The error for a library that does not start: for lack of memory, for the driver, or for a reason of its own.

    Args:
        library: its name and version.
        words: what it said.
    """
    told = f"{library} does not start: {words}"
    if tells_of_memory(words):
        return ResourceError(
            told, hint="Stop other programs that use the GPU: the library needs memory to start."
        )
    if tells_of_driver(words):
        return DeviceError(told, hint=OLD_DRIVER)
    return EnvironmentProblem(told, hint=_INSTALL_AGAIN)


def refuse_foreign(header: EngineHeader, flavour: Flavour, version: str, capability: tuple[int, int]) -> None:
    """Refuse an engine that this library and GPU will not run, before the library is asked.

    Args:
        header: of the engine.
        flavour: the library that is to run it.
        version: that library's, as it tells it.
        capability: the GPU's compute capability.

    Raises:
        DeviceError: says why.
    """
    reason = explain_refusal(header, flavour, version, capability)
    if reason is not None:
        raise DeviceError(
            f"This engine will not load here, because {reason}.",
            hint=REBUILD,
        )


def convert_refusal(told: str, words: str, hint: str | None = None) -> EdgekilnError:
    """The error for a refusal; that memory ran out is only in the library's words.

    Args:
        told: what was refused.
        words: what the library said of it.
        hint: what to do, where the words do not tell better.
    """
    if tells_of_memory(words):
        hint = "Fewer slots, or an engine for smaller batches, need less memory of the GPU."
        return ResourceError(f"{told}: {words}", hint=hint)
    if _FOREIGN.search(words):  # the file is right, and of another machine: `load` may try the next variant
        return DeviceError(f"{told}: {words}", hint=REBUILD)
    if tells_of_driver(words):
        return DeviceError(f"{told}: {words}", hint=OLD_DRIVER)
    return EngineError(f"{told}: {words}", hint=hint)
