"""Did I really get INT8 or FP16? The verdict on an engine's layers, whichever library told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekiln.export.audits.engine_layers.audit import EngineAudit, Evidence, list_some
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.weighing import weigh_layers
from edgekiln.runtime.errors import PrecisionError
from edgekiln.runtime.spec import Precision

__all__ = ["audit_engine", "require_share"]


def audit_engine(
    layers: Sequence[EngineLayer],
    products: Mapping[str, int],
    precision: Precision,
    minimum_share: float,
    *,
    evidence: Evidence = "inspector",
) -> EngineAudit:
    """Judge an engine by the layers that its library tells of.

    A layer's precision is that of its activation inputs, not of its output: an INT8 convolution may give FP16.
    Only where they are unknown (dynamic shapes) do the kernel's name, and then the weights' type, stand in; a note
    says so.

    Args:
        layers: from ``parse_inspector``, or those of another library in the same form.
        products: ONNX name of each Conv, Gemm and MatMul to its MACs for one image.
        precision: what was wanted. FP16 counts all of 16 bits and less; FP32 is met by everything.
        minimum_share: of the MACs, 0 to 1.
        evidence: where the layers come from.

    Raises:
        PrecisionError: less than ``minimum_share`` runs in the wanted precision; the layers are named.
    """
    return require_share(weigh_layers(layers, products, precision, evidence), minimum_share)


def require_share(audit: EngineAudit, minimum_share: float) -> EngineAudit:
    """Refuse an audit that stays below what was asked."""
    if audit.precision == Precision.FP32.value or (audit.share is not None and audit.share >= minimum_share):
        return audit
    if audit.share is None:
        raise PrecisionError("Got no product with a known count of MACs, wanted some to audit.")
    total = sum(audit.macs.values())
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in sorted(audit.macs.items()))
    missing = f" Attributed to no layer: {list_some(audit.unattributed)}." if audit.unattributed else ""
    notes = " ".join(("", *audit.notes))
    raise PrecisionError(
        f"Only {audit.share:.1%} of the MACs run in {audit.precision} ({shares}; {audit.evidence}), wanted "
        f"{minimum_share:.1%}. Computing wider: {list_some(audit.islands) or 'none known'}.{missing}{notes}",
        hint="Lower min_precision_share only where that is acceptable: the engine would be so in name only.",
    )
