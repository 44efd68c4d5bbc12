"""Did I really get INT8 or BF16? Judges the graph that OpenVINO executes (its runtime model) by MACs, layer by layer.

By MACs and not by nodes, because OpenVINO always leaves one product in FP32: it folds a pixel's scale and zero point
into arithmetic before the first convolution, which then reads floats. Counted as one node of fifty that is little, as
one of five it is much, and neither says what it costs; its share of the work does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import onnx

from edgekiln.export.audits.engine_layers.audit import EngineAudit
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.verdict import audit_engine
from edgekiln.export.audits.macs import count_macs
from edgekiln.runtime.backends.openvino import RuntimeLayer, read_layers
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision

__all__ = [
    "audit_openvino",
    "audit_openvino_bf16",
    "names_in_openvino",
    "quantizers_in_openvino",
    "to_engine_layer",
]

_FLOATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_INTEGERS = {"u8", "i8"}
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


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
    kept = {name: macs[name] for name in keep_float if name in macs}
    share = minimum_share * (1 - sum(kept.values()) / max(1, sum(macs.values())))
    audits = []
    for layers in _read_models(quantized):
        if lost := audit_engine(layers, kept, Precision.FP32, 0, evidence="openvino").macs.get("int8"):
            raise PrecisionError(
                f"OpenVINO computes {lost:,} MACs in INT8 of products that were to stay in float: "
                f"{', '.join(sorted(kept)[:8])}."
            )
        audits.append(audit_engine(layers, macs, Precision.INT8, share, evidence="openvino"))
    return _least(audits)


def audit_openvino_bf16(model: bytes, minimum_share: float) -> EngineAudit:
    """Audit a BF16 file as OpenVINO runs it on this CPU.

    Args:
        model: the ONNX file; its graph is in FP32, what it is to compute in stands in its metadata.
        minimum_share: of the MACs.

    Raises:
        PrecisionError: too little runs in BF16; the layers are named.
        MissingExtraError: OpenVINO is not installed.
        DeviceError: this CPU has no BF16.
        EngineError: it refuses the file.
    """
    macs = count_macs(onnx.load_from_string(model))
    audits = [
        audit_engine(layers, macs, Precision.BF16, minimum_share, evidence="openvino")
        for layers in _read_models(model)
    ]
    return _least(audits)


def _read_models(model: bytes) -> list[list[EngineLayer]]:
    """The layers of the model for one picture, and of each other static model that the file asks for."""
    names = names_in_openvino(onnx.load_from_string(model).graph)
    return [[to_engine_layer(layer, names) for layer in layers] for layers in read_layers(model).values()]


def _least(audits: Sequence[EngineAudit]) -> EngineAudit:
    """That of the model with the smallest share: all of them serve."""
    return min(audits, key=lambda audit: audit.share or 0.0)


def names_in_openvino(graph: onnx.GraphProto) -> dict[str, str]:
    """A node's name in OpenVINO (its own, or its output's where that is the graph's) to the one that ``macs`` uses."""
    nodes = [node for node in graph.node if node.op_type not in {"Constant", *_QUANTIZERS}]
    names = {output: node.name or f"node_of_{node.output[0]}" for node in nodes for output in node.output}
    return names | {node.name: node.name for node in nodes if node.name}


def quantizers_in_openvino(graph: onnx.GraphProto) -> dict[str, str]:
    """Of each Q and DQ node and its output, the node that computes what it quantizes."""
    makers: dict[str, str] = {}
    for node in graph.node:
        quantizes = node.op_type in _QUANTIZERS
        name = makers.get(node.input[0], "") if quantizes else node.name or f"node_of_{node.output[0]}"
        makers |= dict.fromkeys(node.output, name)
    quantizers = [node for node in graph.node if node.op_type in _QUANTIZERS]
    return {name: makers[node.output[0]] for node in quantizers for name in (node.name, node.output[0])}


def to_engine_layer(
    layer: RuntimeLayer, names: Mapping[str, str], quantizers: Mapping[str, str] = MappingProxyType({})
) -> EngineLayer:
    """In the form that all audits judge. OpenVINO names no operands; the layer's own precision stands for them.

    Args:
        layer: as OpenVINO describes it.
        names: of ``names_in_openvino``.
        quantizers: of ``quantizers_in_openvino``: a layer that is left with the name of a quantizer alone computes what
            that one reads, and quantizes it.
    """
    found = [_find_node(name, names) for name in layer.origins]
    if not any(found):
        found = [quantizers.get(name) for name in layer.origins]
    return EngineLayer(
        name=layer.name,
        kind="Reformat" if layer.kind == "Reorder" else layer.kind,
        origins=tuple(dict.fromkeys(filter(None, found))),
        inputs=(_datatype(layer),),
        outputs=(),
        tactic=layer.primitive or None,
    )


def _find_node(origin: str, names: Mapping[str, str]) -> str | None:
    """OpenVINO splits a node into parts, as ``NODE/WithoutBiases``; one that it moved is ``NODE_original``."""
    origin = origin.removesuffix("_original")
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
