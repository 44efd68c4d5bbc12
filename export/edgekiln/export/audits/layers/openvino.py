"""Layers of an ONNX file under OpenVINO: the graph that it executes, and its own counters' times.

The library keeps one mean for each layer, over all calls of a compiled model, in whole microseconds. One call is made
although nothing is timed: the counters tell which changes of shape do any work.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from edgekiln.export.audits.layers.calls import (
    WARM_UP_CALLS,
    choose_calls,
    make_frames,
    time_calls,
    warm_up,
)
from edgekiln.export.audits.layers.profile import LayerTiming, ToldLayers
from edgekiln.export.audits.openvino import names_in_openvino, quantizers_in_openvino, to_engine_layer
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.openvino import OpenVinoSession, RuntimeLayer, import_openvino
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.limits import default_threads
from edgekiln.runtime.spec import Frames

__all__ = ["ask_openvino"]

_MICROSECOND = 1e-3
_IDLE = frozenset({"Const", "Input", "Output", "Reshape"})
"""What does no work. The library tells no time of what takes less than a microsecond either: that is shown."""


def ask_openvino(
    model: bytes, threads: int | None, *, timed: bool, frames: Sequence[Frames] = ()
) -> ToldLayers:
    """Load a model, and tell what it runs for a single image. To be called in a process of its own.

    Args and errors as for ``ask_onnxruntime``.
    """
    onnx = import_extra("onnx", "build")
    version = str(import_openvino().__version__).partition("-")[0]
    inputs, count, call_ms = _call_plainly(model, threads, frames, timed=timed)  # refuses what is damaged
    graph = onnx.load_model_from_string(model).graph
    shown, profiled_ms = _profile(model, threads, inputs, count)
    names, quantizers = names_in_openvino(graph), quantizers_in_openvino(graph)
    layers = tuple(to_engine_layer(layer, names, quantizers) for layer, _ in shown)
    if not timed:
        return ToldLayers(layers, "openvino", version)
    milliseconds = tuple(ms for _, ms in shown)
    timing = LayerTiming("mean", count, call_ms, profiled_ms, _MICROSECOND)
    return ToldLayers(layers, "openvino", version, 1, milliseconds, timing)


def _call_plainly(
    model: bytes, threads: int | None, frames: Sequence[Frames], *, timed: bool
) -> tuple[Sequence[Frames], int, float]:
    """The frames, how many calls are to be profiled, and the mean time of as many without a profiler, in ms."""
    session: Any = open_session("openvino", model, threads=threads)
    try:
        inputs = list(frames) or make_frames(*session.frame_shape)
        if not timed:
            return inputs, 1, 0.0
        calls = [session.bare_call(frame) for frame in inputs]
        count = choose_calls(calls)
        warm_up(calls)
        return inputs, count, mean(time_calls(calls, count))
    finally:
        session.close()


def _profile(
    model: bytes, threads: int | None, frames: Sequence[Frames], count: int
) -> tuple[list[tuple[RuntimeLayer, float]], float]:
    """The layers that did any work, each with its mean time in ms, and the mean time of the calls in ms."""
    session = OpenVinoSession(model, threads=default_threads() if threads is None else threads, profiled=True)
    try:
        calls = [session.bare_call(frame) for frame in frames]
        warm_up(calls)
        before = session.layers()
        times = time_calls(calls, count)
        return _take_out(before, session.layers(), count), mean(times)
    finally:
        session.close()


def _take_out(
    before: Sequence[RuntimeLayer], after: Sequence[RuntimeLayer], count: int
) -> list[tuple[RuntimeLayer, float]]:
    """The library's means are over all calls: those of the warm-up, which are slow, are taken out."""
    found = []
    for first, last in zip(before, after, strict=True):
        if last.microseconds is not None or last.kind not in _IDLE:
            warm_up_us, all_us = first.microseconds or 0, last.microseconds or 0
            spent = all_us * (WARM_UP_CALLS + count) - warm_up_us * WARM_UP_CALLS
            found.append((last, max(0.0, spent / count / 1e3)))
    return found
