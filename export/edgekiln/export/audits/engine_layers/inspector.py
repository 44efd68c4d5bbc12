"""Reads the documents of TensorRT's engine inspector, of TensorRT 8 to 11. Judges nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edgekiln.export.audits.engine_layers.datatypes import normalize_datatype
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.origins import origins_of_metadata, origins_of_name
from edgekiln.runtime.errors import EngineError

__all__ = ["parse_inspector"]

_MOVES = re.compile(r"reformat|shuffle|slice|constant|noop|signal|wait|copy|padding", re.IGNORECASE)


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Read ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``.

    Source of the format: NVIDIA's trt-engine-explorer (8.x, 10.x) and its page "Migrating IEngineInspector
    Usage from TensorRT 10.x to 11.x". Each key is looked for; no version is asked.

    Layers of an engine with several optimization profiles carry theirs under ``Profile``, which ``inspect_worker.py``
    adds: the inspector tells formats for the profile of its context alone.

    Args:
        text: the JSON of a whole engine. Layers that are plain names (an engine built without
            ``ProfilingVerbosity.DETAILED``) become layers of unknown type.

    Raises:
        EngineError: the text is not the inspector's JSON.
    """
    try:
        report = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise _refuse(f"not JSON ({type(problem).__name__})") from problem
    layers = report.get("Layers") if isinstance(report, dict) else None
    if not isinstance(layers, list):
        raise _refuse('an object without the list "Layers"')
    return tuple(_inspected_layer(layer) for layer in layers)


def _refuse(got: str) -> EngineError:
    return EngineError(
        f"Got {got}, wanted the engine inspector's JSON.",
        hint="Ask it for LayerInformationFormat.JSON, and build with ProfilingVerbosity.DETAILED.",
    )


def _inspected_layer(layer: object) -> EngineLayer:
    """One entry of ``Layers``: an object, or a name alone."""
    if isinstance(layer, str):
        return EngineLayer(layer, "unknown", origins_of_name(layer), (), (), None)
    if not isinstance(layer, dict):
        raise _refuse(f"a layer that is {type(layer).__name__}")
    name = str(layer.get("Name", ""))
    kind = str(layer.get("LayerType") or layer.get("ParameterType") or "unknown")
    origins = origins_of_metadata(str(layer.get("Metadata") or ""))
    if not origins and not _MOVES.search(kind):
        origins = origins_of_name(name)
    tactic = layer.get("TacticName")
    weights = layer.get("Weights")
    return EngineLayer(
        name,
        kind,
        origins,
        _tensor_types(layer.get("Inputs")),
        _tensor_types(layer.get("Outputs")),
        str(tactic) if tactic else None,
        normalize_datatype(weights.get("Type")) if isinstance(weights, dict) else "unknown",
        profile if isinstance(profile := layer.get("Profile"), int) else 0,
    )


def _tensor_types(tensors: object) -> tuple[str, ...]:
    """Datatypes of ``Inputs`` or ``Outputs``."""
    if not isinstance(tensors, list):
        return ()
    return tuple(_tensor_type(tensor) for tensor in tensors if isinstance(tensor, dict))


def _tensor_type(tensor: Mapping[str, object]) -> str:
    # 11.x split "Format/Datatype". Its pages write both "Datatype" and "DataType"; "Format" may name a type too.
    keys = ("Datatype", "DataType", "Format/Datatype", "Format")
    types = (normalize_datatype(tensor[key]) for key in keys if key in tensor)
    return next((name for name in types if name != "unknown"), "unknown")
