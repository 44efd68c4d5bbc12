"""The ONNX operators that the rules speak of, by what TensorRT does with them."""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS",
    "ANSWER",
    "ARITHMETIC",
    "COMMUTING",
    "DEQUANTIZE",
    "GATES",
    "LAYOUT",
    "MOVING",
    "NORMALIZATION",
    "PLAIN",
    "PRODUCTS",
    "QDQ",
    "QUANTIZE",
    "RESHAPING",
    "TYPE_KEEPING",
]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
QDQ = frozenset({QUANTIZE, DEQUANTIZE})
PLAIN = frozenset({"Cast", "Identity"})
"""Conversion to FP16 leaves Casts anywhere between a pair and its user."""
RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MOVING = PLAIN | RESHAPING | {"Transpose"}
COMMUTING = MOVING | {"MaxPool"}
"""TensorRT moves Q and DQ across these: they compute the same in int8."""
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
GATES = frozenset({"Sigmoid", "HardSigmoid"})
"""x * gate(x) is SiLU or HardSwish."""
NORMALIZATION = "BatchNormalization"
ACTIVATIONS = GATES | {
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Tanh", "HardSwish", "Softplus", "Gelu", "Mish", "Swish")
}  # fmt: skip
ARITHMETIC = frozenset({"Mul", "Add", "Sub", "Div"})
LAYOUT = PLAIN | {"Transpose"}
ANSWER = PLAIN | RESHAPING | {"Softmax", "LogSoftmax"}
"""What may stand between the logits and the graph's output."""
TYPE_KEEPING = (
    (MOVING - {"Cast"}) | PRODUCTS | ACTIVATIONS | ARITHMETIC | ANSWER - {"Cast"}
    | {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "ConvTranspose"}
    | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Split", "Slice", "Gather", "Pad"}
    | {"ReduceMean", "ReduceSum", "ReduceMax", "Resize", "Expand", "Dropout", "Pow", "Sqrt", "Exp", "Erf", "Neg"}
)  # fmt: skip
"""Their output has the type of their first input. It is not all of ONNX's: of the others nothing is claimed."""
