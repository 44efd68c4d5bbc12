"""Did I really get INT8? Judges the graph that OpenVINO executes (its runtime model) by MACs, layer by layer.

By MACs and not by nodes, because OpenVINO always leaves one product in FP32: it folds a pixel's scale and zero point
into arithmetic before the first convolution, which then reads floats. Counted as one node of fifty that is little, as
one of five it is much, and neither says what it costs; its share of the work does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from edgekiln.export.audits.engine_layers.audit import EngineAudit
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.verdict import audit_engine
from edgekiln.export.audits.macs import PRODUCTS, count_macs
from edgekiln.runtime.backends.openvino import RuntimeLayer, read_layers
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision

__all__ = ["audit_openvino"]

_FLOATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_INTEGERS = {"u8", "i8"}


def audit_openvino(
    source: bytes, quantized: bytes, minimum_share: float, *, keep_float: Collection[str] = ()
) -> EngineAudit:
    """Audit an INT8 file against the FP32 file that it was made from, as OpenVINO runs it on this CPU.

    Args:
        source: the FP32 ONNX file, whose MACs are counted.
        quantized: the INT8 ONNX file.
        minimum_share: of the MACs that were not left in float on purpose.
        keep_float: products that were.

    Raises:
        PrecisionError: too little runs in INT8, or what was to stay in float does not; the layers are named.
        MissingExtraError: OpenVINO is not installed.
        EngineError: it refuses the file.
    """
    macs = count_macs(onnx.load_from_string(source))
    names = _names_in_openvino(onnx.load_from_string(quantized).graph, macs)
    layers = [_to_engine_layer(layer, names) for layer in read_layers(quantized)]
    kept = {name: macs[name] for name in keep_float if name in macs}
    if lost := audit_engine(layers, kept, Precision.FP32, 0, evidence="openvino").macs.get("int8"):
        raise PrecisionError(
            f"OpenVINO computes {lost:,} MACs in INT8 of products that were to stay in float: "
            f"{', '.join(sorted(kept)[:8])}."
        )
    share = minimum_share * (1 - sum(kept.values()) / max(1, sum(macs.values())))
    return audit_engine(layers, macs, Precision.INT8, share, evidence="openvino")


def _names_in_openvino(graph: onnx.GraphProto, macs: Mapping[str, int]) -> dict[str, str]:
    """A product's name in OpenVINO (its node's, or its output's where that is the graph's) to the one in ``macs``."""
    names: dict[str, str] = {}
    for node in graph.node:
        name = node.name or f"node_of_{node.output[0]}"
        if node.op_type in PRODUCTS and name in macs:
            names |= {node.name: name, node.output[0]: name}
    return names


def _to_engine_layer(layer: RuntimeLayer, names: Mapping[str, str]) -> EngineLayer:
    """In the form that all audits judge. OpenVINO names no operands; the layer's own precision stands for them."""
    datatype = _datatype(layer)
    return EngineLayer(
        name=layer.name,
        kind="Reformat" if layer.kind == "Reorder" else layer.kind,
        origins=tuple(dict.fromkeys(filter(None, (_find_product(name, names) for name in layer.origins)))),
        inputs=(datatype,),
        outputs=(),
        tactic=None,
    )


def _find_product(origin: str, names: Mapping[str, str]) -> str | None:
    """OpenVINO splits a node into parts called ``NODE/WithoutBiases`` and the like."""
    while origin:
        if origin in names:
            return names[origin]
        origin = origin.rpartition("/")[0]
    return None


def _datatype(layer: RuntimeLayer) -> str:
    """8 bits only where kernel and layer agree: the kernel's name ends with what it computes in, ``I8`` or ``i8``."""
    kernel = layer.primitive.rpartition("_")[2]
    if layer.precision in _INTEGERS and kernel.upper() == "I8":
        return "int8"
    return _FLOATS.get(layer.precision) or _FLOATS.get(kernel) or "unknown"
