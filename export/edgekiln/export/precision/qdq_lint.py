"""Will TensorRT fuse it? Reads a graph with explicit Q/DQ and names the nodes that would cost a fusion.

TensorRT does exactly what Q/DQ nodes say: one pair in a wrong place and a layer silently runs in floating point
between two reformats, or the builder refuses the network. The rules are NVIDIA's, from "Working with Quantized
Types" in the TensorRT documentation: symmetric int8, one scale per activation tensor, one per output channel of a
weight, no pair inside Conv + BatchNormalization + activation, and the identity branch of a residual Add quantized.

Only the graph is read. Whether the engine really fused is seen in the engine alone; subgraphs of If and Loop are
not looked into, and a scale that is not a constant of the graph is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["SMALLEST_FP16_SCALE", "Finding", "lint_qdq"]

SMALLEST_FP16_SCALE = 2.0**-20
"""Below it an FP16 scale has fewer than five bits left (FP16's subnormals are multiples of 2**-24)."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_QDQ = frozenset({_QUANTIZE, _DEQUANTIZE})
_PLAIN = frozenset(
    {"Cast", "Identity"}
)  # conversion to FP16 leaves Casts anywhere between a pair and its user
_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MOVING = _PLAIN | _RESHAPING | {"Transpose"}
_COMMUTING = _MOVING | {"MaxPool"}  # TensorRT moves Q and DQ across these: they compute the same in int8
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_GATES = frozenset({"Sigmoid", "HardSigmoid"})  # x * gate(x) is SiLU or HardSwish
_NORMALIZATION = "BatchNormalization"
_ACTIVATIONS = _GATES | {
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Tanh", "HardSwish", "Softplus", "Gelu", "Mish", "Swish")
}  # fmt: skip
_ARITHMETIC = frozenset({"Mul", "Add", "Sub", "Div"})
_LAYOUT = _PLAIN | {"Transpose"}
_ANSWER = _PLAIN | _RESHAPING | {"Softmax", "LogSoftmax"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a graph that TensorRT would refuse, or run slower than INT8 should.

    Attributes:
        rule: stable kebab-case name of the rule.
        nodes: names of the ONNX nodes concerned; the first output's name where a node has none.
        message: what was found, what it costs, what to do.
        severity: ``error`` where INT8 or the whole build is lost, ``warning`` where accuracy or a little speed is.
    """

    rule: str
    nodes: tuple[str, ...]
    message: str
    severity: Literal["error", "warning"]


def lint_qdq(graph: onnx.GraphProto) -> tuple[Finding, ...]:
    """Check a graph with explicit Q/DQ against TensorRT's rules of placement.

    Args:
        graph: any ONNX graph, FP32 or FP16, checked or not; a graph without Q/DQ has no finding.

    Returns:
        Findings, grouped by rule and in the order of the graph's nodes; empty where nothing is wrong.
    """
    index = _Index(graph)
    return tuple(finding for rule in _RULES for finding in rule(index))


def _error(rule: str, nodes: Iterable[Any], message: str) -> Finding:
    return Finding(rule, _labels(nodes), message, "error")


def _warning(rule: str, nodes: Iterable[Any], message: str) -> Finding:
    return Finding(rule, _labels(nodes), message, "warning")


def _labels(nodes: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_label(node) for node in nodes))


def _named(nodes: Iterable[Any]) -> str:
    return " and ".join(_labels(nodes))


def _label(node: Any) -> str:
    return str(node.name or next(filter(None, node.output), node.op_type))


# --------------------------------------------------------------------------------------------------------------
# Reading a graph that may be odd: any name may be missing, any input may lead nowhere or in a circle


class _Index:
    """Who makes a tensor, who reads it, and what its constant value is."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.constants = _constants(graph)
        self.inputs = {value.name: value for value in graph.input if value.name not in self.constants}
        self.outputs = [value.name for value in graph.output]
        self._producers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            self._producers.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(filter(None, node.input)):
                self._readers.setdefault(name, []).append(node)

    def producer(self, name: str) -> Any:
        """The node that makes a tensor; None for constants, graph inputs and names that lead nowhere."""
        return None if name in self.constants else self._producers.get(name)

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def walk_back(self, name: str, through: frozenset[str]) -> tuple[str, list[Any]]:
        """Go up the first inputs while the operators are in ``through``: where it ends, the nodes passed."""
        passed: list[Any] = []
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            node = self.producer(name)
            if node is None or node.op_type not in through:
                break
            passed.append(node)
            name = _input(node, 0)
        return name, passed

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, seen through its own Q/DQ, Casts and changes of layout."""
        return self.walk_back(name, _MOVING | _QDQ)[0] in self.constants

    def value(self, name: str) -> NDArray[Any] | None:
        """A small constant in the type that its reader sees; None where it cannot be told."""
        root, casts = self.walk_back(name, _PLAIN)
        array = _array(self.constants.get(root))
        for node in reversed(casts):
            if array is not None and node.op_type == "Cast":
                array = _cast(array, _attribute(node, "to", 0))
        return array

    def scale(self, node: Any) -> NDArray[Any] | None:
        """Scale of a Q or DQ; None where it is no constant, or empty."""
        scale = self.value(_input(node, 1))
        return scale if scale is not None and scale.size and scale.dtype.kind not in "OSU" else None

    def dequantizer(self, name: str, through: frozenset[str] = _COMMUTING) -> Any:
        """The DequantizeLinear that a tensor comes from, or None."""
        node = self.producer(self.walk_back(name, through)[0])
        return node if node is not None and node.op_type == _DEQUANTIZE else None

    def with_quantize(self, dequantize: Any) -> list[Any]:
        """A DQ after its Q, where it has one; int8 constants have none."""
        node = self.producer(_input(dequantize, 0))
        return [node, dequantize] if node is not None and node.op_type == _QUANTIZE else [dequantize]

    def is_quantized(self, product: Any) -> bool:
        """Whether both operands of a product come from a DQ."""
        return all(self.dequantizer(_input(product, side)) is not None for side in (0, 1))

    def pairs(self) -> list[list[Any]]:
        """Every Q with its DQs, every DQ of a constant alone: grouped by the int8 tensor between them."""
        groups: dict[str, list[Any]] = {}
        for node in self.nodes:
            if node.op_type in _QDQ:
                stored = _output(node) if node.op_type == _QUANTIZE else _input(node, 0)
                groups.setdefault(stored or _label(node), []).append(node)
        return list(groups.values())


def _constants(graph: Any) -> dict[str, Any]:
    """TensorProtos by name; None for constants of a kind that is not read here."""
    constants: dict[str, Any] = {tensor.values.name: None for tensor in graph.sparse_initializer}
    constants.update((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            constants[node.output[0]] = _constant_node(node)
    constants.pop("", None)
    return constants


def _constant_node(node: Any) -> Any:
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in kinds:
            value = helper.get_attribute_value(attribute)
            return numpy_helper.from_array(np.array(value, kinds[attribute.name]))
    return None


def _array(tensor: Any) -> NDArray[Any] | None:
    if tensor is None:
        return None
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor)
    except Exception:  # external data that is not here, or bytes that do not fit the shape: nothing to judge
        return None
    return array


def _cast(array: NDArray[Any], element_type: int) -> NDArray[Any]:
    try:
        dtype = helper.tensor_dtype_to_np_dtype(element_type)
        with np.errstate(all="ignore"):  # a scale that overflows FP16 is a finding, not a warning
            return array.astype(dtype)
    except (KeyError, TypeError, ValueError):
        return array


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _input(node: Any, position: int) -> str:
    return str(node.input[position]) if len(node.input) > position else ""


def _output(node: Any) -> str:
    return str(node.output[0]) if node.output else ""


def _only_qdq(nodes: Iterable[Any]) -> list[Any]:
    """The Q and DQ nodes of a walk back, in the direction of the data."""
    return [node for node in nodes if node.op_type in _QDQ][::-1]


# --------------------------------------------------------------------------------------------------------------
# Placement around convolutions


def _lint_conv_chains(index: _Index) -> Iterator[Finding]:
    broken: dict[tuple[str, ...], list[Any]] = {}
    for node in index.nodes:
        for name in _chain_inputs(index, node):
            root, passed = index.walk_back(name, _PLAIN | _QDQ)
            between, conv = _only_qdq(passed), _conv_of_chain(index, root)
            if between and conv is not None:
                broken.setdefault(_labels(between), [conv, *between]).append(node)
    for between_labels, nodes in broken.items():
        yield _error(
            "qdq-inside-conv-chain",
            nodes,
            f"{' and '.join(between_labels)} stand between {_label(nodes[0])} and its {nodes[-1].op_type}, which "
            "then cannot fuse into one INT8 kernel; move the pair behind the activation.",
        )


def _chain_inputs(index: _Index, node: Any) -> list[str]:
    """The inputs through which a node would fuse with a convolution before it."""
    if node.op_type == _NORMALIZATION or node.op_type in _ACTIVATIONS:
        return [_input(node, 0)]
    if node.op_type == "Mul" and _is_gated(index, node):
        return [_input(node, 0), _input(node, 1)]
    return []


def _is_gated(index: _Index, multiply: Any) -> bool:
    """Whether a Mul is x * sigmoid(x), with or without Q/DQ in it."""
    roots = [index.walk_back(_input(multiply, side), _PLAIN | _QDQ)[0] for side in (0, 1)]
    for gated, plain in (roots, roots[::-1]):
        gate = index.producer(gated)
        if gate is not None and gate.op_type in _GATES:
            return index.walk_back(_input(gate, 0), _PLAIN | _QDQ)[0] == plain
    return False


def _conv_of_chain(index: _Index, name: str) -> Any:
    """The Conv behind a tensor with at most a BatchNormalization and a gate in between, or None."""
    conv = index.producer(index.walk_back(name, _PLAIN | _QDQ | _GATES | {_NORMALIZATION})[0])
    return conv if conv is not None and conv.op_type == "Conv" else None


def _lint_residual_adds(index: _Index) -> Iterator[Finding]:
    for add in index.nodes:
        names = list(add.input)
        if add.op_type != "Add" or len(names) != 2 or any(index.is_constant(name) for name in names):
            continue
        fusible = [_ends_in_quantized_conv(index, name) for name in names]
        pairs = [index.dequantizer(name) for name in names]
        if all(pair is not None for pair in pairs) and any(fusible):
            yield _warning(
                "both-add-inputs-quantized",
                [add, *pairs],
                f"Both inputs of {_label(add)} are quantized, so its convolution writes int8 before the sum and "
                "the two do not fuse; take the pair off the convolution's branch.",
            )
            continue
        # The sum fuses into a convolution that feeds it in float, with the other input in int8.
        if any(fusible) and not any(
            fusible[side] and pairs[side] is None and pairs[1 - side] is not None for side in (0, 1)
        ):
            skip = names[fusible.index(True) - 1]  # of two: 0 gives the last, 1 gives the first
            yield _error(
                "unquantized-skip",
                [add, *(pair for pair in pairs if pair is not None)],
                f"The identity branch {skip} of {_label(add)} has no Q/DQ, so the sum does not fuse into the "
                "INT8 convolution; quantize that branch, and leave the convolution's own branch in float.",
            )


def _ends_in_quantized_conv(index: _Index, name: str) -> bool:
    """Whether a branch is a quantized Conv, with at most a BatchNormalization behind it.

    An activation ends the chain: TensorRT adds before it activates, never the other way round. So does a quantized
    tensor that others read too: it is the input of a block, whichever node made it.
    """
    root, passed = index.walk_back(name, _PLAIN | _QDQ | {_NORMALIZATION})
    conv = index.producer(root)
    if conv is None or conv.op_type != "Conv" or not index.is_quantized(conv):
        return False
    shared = any(len(index.readers(_output(node))) > 1 for node in [conv, *passed])
    return not (shared and _only_qdq(passed))


# --------------------------------------------------------------------------------------------------------------
# Placement elsewhere


def _lint_concats(index: _Index) -> Iterator[Finding]:
    for concat in index.nodes:
        if concat.op_type != "Concat":
            continue
        sources = [index.dequantizer(name) for name in concat.input if name and not index.is_constant(name)]
        pairs = [node for node in sources if node is not None]
        scales = [scale for scale in map(index.scale, pairs) if scale is not None]
        if any(not _same_scale(scales[0], scale) for scale in scales[1:]):
            yield _error(
                "concat-scales-differ",
                [concat, *pairs],
                f"Inputs of {_label(concat)} have differing scales, so each is requantized instead of written in "
                "place; give them all the largest scale.",
            )
        if 0 < len(pairs) < len(sources):
            yield _warning(
                "concat-mixed",
                [concat, *pairs],
                f"{len(pairs)} of {len(sources)} inputs of {_label(concat)} are quantized, so it runs in float "
                "behind reformats; quantize all of them with one scale, or none.",
            )


def _same_scale(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Equal in the coarser of their types: a scale kept in FP32 and its FP16 rounding are the same scale."""
    coarser = min((one.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    with np.errstate(all="ignore"):
        return np.array_equal(one.astype(coarser).ravel(), other.astype(coarser).ravel())


def _lint_entry(index: _Index) -> Iterator[Finding]:
    reported: set[tuple[str, ...]] = set()
    for node in index.nodes:
        data = _data_input(index, node)
        if node.op_type not in _ARITHMETIC or data is None or not _comes_from_input(index, data):
            continue
        walks = [index.walk_back(_input(node, side), _LAYOUT | _QDQ)[1] for side in (0, 1)]
        between = [pair for walk in walks for pair in _only_qdq(walk)]
        if between and _labels(between) not in reported:
            reported.add(_labels(between))
            yield _error(
                "quantized-entry",
                [*between, node],
                f"{_named(between)} quantize pixels before {_label(node)} has normalized them, which costs "
                "accuracy and gains no INT8 kernel; the first pair belongs right before the first product.",
            )


def _data_input(index: _Index, node: Any) -> str | None:
    """The one input that is no constant, of a node with two."""
    data = [name for name in node.input if not index.is_constant(name)]
    return str(data[0]) if len(node.input) == 2 and len(data) == 1 else None


def _comes_from_input(index: _Index, name: str) -> bool:
    """Whether only Casts, layout, arithmetic with constants and Q/DQ lie between the graph's input and a tensor."""
    seen: set[str] = set()
    while name and name not in seen:
        seen.add(name)
        name = index.walk_back(name, _LAYOUT | _QDQ)[0]
        if name in index.inputs:
            return True
        node = index.producer(name)
        if node is None or node.op_type not in _ARITHMETIC:
            return False
        name = _data_input(index, node) or ""
    return False


def _lint_outputs(index: _Index) -> Iterator[Finding]:
    for name in index.outputs:
        dequantize = index.dequantizer(name, _ANSWER)
        if dequantize is not None:
            yield _warning(
                "quantized-output",
                index.with_quantize(dequantize),
                f"The output {name} is quantized: 256 steps make ties of near answers, and nothing is "
                "computed from them in INT8; drop the pair.",
            )


def _lint_dangling(index: _Index) -> Iterator[Finding]:
    for node in index.nodes:
        if node.op_type != _QUANTIZE:
            continue
        readers = index.readers(_output(node))
        others = [reader for reader in readers if reader.op_type != _DEQUANTIZE]
        if others or not readers or _output(node) in index.outputs:
            users = ", ".join(_labels(others)) or ("the graph's output" if readers else "no DequantizeLinear")
            yield _error(
                "dangling-quantize",
                [node, *others],
                f"The int8 tensor of {_label(node)} goes to {users}; TensorRT takes Q and DQ in pairs only, so put "
                "a DequantizeLinear right behind it.",
            )


# --------------------------------------------------------------------------------------------------------------
# Scales and zero points


def _lint_zero_points(index: _Index) -> Iterator[Finding]:
    for pair in index.pairs():
        faulty = [node for node in pair if not _is_symmetric_int8(index, node)]
        if faulty:
            yield _error(
                "nonzero-zero-point",
                faulty,
                f"{_named(faulty)} use uint8 or a zero point other than 0, and TensorRT takes "
                "symmetric int8 only; quantize again with symmetric int8.",
            )


def _is_symmetric_int8(index: _Index, node: Any) -> bool:
    zero_point = index.value(_input(node, 2))
    if zero_point is not None:
        return bool(zero_point.dtype.kind != "u" and not np.any(zero_point))
    if _input(node, 2):
        return True  # it is no constant: nothing to judge
    if node.op_type == _QUANTIZE:  # ONNX's default is uint8; TensorRT would read int8, other engines not
        return bool(_attribute(node, "output_dtype", 0) not in {0, onnx.TensorProto.UINT8})
    return bool(_element_type(index, _input(node, 0)) != onnx.TensorProto.UINT8)


def _element_type(index: _Index, name: str) -> int:
    """Type of a constant or a graph input, as ONNX numbers it; 0 where unknown."""
    tensor = index.constants.get(name)
    if tensor is not None:
        return int(tensor.data_type)
    return int(index.inputs[name].type.tensor_type.elem_type) if name in index.inputs else 0


def _lint_scales(index: _Index) -> Iterator[Finding]:
    for pair in index.pairs():
        faulty = [node for node in pair if not _is_usable(index.scale(node))]
        if faulty:
            yield _error(
                "nonpositive-scale",
                faulty,
                f"{_named(faulty)} have a scale that is not positive and finite, or so small that FP16 has hardly "
                "a digit of it; calibrate again, or keep that tensor in float.",
            )


def _is_usable(scale: NDArray[Any] | None) -> bool:
    if scale is None:
        return True
    smallest = SMALLEST_FP16_SCALE if scale.dtype == np.float16 else 0
    values = scale.astype(np.float64)
    return bool(np.all(np.isfinite(values) & (values > 0) & (values >= smallest)))


def _lint_activation_scales(index: _Index) -> Iterator[Finding]:
    for pair in index.pairs():
        if index.is_constant(_input(pair[0], 0)):
            continue
        faulty = [node for node in pair if _size(index.scale(node)) > 1]
        if faulty:
            yield _error(
                "per-channel-activation",
                faulty,
                f"{_named(faulty)} have one scale per channel of an activation, which no INT8 "
                "kernel of TensorRT takes; give the tensor one scale.",
            )


def _size(scale: NDArray[Any] | None) -> int:
    return 0 if scale is None else int(scale.size)


# --------------------------------------------------------------------------------------------------------------
# Products and their weights


def _lint_products(index: _Index) -> Iterator[Finding]:
    for product in index.nodes:
        if product.op_type not in _PRODUCTS or len(product.input) < 2:
            continue
        pairs = [index.dequantizer(_input(product, side)) for side in (0, 1)]
        if (pairs[0] is None) == (pairs[1] is None):
            continue
        side = 0 if pairs[0] is not None else 1
        # A pair before a MaxPool is there for the MaxPool; the product behind it may stay in float.
        if index.dequantizer(_input(product, side), _MOVING) is not None:
            yield _error(
                "unquantized-product",
                [product, pairs[side]],
                f"Only {_input(product, side)} of {_label(product)} is quantized, so the product runs in float and "
                f"the pair just costs time and accuracy; quantize {_input(product, 1 - side)} too, or neither.",
            )


def _lint_weight_scales(index: _Index) -> Iterator[Finding]:
    for product in index.nodes:
        weight = _weight_input(index, product)
        dequantize = None if weight is None else index.dequantizer(weight, _MOVING)
        if weight is None or dequantize is None or _size(index.scale(dequantize)) != 1:
            continue
        if _output_channels(index, product, weight) != 1:
            yield _warning(
                "per-tensor-weight",
                [product, dequantize],
                f"The weight of {_label(product)} has one scale for all output channels, which costs accuracy "
                "and gains no speed; quantize it per output channel.",
            )


def _lint_weight_axes(index: _Index) -> Iterator[Finding]:
    for product in index.nodes:
        weight = _weight_input(index, product)
        path = [] if weight is None else _channel_path(index, product, weight)
        faulty = [
            node for node, axis, rank in path if node is not None and not _is_along(index, node, axis, rank)
        ]
        if faulty:
            yield _error(
                "weight-axis",
                [product, *_only_qdq(faulty)],
                f"The scales of the weight of {_label(product)} do not run along its output channels, so no "
                "INT8 kernel can apply them after the sum; quantize per output channel.",
            )


def _weight_input(index: _Index, product: Any) -> str | None:
    """The constant operand of a product with a weight: the second; of a MatMul also the first."""
    if product.op_type not in _PRODUCTS:
        return None
    sides = (1, 0) if product.op_type == "MatMul" else (1,)
    return next((name for name in (_input(product, side) for side in sides) if index.is_constant(name)), None)


def _channel_path(index: _Index, product: Any, weight: str) -> list[tuple[Any, int, int]]:
    """Every Q and DQ from a product up to its constant weight, and None for the constant itself.

    Each with the axis of the output channels there and the tensor's rank. It ends early where a Reshape stands
    between, since where the channels went cannot be told without all shapes.
    """
    root, passed = index.walk_back(weight, _MOVING | _QDQ)
    rank = len(index.constants[root].dims) if index.constants[root] is not None else 0
    axis = _output_axis(product, weight, rank)
    path: list[tuple[Any, int, int]] = []
    for node in [*passed, None]:
        if not 0 <= axis < rank or (node is not None and node.op_type in _RESHAPING):
            break
        if node is None or node.op_type in _QDQ:
            path.append((node, axis, rank))
        elif node.op_type == "Transpose":
            order = list(_attribute(node, "perm", range(rank)[::-1]))
            axis = order[axis] if len(order) == rank else -1
    return path


def _output_axis(product: Any, weight: str, rank: int) -> int:
    """Axis of a weight that is the product's output channel, as its operand stands; negative where none is."""
    if rank < 2:
        return -1
    if product.op_type == "Conv":
        return 0
    if product.op_type == "Gemm":
        return 0 if _attribute(product, "transB", 0) else 1
    return rank - 1 if weight == _input(product, 1) else rank - 2


def _is_along(index: _Index, node: Any, axis: int, rank: int) -> bool:
    """Whether the scales of a Q or DQ run along an axis; one scale runs along any, blocks are not judged."""
    scale = index.scale(node)
    if scale is None or scale.size < 2 or scale.ndim != 1:
        return True
    found = int(_attribute(node, "axis", 1))
    return axis == (found + rank if found < 0 else found)


def _output_channels(index: _Index, product: Any, weight: str) -> int | None:
    """Length of a weight's output channel axis; None where unknown."""
    root = index.walk_back(weight, _MOVING | _QDQ)[0]
    lengths = [
        index.constants[root].dims[axis]
        for node, axis, _ in _channel_path(index, product, weight)
        if node is None
    ]
    return int(lengths[0]) if lengths else None


_RULES: tuple[Callable[[_Index], Iterator[Finding]], ...] = (
    _lint_conv_chains,
    _lint_residual_adds,
    _lint_concats,
    _lint_entry,
    _lint_zero_points,
    _lint_weight_scales,
    _lint_weight_axes,
    _lint_activation_scales,
    _lint_products,
    _lint_outputs,
    _lint_scales,
    _lint_dangling,
)
