"""What a failed build means: the library's words and the end of its process as a typed error, with the likely cause.

Starts and stops nothing.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from edgekiln.export.child import last_line, signal_name
from edgekiln.export.engines.options import BuildOptions
from edgekiln.runtime.backends.cuda_words import OLD_DRIVER
from edgekiln.runtime.cuda.driver import DeviceProperties
from edgekiln.runtime.errors import (
    BuildError,
    DeviceError,
    DeviceLostError,
    EdgekilnError,
    EnvironmentProblem,
    MissingExtraError,
    ResourceError,
)

__all__ = ["explain_death", "explain_failure"]

_OPTION_FAILURES: dict[
    str, tuple[str, str | None]
] = {  # what follows the library's name and version, and the remedy
    "hardware-compatibility": (
        "has no hardware compatibility of that level",
        "Leave build.hardware_compatibility out, or take TensorRT 10.13 or newer.",
    ),
    "capabilities": ("cannot build for those compute capabilities", None),
    "weak-typing": (
        "has no weak typing; its networks are always strongly typed",
        "Leave build.typing out.",
    ),
    "tiling": ("has no tiling", "Leave build.tiling out, or take TensorRT 10.13 or newer."),
    "profile": ("refused the batch profile", None),
}
_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(
            r"out of memory|OutOfMemory|insufficient (?:device )?memory|Could not find any implementation",
            re.I,
        ),
        "memory",
        "Memory, most likely: lower build.workspace_mib (--workspace) or the largest batch, or close other programs.",
    ),
    (
        re.compile(
            r"Turing \(SM75\)|not supported (?:on|for) (?:this|the target)|HW-specific datatypes|"
            r"Cannot compile (?:operation|for target)|Unsupported (?:data )?type",
            re.I,
        ),
        "type unsupported on this SM",
        "That GPU generation lacks this number format: build an FP16 variant, or for other GPUs.",
    ),
    (
        re.compile(r"driver|cudaError ?35|CUDA initialization failure", re.I),
        "driver",
        OLD_DRIVER,
    ),
)
_NOT_STARTED: dict[str, type[EdgekilnError]] = {
    kind.code: kind for kind in (DeviceError, DeviceLostError, MissingExtraError, ResourceError)
}
_NODE = re.compile(r"(?:node |ForeignNode\[|operation )['\"\[]?([\w./:+-]+)")


def explain_death(code: int, complaints: str) -> Exception:
    """The error for a child that ended without a result.

    Args:
        code: its exit code, negative for a signal.
        complaints: the end of what it wrote to stderr.
    """
    last = last_line(complaints)
    if code == -signal.SIGKILL:
        return ResourceError(
            "The process that builds the engine was killed, which is what the system does when memory runs out.",
            hint="Lower build.workspace_mib (--workspace), the largest batch or the optimization level.",
        )
    if code < 0:
        return BuildError(
            f"The engine library crashed while building ({signal_name(-code)}). {last}".rstrip(),
            hint="Build again with --debug; a newer driver or library usually mends it.",
        )
    return EnvironmentProblem(
        f"The engine builder ended with exit code {code}: {last or 'no message'}",
        hint="Build again with --debug, which tells more; `edgekiln doctor` tells what this machine lacks.",
    )


def explain_failure(
    result: Mapping[str, Any], options: BuildOptions, device: DeviceProperties | None
) -> BaseException:
    """The error for a result without an engine: BuildError with the library's words, or KeyboardInterrupt.

    A library that did not even start is the error that it was in the child, an EnvironmentProblem or a ResourceError:
    the graph was not tried, and no other one would do.

    Args:
        result: what the child told.
        options: what was asked for.
        device: the GPU that is here.
    """
    log = tuple((severity, text) for severity, text in result["log"])
    if result["failure"] == "cancelled":
        return KeyboardInterrupt()
    if result["failure"] == "start":
        kind = _NOT_STARTED.get(result["code"], EnvironmentProblem)
        return kind(result["problem"], hint=result["hint"])
    errors = [text.strip() for severity, text in log if severity in {"ERROR", "INTERNAL_ERROR"}]
    words = " | ".join(dict.fromkeys(errors))
    remedy: str | None = "The words after the colon are the library's own."
    if not errors:
        refusal, remedy = _OPTION_FAILURES.get(result["failure"], ("gave no reason", None))
        words = f"{options.flavour} {result.get('version') or ''}".rstrip() + f" {refusal}."
    node = result["node"] or next((match[1] for text in errors if (match := _NODE.search(text))), None)
    cause, hint = _likely_cause(words) or (result["failure"], remedy)
    where = f"for {device.name}" if device is not None and options.flavour == "tensorrt" else "without a GPU"
    return BuildError(
        f"{options.flavour} could not build the {options.precision.value} engine {where} "
        f"({cause}{f', node {node}' if node else ''}): {' '.join((words, *result.get('notes', ())))}",
        hint=hint,
        node=node,
        log=log,
    )


def _likely_cause(words: str) -> tuple[str, str | None] | None:
    return next(((cause, hint) for pattern, cause, hint in _CAUSES if pattern.search(words)), None)
