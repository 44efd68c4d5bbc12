"""One layer or kernel of an engine, as its library tells of it. Knows no document and no verdict."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineLayer"]


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer or kernel of an engine.

    Attributes:
        name: as the engine calls it.
        kind: LayerType, else ParameterType, as reported; the kernel's keyword in a TensorRT-RTX plan.
        origins: ONNX node names that it was made from.
        inputs: datatypes, activations first; ``unknown`` where the inspector does not say.
        outputs: datatypes.
        tactic: the kernel's name, or ``None``.
        weights: datatype of a convolution's weights where it is reported.
        profile: index of the optimization profile that it belongs to.
    """

    name: str
    kind: str
    origins: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str | None
    weights: str = "unknown"
    profile: int = 0
