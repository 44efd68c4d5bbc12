"""What each contender of a recipe's benchmark computes: the costs that its floor follows from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.pipeline.variants.engines import built_files
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    BASELINE,
    BUILD_NAME,
    MODEL_NAME,
    StageContext,
    read_json,
)

__all__ = ["read_products"]


def read_products(context: StageContext) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Costs and precision by contender. The baseline computes what the exported graph says, in FP32."""
    from edgekiln.export.audits.costs import count_costs

    exported = (context.inputs["export"] / MODEL_NAME).read_bytes()
    found: dict[str, tuple[Mapping[str, Any], str]] = {BASELINE: (count_costs(exported).to_dict(), "fp32")}
    for variant in context.recipe.variants:
        about = read_json(context.inputs[f"variant.{variant.name}"] / ABOUT_NAME)
        precision = variant.precision.value
        if variant.builds_engine and built_files(context, variant):
            # What was built may differ from what was asked; the costs of a fallback's graph were not counted.
            built = read_json(context.inputs[f"engine.{variant.name}"] / BUILD_NAME)
            if built.get("precision", precision) != precision:
                continue
        if "costs" in about:
            found[variant.name] = about["costs"], precision
            for library in ("onnxruntime", "openvino"):  # peers on the same file
                found[f"{library}:{variant.name}"] = found[variant.name]
    return found
