"""What was found about an engine. Knows neither how it was read nor what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["EngineAudit", "Evidence", "list_some"]

Evidence = Literal["inspector", "rtx-plan", "openvino", "onnxruntime", "declared", "none"]


@dataclass(frozen=True, slots=True)
class EngineAudit:
    """What an engine computes its products with.

    Attributes:
        precision: what was wanted: fp32, fp16, bf16 or int8.
        share: MACs in the wanted width or narrower over all MACs, 0 to 1; ``None`` where nothing can confirm it.
        macs: MACs of one image by precision; ``unknown`` where no layer says.
        reformats: layers that only convert a tensor's type or layout.
        islands: layers that compute products in a wider type than wanted.
        unattributed: products (ONNX names) found in no layer, and layers of products that name no ONNX node.
        evidence: where all this was read.
        notes: what a reader should know.
    """

    precision: str
    share: float | None
    macs: dict[str, int]
    reformats: int
    islands: tuple[str, ...]
    unattributed: tuple[str, ...]
    evidence: Evidence
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("islands", "unattributed", "notes")}
        return {**asdict(self), **lists}


def list_some(names: Sequence[str]) -> str:
    """The first eight, and how many more."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
