"""Multiply-accumulates (MACs) of an ONNX model's products: how much each weighs in a precision audit.

Counts Conv, ConvTranspose, Gemm and MatMul, by node name. Bias, activation, pooling and normalization are left out,
as is usual: ResNet-18 at 224 pixels has 1.814 G. Knows nothing of subgraphs (If, Loop) or of custom operators.
"""

from __future__ import annotations

from math import prod

import onnx

__all__ = ["PRODUCTS", "MacCounts", "count_macs", "infer_one_image", "known_shapes"]

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_Shapes = dict[str, tuple[int, ...]]


class MacCounts(dict[str, int]):
    """MACs for one image by node name.

    Attributes:
        unknown: names of the products whose shapes could not be inferred; they are not in the mapping.
    """

    unknown: tuple[str, ...] = ()


def count_macs(model: onnx.ModelProto) -> MacCounts:
    """Count the MACs of one image, product by product.

    Args:
        model: FP32, FP16 or with Q/DQ nodes; left as it is. A dynamic batch is taken as 1, a fixed one of N is
            divided by N; every product is assumed to grow with the batch.

    Returns:
        Node names to MACs. A node without a name is called ``node_of_`` and its output, as TensorRT's parser does.
    """
    single, batch = infer_one_image(model)
    shapes = known_shapes(single.graph)
    counts = MacCounts()
    unknown = []
    for node in single.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        name = node.name or f"node_of_{node.output[0]}"
        macs = _count_node(node, shapes)
        if macs is None:
            unknown.append(name)
        else:
            counts[name] = macs // batch
    counts.unknown = tuple(unknown)
    return counts


def infer_one_image(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy with shapes and types inferred for a batch of 1, and its fixed batch, or 1 where that is dynamic."""
    single, batch = _with_one_image(model)
    return onnx.shape_inference.infer_shapes(single, data_prop=True), batch


def _with_one_image(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy whose dynamic batch is 1, without stale shapes, and its fixed batch or 1."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[
        :
    ]  # an exporter's symbolic shapes would stand in the way of the inferred ones
    for output in single.graph.output:
        output.type.tensor_type.ClearField("shape")
    constants = {tensor.name for tensor in single.graph.initializer}
    batch = 1
    for value in single.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name in constants or not dimensions:
            continue
        if dimensions[0].HasField("dim_value"):
            batch = max(batch, dimensions[0].dim_value)
        else:
            dimensions[0].dim_value = 1
    return single, batch


def known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of which every dimension is known."""
    shapes: _Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(
            dimension.HasField("dim_value") for dimension in tensor.shape.dim
        ):
            shapes.setdefault(value.name, tuple(dimension.dim_value for dimension in tensor.shape.dim))
    return shapes


def _count_node(node: onnx.NodeProto, shapes: _Shapes) -> int | None:
    """MACs of one product over the whole batch; ``None`` where a shape is missing."""
    left, right, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if (
        node.op_type == "ConvTranspose"
    ):  # weights (C_in, C_out / groups, *kernel): each input element meets the rest
        return None if left is None or right is None else prod(left) * prod(right[1:])
    if node.op_type == "Conv":  # weights (C_out, C_in / groups, *kernel)
        return None if out is None or right is None else prod(out) * prod(right[1:])
    if out is None or not left:
        return None
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(out) * (left[0] if node.op_type == "Gemm" and transposed else left[-1])
