"""Layers of TensorRT's and TensorRT-RTX's engines: from the inspector or the plan's text, and the profiler's times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.origins import origins_of_name
from edgekiln.export.audits.engine_layers.rtx_plan import parse_rtx_plan
from edgekiln.export.audits.layers.profile import LayerTiming, ToldLayers
from edgekiln.export.engines.tensorrt import inspect_bytes, library_version
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.errors import EngineError

__all__ = ["ask_tensorrt", "join_times"]

_EVENT_MS = 0.5e-3
"""Resolution of CUDA's events, by their documentation."""


def ask_tensorrt(engine: bytes, flavour: Flavour, *, timed: bool) -> ToldLayers:
    """What the library tells of an engine. TensorRT needs a GPU for it; a TensorRT-RTX plan is read as it lies there.

    Args:
        engine: its bytes, whose digest the caller has checked.
        flavour: the library that built it.
        timed: also how long each layer takes, on the GPU that is here.

    Raises:
        DeviceError, MissingExtraError, EngineError: as for ``inspect_bytes``.
    """
    plan = parse_rtx_plan(engine) if flavour == "tensorrt-rtx" else None
    if flavour == "tensorrt-rtx" and plan is None and not timed:
        raise EngineError(
            "The plan holds no readable graph.", hint="With --time the library is asked, on a GPU."
        )
    if plan is not None and not timed:
        return ToldLayers(plan.kernels, "rtx-plan", "")
    told = inspect_bytes(engine, flavour, timed=timed)
    every = parse_inspector(str(told.layers)) if plan is None else plan.kernels
    layers = tuple(layer for layer in every if layer.profile == 0)
    notes = [told.note] if told.note else []
    if len(layers) < len(every):
        notes.append("These are the layers of the engine's first optimization profile.")
    found = ToldLayers(layers, "inspector" if plan is None else "rtx-plan", library_version(flavour))
    return join_times(found, told.times, notes) if told.times is not None else found


def join_times(told: ToldLayers, times: Mapping[str, Any], notes: Sequence[str] = ()) -> ToldLayers:
    """Layers with the times that the profiler told of them by name.

    A name that stands on several layers has its time on the first of them. What the profiler alone tells of becomes a
    layer of unknown type.

    Args:
        told: the layers.
        times: JSON values of ``engines.layer_times.time_layers``.
        notes: what a reader should know.
    """
    left: dict[str, float] = {str(name): float(ms) for name, ms in times["layers"]}
    milliseconds = [left.pop(layer.name, None) for layer in told.layers]
    unknown = [EngineLayer(name, "unknown", origins_of_name(name), (), (), None) for name in left]
    more = [f"{len(unknown)} layers are told by the profiler alone."] if unknown else []
    timing = LayerTiming("median", times["calls"], times["call_ms"], times["profiled_ms"], _EVENT_MS)
    return ToldLayers(
        (*told.layers, *unknown),
        told.evidence,
        told.version,
        times["batch"],
        (*milliseconds, *left.values()),
        timing,
        (*told.notes, *notes, *more),
    )
