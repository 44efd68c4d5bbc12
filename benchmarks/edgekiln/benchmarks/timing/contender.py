"""Who takes part in a benchmark, and in which configurations.

A contender is named by a factory, so this module knows neither PyTorch nor any engine library; nor the process that
it runs in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.limits import usable_threads
from edgekiln.runtime.spec import Logits

__all__ = ["LOGIT_TOLERANCE", "Contender", "engine_contender", "peer_contender", "thread_choices"]

LOGIT_TOLERANCE = 1e-3
"""Of the logit range: thread counts change the order of float sums, nothing more."""
_LIBRARIES = {
    "onnxruntime-cpu": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to time.

    Attributes:
        name: shown in tables.
        factory: ``module:function`` that opens a Session from keyword arguments.
        arguments: fixed keyword arguments, JSON values.
        configs: keyword arguments to choose from; the fastest is timed.
        logits: what it must answer for the frames, float32 (N, C).
        imports: modules that the factory would import first; their time is told apart from loading.
        tolerance: how far its answers may be from ``logits``, a share of their range.
        optional: one that cannot run, or answers otherwise, is left out and named instead of ending the benchmark.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any]
    configs: Sequence[Mapping[str, Any]]
    logits: Logits
    imports: tuple[str, ...] = ()
    tolerance: float = LOGIT_TOLERANCE
    optional: bool = False

    def identity(self) -> dict[str, Any]:
        """What makes it this contender, as JSON values; the digest of its answers stands for its files."""
        return {
            "name": self.name,
            "factory": self.factory,
            "arguments": dict(self.arguments),
            "configs": [dict(config) for config in self.configs],
            "logits": hashlib.sha256(np.ascontiguousarray(self.logits).tobytes()).hexdigest(),
        }


def thread_choices() -> list[int]:
    """1, 2, 4, ... up to the usable cores, and that number itself."""
    cores = usable_threads()
    return sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})


def engine_contender(name: str, paths: Sequence[Path], backend: str, logits: Logits) -> Contender:
    """The engine files of one model under one of the runtime's backends."""
    threads: list[int | None] = [*thread_choices()] if backend in CPU_BACKENDS else [None]
    return Contender(
        name=name,
        factory="edgekiln.benchmarks.timing.worker:open_engine",
        arguments={"paths": [str(path) for path in paths], "backend": backend},
        configs=[{"threads": count} for count in threads],
        logits=logits,
        imports=(_LIBRARIES[backend],),
    )


def peer_contender(library: str, variant: str, path: Path, logits: Logits, *, tolerance: float) -> Contender:
    """Another library on the file of one of our variants, as ``onnxruntime:int8``.

    Args:
        library: ``onnxruntime``, bare and at its default options, or ``openvino``.
        variant: whose file it is.
        path: the ONNX file.
        logits: what our engine answers.
        tolerance: how far the library's kernels may be from that.
    """
    if library == "onnxruntime":
        # None is the library's own choice, which also pins threads to cores; a number is not the same.
        threads: list[int | None] = [None, *thread_choices()]
        factory, arguments = "edgekiln.benchmarks.timing.peers:open_onnxruntime", {"path": str(path)}
    else:
        threads = [*thread_choices()]
        factory = "edgekiln.benchmarks.timing.worker:open_engine"
        arguments = {"paths": [str(path)], "backend": library}  # type: ignore[dict-item] # two kinds of arguments
    return Contender(
        name=f"{library}:{variant}",
        factory=factory,
        arguments=arguments,
        configs=[{"threads": count} for count in threads],
        logits=logits,
        imports=(library,),
        tolerance=tolerance,
        optional=True,
    )
