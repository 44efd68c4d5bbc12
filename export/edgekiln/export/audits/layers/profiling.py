"""Asks the library of a backend for an engine's layers, in a process of its own, and weighs what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekiln.export.audits.layers.onnxruntime import ask_onnxruntime
from edgekiln.export.audits.layers.openvino import ask_openvino
from edgekiln.export.audits.layers.profile import EngineProfile, ToldLayers, make_rows
from edgekiln.export.audits.layers.tensorrt import ask_tensorrt
from edgekiln.export.child import Child
from edgekiln.runtime.backends import CPU_BACKENDS, Backend
from edgekiln.runtime.errors import UsageError
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
    """

    name: str
    backend: Backend
    data: bytes = field(repr=False)
    graph: bytes | None = field(default=None, repr=False)
    threads: int | None = None


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
        EnvironmentProblem: its library or a GPU is not here.
        EngineError: the library refuses the engine.
        BuildError, ResourceError: it crashed, was killed or hangs.
    """
    if engine.backend in CPU_BACKENDS:
        ask = ask_onnxruntime if engine.backend == "onnxruntime-cpu" else ask_openvino
        with Child(engine.backend) as child:
            told = child.call(ask, engine.data, engine.threads, timed=timed, frames=frames)
    elif engine.backend == "tensorrt" or engine.backend == "tensorrt-rtx":
        told = ask_tensorrt(engine.data, engine.backend, timed=timed)
    else:
        raise UsageError(
            f"The layers of {engine.backend} are not told: its profiler knows when kernels are launched, "
            "and not how long they take.",
            hint="NVIDIA's Nsight Systems shows them. The same graph under onnxruntime-cpu, openvino or TensorRT does.",
        )
    return weigh_engine(engine, told, machine)


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
    from edgekiln.export.audits.macs import count_macs

    graph = engine.data if engine.backend in CPU_BACKENDS else engine.graph
    if graph is None:
        return {}, [
            "The ONNX file that it was built from is not known, and so no MACs are: give it with --onnx."
        ]
    counts = count_macs(import_extra("onnx", "build").load_model_from_string(graph))
    unknown = [f"MACs are not known of {', '.join(counts.unknown)}."] if counts.unknown else []
    return counts, unknown
