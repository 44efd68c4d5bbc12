"""The constants of a graph, and their values where they can be read: any may be missing, broken or outside the file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekiln.export.precision.qdq_lint.nodes import Node

__all__ = ["cast_array", "find_constants", "read_array"]


def find_constants(graph: Any) -> dict[str, Any]:
    """TensorProtos by name; None for constants of a kind that is not read here."""
    constants: dict[str, Any] = {tensor.values.name: None for tensor in graph.sparse_initializer}
    constants.update((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            constants[node.output[0]] = _constant_node(node)
    constants.pop("", None)
    return constants


def _constant_node(node: Node) -> Any:
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


def read_array(tensor: Any) -> NDArray[Any] | None:
    """A TensorProto's values; None where they cannot be read."""
    if tensor is None:
        return None
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor)
    except Exception:  # external data that is not here, or bytes that do not fit the shape: nothing to judge
        return None
    return array


def cast_array(array: NDArray[Any], element_type: int) -> NDArray[Any]:
    """As a Cast to ``element_type`` (ONNX's number) would give it; unchanged where there is no such type."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(element_type)
        with np.errstate(all="ignore"):  # a scale that overflows FP16 is a finding, not a warning
            return array.astype(dtype)
    except (KeyError, TypeError, ValueError):
        return array
