"""Layers of an ONNX file under onnxruntime's CPU provider: its optimized graph, and its own profiler's times.

The profiler keeps the time of every node of every call, in whole microseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from edgekiln.export.audits.engine_layers.datatypes import normalize_datatype
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.layers.calls import WARM_UP_CALLS, choose_calls, make_frames, time_calls, warm_up
from edgekiln.export.audits.layers.fusing import find_origins, is_inserted
from edgekiln.export.audits.layers.profile import LayerTiming, ToldLayers
from edgekiln.export.audits.macs import PRODUCTS
from edgekiln.export.audits.onnxruntime import is_product_kind, is_quantized_kind
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime, session_options
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.limits import default_threads
from edgekiln.runtime.spec import Frames

__all__ = ["ask_onnxruntime"]

_ENDING = "_kernel_time"
_MICROSECOND = 1e-3


def ask_onnxruntime(
    model: bytes, threads: int | None, *, timed: bool, frames: Sequence[Frames] = ()
) -> ToldLayers:
    """Load a model, and tell what it runs. To be called in a process of its own.

    One call is always made, since the profiler alone tells the types of tensors.

    Args:
        model: an ONNX file whose bytes may be shown to the library.
        threads: as for ``open_session``.
        timed: also how long each layer takes.
        frames: uint8 (1, height, width, 3) each, to call it with in turn; noise where there are none.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        EngineError: the library refuses the model.
    """
    ort = import_onnxruntime("cpu")
    onnx = import_extra("onnx", "build")
    session: Any = open_session(
        "onnxruntime-cpu", model, threads=threads
    )  # refuses what is damaged, or no classifier
    named = _name_nodes(onnx.load_model_from_string(model))
    inputs = list(frames) or make_frames(*session.frame_shape)
    call_ms, count = 0.0, 1
    if timed:
        calls = [session.bare_call(frame) for frame in inputs]
        count = choose_calls(calls)
        call_ms = median(time_calls(calls, count))
    session.close()
    optimized, events, times = _profile(ort, named, threads, inputs, count)
    layers, milliseconds = _read_layers(named.graph, optimized.graph, events)
    told = ToldLayers(tuple(layers), "onnxruntime", str(ort.__version__))
    if not timed:
        return told
    timing = LayerTiming("median", count, call_ms, median(times), _MICROSECOND)
    return ToldLayers(told.layers, told.evidence, told.version, 1, tuple(milliseconds), timing)


def _name_nodes(model: Any) -> Any:
    """The model, each of its nodes with a name: what has none is called as in ``count_macs``."""
    for node in model.graph.node:
        if not node.name:
            node.name = f"node_of_{node.output[0]}"
    return model


def _profile(
    ort: Any, model: Any, threads: int | None, frames: Sequence[Frames], count: int
) -> tuple[Any, dict[str, list[Mapping[str, Any]]], list[float]]:
    """The optimized model, the profiler's events of each of its nodes, in order, and the times of the calls in ms."""
    onnx = import_extra("onnx", "build")
    with tempfile.TemporaryDirectory(prefix="edgekiln-layers-") as folder:
        options = session_options(ort, default_threads() if threads is None else threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            [name] = [value.name for value in session.get_inputs()]
            calls = [lambda frame=frame: session.run(None, {name: frame}) for frame in frames]
            warm_up(calls)
            times = time_calls(calls, count)
            trace = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        except Exception as error:  # the library's errors share no base class
            raise EngineError(f"onnxruntime {ort.__version__} could not be profiled: {error}") from error
        optimized = onnx.load(options.optimized_model_filepath)
    return optimized, _by_node(trace), times


def _by_node(trace: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The events of the kernels of each node; a node has one for each call, those of the warm-up first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in trace:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_ENDING):
            found.setdefault(str(event["name"]).removesuffix(_ENDING), []).append(event)
    return found


def _read_layers(
    source: Any, optimized: Any, events: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[EngineLayer], list[float | None]]:
    """Layers in the order in which they run, and their median times in ms."""
    origins, names = find_origins(source, optimized), {node.name for node in source.node}
    nodes = {node.name: node for node in optimized.node}
    layers: list[EngineLayer] = []
    milliseconds: list[float | None] = []
    for name, told in events.items():  # in the order of the first call
        about, node = told[-1]["args"], nodes.get(name)
        kind = str(about.get("op_name", "unknown"))
        shown = "Reformat" if node is not None and is_inserted(node, names) else kind
        provider = str(about.get("provider", "unknown")).removesuffix("ExecutionProvider")
        layers.append(
            EngineLayer(
                name=name,
                kind=shown,
                origins=origins.get(name, ()),
                inputs=_input_types(kind, about),
                outputs=_types(about.get("output_type_shape")),
                tactic=None if (shown, provider) == (kind, "CPU") else f"{kind} ({provider})",
            )
        )
        milliseconds.append(median(float(event["dur"]) / 1e3 for event in told[WARM_UP_CALLS:]))
    return layers, milliseconds


def _input_types(kind: str, about: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a product its activation's alone: scales and biases follow. 8 bits are int8, with a sign or without."""
    types = _types(about.get("input_type_shape"))
    if is_quantized_kind(kind):
        return ("int8",)
    return types[:1] if kind in PRODUCTS or is_product_kind(kind) else types


def _types(tensors: object) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(
        normalize_datatype(name) for tensor in tensors if isinstance(tensor, dict) for name in tensor
    )
