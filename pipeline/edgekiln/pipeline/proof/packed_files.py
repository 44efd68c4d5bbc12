"""Which of a variant's files go into the bundle, and under which names. Copies nothing."""

from __future__ import annotations

from pathlib import Path

from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.engines import built_files
from edgekiln.pipeline.workspace.stage_files import FALLBACK_NAME, MODEL_NAME, StageContext

__all__ = ["graph_file", "packed_files", "packed_graphs"]


def packed_files(context: StageContext, variant: VariantSettings) -> dict[str, Path]:
    """The files that run, by their names in the bundle: NAME.onnx, NAME.engine, NAME.b8.engine."""
    files = built_files(context, variant)
    return {f"{variant.name}.onnx" if path.name == MODEL_NAME else path.name: path for path in files}


def packed_graphs(context: StageContext, variant: VariantSettings) -> dict[str, Path]:
    """The graphs that engines are built from elsewhere, by their names in the bundle."""
    if not variant.builds_engine:
        return {}
    graph = graph_file(context, variant)
    graphs = {f"{variant.name}.onnx": graph, f"{variant.name}.fallback.onnx": graph.with_name(FALLBACK_NAME)}
    return {name: path for name, path in graphs.items() if path.exists()}


def graph_file(context: StageContext, variant: VariantSettings) -> Path:
    """The variant's graph, in the folder of its stage."""
    return context.inputs[f"variant.{variant.name}"] / MODEL_NAME
