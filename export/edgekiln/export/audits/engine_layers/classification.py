"""What one layer is and computes in, by its kind, its tensors and its kernel's name. Knows no other layer and no MACs.

What it cannot know: the inside of an opaque foreign node, and the type in which a kernel accumulates.
"""

from __future__ import annotations

import re

from edgekiln.export.audits.engine_layers.datatypes import WIDTHS, widest, width_of
from edgekiln.export.audits.engine_layers.layer import EngineLayer

__all__ = [
    "compute_type",
    "contradicts_tactic",
    "is_opaque",
    "is_reformat",
    "operand_types",
    "rank_layer",
    "tactic_type",
]

# How kernel names spell their operands; NVIDIA documents none of it. ``..._i8f32_i8i32_f32_...`` is an INT8 kernel
# that gives FP32. FP16 stands before FP32, for ``f16f32`` and ``s16816gemm_fp16`` name the accumulator in front.
_TACTICS = (
    ("int8", r"(?<![a-z])u?i8(i8|i32|f)|int8|imma|i8816|i16832"),
    ("fp8", r"e4m3|e5m2"),
    ("bf16", r"bf16"),
    ("fp16", r"(?<!b)f16f(16|32)|fp16|h884|h1688|h16816|hmma|hcudnn|hgemm"),
    ("fp32", r"f32f32|s1688|scudnn|sgemm|ffma"),
)
_TACTIC_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _TACTICS)

_CONVOLUTION = re.compile(r"^cask.*conv|convolution$", re.IGNORECASE)
_PRODUCT = re.compile(
    r"conv(?!er)|gemm|mat_?mul|matrix_?multiply|fully_?connected|correlation|corrltn|runtime_fusion|einsum|attention",
    re.IGNORECASE,
)
# A layer of its own for either is onnxruntime's: in TensorRT's engines they are reformats or part of a kernel.
_CONVERSIONS = frozenset({"Reformat", "QuantizeLinear", "DequantizeLinear"})
_FUSED = re.compile(r"fusion|kgen|^function", re.IGNORECASE)
_OPAQUE = re.compile(r"^\{ForeignNode\[|^Myelin$")
# Myelin names a generated kernel after its operations, four letters each: __myl_FcAddCast, __myl_MulSum.
_MOVED = re.compile(r"^__myl_(?:Tran|Conc|Resh|Repl|Move|Slic|Cast)+(?:_|$)")
_FUSED_PRODUCT = re.compile(r"gemm|mha|conv|^__myl_\w*?(Fc|Corr|Dot|Mul\w*Sum)", re.IGNORECASE)


def rank_layer(layer: EngineLayer) -> int:
    """0: computes products by its kind; 1: a generated kernel whose name says so; 2: not told; 3: does not."""
    if is_reformat(layer):
        return 3
    if is_opaque(layer) or layer.kind == "unknown":
        return 2
    if _PRODUCT.search(layer.kind):
        return 0
    if not _FUSED.search(layer.kind):
        return 3
    # Any other name may hold an ONNX name such as "/conv1/Conv" and say nothing of the kernel.
    generated = layer.name if layer.name.startswith(("__myl_", "_gemm_")) else ""
    return 1 if any(_FUSED_PRODUCT.search(name) for name in (generated, layer.tactic or "")) else 3


def is_opaque(layer: EngineLayer) -> bool:
    """A foreign node: a part of the network that another compiler took whole."""
    return bool(_OPAQUE.match(layer.name) or _OPAQUE.match(layer.kind))


def is_reformat(layer: EngineLayer) -> bool:
    """A layer that only converts a tensor's type or layout, or moves it."""
    return (
        layer.kind in _CONVERSIONS
        or layer.name.startswith("Reformatting CopyNode")
        or bool(_MOVED.match(layer.name))
    )


def compute_type(layer: EngineLayer) -> str:
    """The precision a product is computed in: by its operands, else its kernel's name, else its weights.

    Where the operands differ, one may be a scale or a bias: the kernel's name decides, if it names one of them.
    """
    if is_opaque(layer):
        return "unknown"  # its boundary says nothing of what is computed inside
    operands, tactic = operand_types(layer), tactic_type(layer)
    if tactic and (not operands or (tactic in operands and len(operands) > 1)):
        return tactic
    if operands:
        return widest(operands)
    return layer.weights if layer.weights in WIDTHS else "unknown"


def operand_types(layer: EngineLayer) -> set[str]:
    """The types among which the operands' is; empty where they are not reported.

    A TensorRT convolution's inputs are the activation and then a fused residual. Other products list both operands
    first. A generated kernel sorts its inputs freely: any of them may be an operand.
    """
    inputs = layer.inputs
    if _CONVOLUTION.search(layer.kind):
        inputs = inputs[:1]
    elif not _FUSED.search(layer.kind):
        inputs = inputs[:2]
    return set() if "unknown" in inputs else {name for name in inputs if name in WIDTHS}


def tactic_type(layer: EngineLayer) -> str | None:
    """What its kernel's name says of the operands; ``None`` where it says nothing."""
    tactic = (layer.tactic or "").lower()
    return next((name for name, pattern in _TACTIC_PATTERNS if pattern.search(tactic)), None)


def contradicts_tactic(layer: EngineLayer) -> bool:
    """Whether the kernel's name tells of another width than every operand has."""
    operands, tactic = operand_types(layer), tactic_type(layer)
    return (
        bool(operands)
        and tactic is not None
        and width_of(tactic) not in {width_of(name) for name in operands}
    )
