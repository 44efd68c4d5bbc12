"""All rules, in the order in which findings are told. A file holds the rules of one subject.

May import ``rule``, ``graph_index``, ``nodes`` and ``operators``; no rule knows another file's.
"""

from edgekiln.export.precision.qdq_lint.rule import Rule
from edgekiln.export.precision.qdq_lint.rules.borders import QuantizedEntry, QuantizedOutput
from edgekiln.export.precision.qdq_lint.rules.concats import ConcatMixed, ConcatScalesDiffer
from edgekiln.export.precision.qdq_lint.rules.conv_chains import QdqInsideConvChain
from edgekiln.export.precision.qdq_lint.rules.pairing import DanglingQuantize
from edgekiln.export.precision.qdq_lint.rules.products import UnquantizedProduct
from edgekiln.export.precision.qdq_lint.rules.residual_adds import (
    BothAddInputsQuantized,
    OutlierResidual,
    UnquantizedSkip,
)
from edgekiln.export.precision.qdq_lint.rules.scale_types import ScaleType
from edgekiln.export.precision.qdq_lint.rules.scales import NonpositiveScale, PerChannelActivation
from edgekiln.export.precision.qdq_lint.rules.weights import PerTensorWeight, WeightAxis
from edgekiln.export.precision.qdq_lint.rules.zero_points import NonzeroZeroPoint

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    QdqInsideConvChain(),
    BothAddInputsQuantized(),
    UnquantizedSkip(),
    OutlierResidual(),
    ConcatScalesDiffer(),
    ConcatMixed(),
    QuantizedEntry(),
    NonzeroZeroPoint(),
    PerTensorWeight(),
    WeightAxis(),
    PerChannelActivation(),
    UnquantizedProduct(),
    QuantizedOutput(),
    NonpositiveScale(),
    ScaleType(),
    DanglingQuantize(),
)
