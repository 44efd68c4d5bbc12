"""Asks the library of a backend for an engine's layers, in a process of its own, and weighs what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekiln.export.audits.layers.profile import EngineProfile, ToldLayers, make_rows
from edgekiln.export.audits.layers.tensorrt import ask_tensorrt
from edgekiln.export.child import Child
from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.errors import MissingExtraError, UsageError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.limits import default_threads
from edgekiln.runtime.spec import Frames

__all__ = ["ProfiledEngine", "profile_engine", "weigh_engine"]


@dataclass(frozen=True, slots=True)
class ProfiledEngine:
    """An engine whose layers are wanted.

    Attributes:
        name: a variant's, or a file's.
        backend: that runs it.
        data: its bytes, whose digest the caller has checked.
        graph: the ONNX file that it was built from, for the MACs; ``None`` where that is not known. A CPU backend
            runs the graph itself.
        threads: of a CPU backend; ``None`` is what ``open_session`` would take.
        products: MACs by ONNX node, where they are known without the graph.
    """

    name: str
    backend: Backend
    data: bytes = field(repr=False)
    graph: bytes | None = field(default=None, repr=False)
    threads: int | None = None
    products: Mapping[str, int] | None = field(default=None, repr=False)


def profile_engine(
    engine: ProfiledEngine, *, timed: bool, machine: str, frames: Sequence[Frames] = ()
) -> EngineProfile:
    """The layers of an engine, and with ``timed`` how long each takes on this machine.

    The library works in a process that is started for this and ends with it: profilers slow the calls that they time,
    and no session of the caller's may be slowed by one.

    Args:
        engine: what to ask about.
        timed: whether to time it.
        machine: what is told of where it was done.
        frames: uint8 (1, height, width, 3) each; noise where there are none.

    Raises:
        UsageError: the backend has no profiler that tells what its layers take.
        EnvironmentProblem: its library, a GPU, or for CPU backends the package onnx is not here.
        EngineError: the library refuses the engine.
        BuildError, ResourceError: it crashed, was killed or hangs.
    """
    if engine.backend in CPU_BACKENDS:
        _require_onnx()
        told = _ask_cpu(engine, timed, frames)
    elif engine.backend == "tensorrt" or engine.backend == "tensorrt-rtx":
        told = ask_tensorrt(engine.data, engine.backend, timed=timed)
    else:
        raise UsageError(
            f"The layers of {engine.backend} are not told: its profiler knows when kernels are launched, "
            "and not how long they take.",
            hint="NVIDIA's Nsight Systems shows them. The same graph under onnxruntime-cpu, openvino or TensorRT does.",
        )
    return weigh_engine(engine, told, machine)


def _require_onnx() -> Any:
    try:
        return import_extra("onnx", "build")
    except MissingExtraError as error:
        raise MissingExtraError(
            "The package 'onnx' is needed to tell which ONNX nodes a layer computes, and is not installed.",
            hint="Run: pip install 'onnx>=1.21'. Nothing else of the extra 'build' is needed for that.",
        ) from error


def _ask_cpu(engine: ProfiledEngine, timed: bool, frames: Sequence[Frames]) -> ToldLayers:
    if engine.backend == "onnxruntime-cpu":
        from edgekiln.export.audits.layers.onnxruntime import ask_onnxruntime as ask
    else:
        from edgekiln.export.audits.layers.openvino import ask_openvino as ask
    with Child(engine.backend) as child:
        return child.call(ask, engine.data, engine.threads, timed=timed, frames=frames)


def weigh_engine(engine: ProfiledEngine, told: ToldLayers, machine: str) -> EngineProfile:
    """What a library told of an engine, with the MACs of its ONNX file."""
    products, notes = _count_products(engine)
    on_cpu = engine.backend in CPU_BACKENDS
    threads = (default_threads() if engine.threads is None else engine.threads) if on_cpu else None
    return EngineProfile(
        engine.name,
        engine.backend,
        told.version,
        machine if told.version else "",
        threads,
        told.batch,
        make_rows(told.layers, told.milliseconds, products),
        told.evidence,
        told.timing,
        (*told.notes, *notes),
    )


def _count_products(engine: ProfiledEngine) -> tuple[Mapping[str, int], list[str]]:
    """MACs by ONNX name, and what is not known of them."""
    graph = engine.data if engine.backend in CPU_BACKENDS else engine.graph
    if engine.products is not None:
        return engine.products, []
    if graph is None:
        return {}, [
            "The ONNX file that it was built from is not known, and so no MACs are: give it with --onnx."
        ]
    onnx = _require_onnx()
    from edgekiln.export.audits.macs import count_macs

    counts = count_macs(onnx.load_model_from_string(graph))
    unknown = [f"MACs are not known of {', '.join(counts.unknown)}."] if counts.unknown else []
    return counts, unknown
