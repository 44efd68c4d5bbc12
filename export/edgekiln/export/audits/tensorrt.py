"""Did I really get INT8 or FP16, where no inspector can say? Two kinds of evidence that TensorRT and RTX leave.

The graph text inside a TensorRT-RTX plan (``audit_rtx_plan``), and the types that a parsed network declares
(``audit_declared``), which can refuse an engine but never confirm one. Layers that the engine inspector tells of are
read in ``engine_layers/inspector.py`` and judged in ``engine_layers/verdict.py``.

Needs the standard library and edgekiln.runtime only, so that it runs where an engine is built on its target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edgekiln.export.audits.engine_layers.audit import EngineAudit
from edgekiln.export.audits.engine_layers.datatypes import normalize_datatype
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.rtx_plan import parse_rtx_plan
from edgekiln.export.audits.engine_layers.verdict import require_share
from edgekiln.export.audits.engine_layers.weighing import weigh_layers
from edgekiln.runtime.spec import Precision

__all__ = ["audit_declared", "audit_rtx_plan"]


def audit_rtx_plan(
    plan: bytes, products: Mapping[str, int], precision: Precision, minimum_share: float
) -> EngineAudit:
    """Judge a TensorRT-RTX plan by the graph text in it, without a GPU.

    Args:
        plan: the serialized engine.
        products: as for ``audit_engine``.
        precision: what was wanted.
        minimum_share: of the MACs, 0 to 1.

    Returns:
        Evidence ``none`` and share ``None`` where the plan holds no graph text: nothing is then proved either way.

    Raises:
        PrecisionError: as for ``audit_engine``.
    """
    found = parse_rtx_plan(plan)
    if found is None:
        note = "The plan holds no readable graph: its precision could not be read."
        return EngineAudit(
            precision.value,
            None,
            {"unknown": sum(products.values())},
            0,
            (),
            tuple(products),
            "none",
            (note,),
        )
    notes = [*_float_outputs(found.kernels, precision)]
    if found.tf32 and precision is Precision.FP32:
        notes.append("TF32 is on: FP32 products may round their operands to 10 bits of mantissa.")
    return require_share(weigh_layers(found.kernels, products, precision, "rtx-plan", notes), minimum_share)


def _float_outputs(kernels: Iterable[EngineLayer], precision: Precision) -> Iterator[str]:
    """A warning where INT8 products give FP32, which other kernels must scale and quantize again."""
    convolutions = [
        kernel for kernel in kernels if kernel.kind == "corrltn" and kernel.inputs[:1] == ("int8",)
    ]
    unfused = sum(kernel.outputs[:1] == ("fp32",) for kernel in convolutions)
    if precision is Precision.INT8 and unfused:
        yield (
            f"Warning: {unfused} of {len(convolutions)} INT8 convolutions emit float32, with bias, activation and "
            "quantization in kernels of their own. Expect no speed-up over FP16; measure."
        )


def audit_declared(
    declared: Mapping[str, str], products: Mapping[str, int], precision: Precision, minimum_share: float
) -> EngineAudit:
    """Judge what a parsed network declares. It can refuse an engine; only what was achieved confirms one.

    Args:
        declared: ONNX node name to the datatype of its activation input. Behind a DequantizeLinear give the type
            that this one reads: the network itself declares the product's input as floating point.
        products: as for ``audit_engine``.
        precision: what was wanted.
        minimum_share: of the MACs, 0 to 1.

    Returns:
        Share ``None``; ``macs`` has what was declared.

    Raises:
        PrecisionError: less than ``minimum_share`` is declared in the wanted precision.
    """
    layers = [
        EngineLayer(name, "Convolution", (name,), (normalize_datatype(datatype),), (), None)
        for name, datatype in declared.items()
        if name in products
    ]
    audit = require_share(weigh_layers(layers, products, precision, "declared"), minimum_share)
    note = "Declared by the network, not read from the engine: this can refuse a precision, not confirm it."
    return EngineAudit(
        audit.precision,
        None,
        audit.macs,
        0,
        audit.islands,
        audit.unattributed,
        "declared",
        (note, *audit.notes),
    )
