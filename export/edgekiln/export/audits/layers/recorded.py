"""Layers that TensorRT's inspector wrote into a file, as ``trtexec --exportLayerInfo`` does. Asks no library."""

from __future__ import annotations

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.export.audits.layers.profile import EngineProfile, ToldLayers
from edgekiln.export.audits.layers.profiling import ProfiledEngine, weigh_engine

__all__ = ["profile_document"]


def profile_document(name: str, text: str, graph: bytes | None) -> EngineProfile:
    """The engine that a document tells of.

    Args:
        name: that it is called by.
        text: the inspector's JSON.
        graph: the ONNX file that the engine was built from, for the MACs; ``None`` where that is not known.

    Raises:
        EngineError: the text is not the inspector's JSON.
    """
    told = ToldLayers(parse_inspector(text), "inspector", "")
    return weigh_engine(ProfiledEngine(name, "tensorrt", b"", graph), told, "")
