"""Layers of an ONNX file under OpenVINO: the graph that it executes, and its own counters' times.

The library keeps one mean for each layer, over all calls of a compiled model, in whole microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from edgekiln.export.audits.layers.calls import choose_calls, make_frames, time_calls
from edgekiln.export.audits.layers.profile import LayerTiming, ToldLayers
from edgekiln.export.audits.openvino import names_in_openvino, quantizers_in_openvino, to_engine_layer
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.openvino import OpenVinoSession, RuntimeLayer, import_openvino
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.limits import default_threads
from edgekiln.runtime.spec import Frames

__all__ = ["ask_openvino"]

_MICROSECOND = 1e-3


def ask_openvino(
    model: bytes, threads: int | None, *, timed: bool, frames: Sequence[Frames] = ()
) -> ToldLayers:
    """Load a model, and tell what it runs for a single image. To be called in a process of its own.

    One call is always made: the counters tell which layers do any work.

    Args and errors as for ``ask_onnxruntime``.
    """
    onnx = import_extra("onnx", "build")
    version = str(import_openvino().__version__).partition("-")[0]
    inputs, count, call_ms = _call_plainly(model, threads, frames, timed=timed)  # refuses what is damaged
    graph = onnx.load_model_from_string(model).graph
    told, profiled_ms = _profile(model, threads, inputs, count)
    shown = [layer for layer in told if layer.microseconds is not None]
    names, quantizers = names_in_openvino(graph), quantizers_in_openvino(graph)
    layers = tuple(to_engine_layer(layer, names, quantizers) for layer in shown)
    if not timed:
        return ToldLayers(layers, "openvino", version)
    milliseconds = tuple((layer.microseconds or 0) / 1e3 for layer in shown)
    timing = LayerTiming("mean", count, call_ms, profiled_ms, _MICROSECOND)
    return ToldLayers(layers, "openvino", version, 1, milliseconds, timing)


def _call_plainly(
    model: bytes, threads: int | None, frames: Sequence[Frames], *, timed: bool
) -> tuple[Sequence[Frames], int, float]:
    """The frames, how many calls are to be profiled, and the median time of as many without a profiler, in ms."""
    session: Any = open_session("openvino", model, threads=threads)
    try:
        inputs = list(frames) or make_frames(*session.frame_shape)
        if not timed:
            return inputs, 1, 0.0
        calls = [session.bare_call(frame) for frame in inputs]
        count = choose_calls(calls)
        return inputs, count, median(time_calls(calls, count))
    finally:
        session.close()


def _profile(
    model: bytes, threads: int | None, frames: Sequence[Frames], count: int
) -> tuple[tuple[RuntimeLayer, ...], float]:
    """The layers with their times, and the mean time of all calls in ms: the first ones are in the counters too."""
    session = OpenVinoSession(model, threads=default_threads() if threads is None else threads, profiled=True)
    try:
        calls = [session.bare_call(frame) for frame in frames]
        times = time_calls(calls, count)
        return session.layers(), mean(times)
    finally:
        session.close()
