"""Which nodes stay in float when the rest of a graph becomes INT8: by what they are, and by their values on pictures.

Eight bits give a tensor one step for all its values. Transformers carry single values of 1,000 among values of 1 along
their residual stream ("massive activations", Sun et al. 2024, arXiv:2402.17762); with a step made for 1,000 all others
round to zero. All quantizers ask this module, so an INT8 graph is the same for every library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekiln.export.calibration import CalibrationSet
from edgekiln.export.precision.blocks import PRODUCTS, nearest_products
from edgekiln.export.precision.ranges import float_tensors
from edgekiln.export.to_onnx import entry_chain
from edgekiln.runtime.backends.onnxruntime import import_onnxruntime
from edgekiln.runtime.spec import INPUT_NAME, Frames

__all__ = ["EVERYTHING_QUANTIZED", "OUTLIER_RATIO", "FloatPlan", "Outlier", "measure_outliers", "plan_float"]

HIGH_PERCENTILE = 90.0
"""Of the |values| that are not zero. Not 99: one channel of a narrow network is 2 % of its values, and all of it may be
an outlier. Of those that are not zero, since half of a ReLU's output is."""
OUTLIER_RATIO = 32.0
"""Largest |value| over the percentile. Then nine values in ten share 127 / 32 = 4 steps on either side of zero.
Networks without outliers lie far below: values of a Laplace distribution reach 6 times that percentile in a million,
EfficientNet-Lite0 reaches 6 on real pictures (of 64 tensors the worst), a massive activation of 1,000 some 500."""
_SAMPLED = 100_000  # values per tensor and batch that the percentile is taken of
_BATCH = 8  # images per call: bounds the memory of all activations together
_NORMALIZATIONS = frozenset(
    {
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LpNormalization",
        "RMSNormalization",
    }
)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A tensor whose largest |value| dwarfs the others: the node that makes it, that value and the percentile."""

    tensor: str
    node: str
    largest: float
    percentile: float

    @property
    def ratio(self) -> float:
        """Largest value over the percentile."""
        return self.largest / self.percentile


@dataclass(frozen=True, slots=True)
class FloatPlan:
    """What stays in float, and why.

    Attributes:
        reasons: node names to ``attention``, ``normalization``, ``transformer`` (softmax, GELU, residual Add and what
            else stands between linear layers) or ``outlier``.
        products: those that are Conv, Gemm or MatMul.
        outliers: the evidence, the largest ratio first.
        transformer: whether the graph has attention or LayerNormalization.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    transformer: bool = False

    def residual_ratios(self, graph: Any) -> dict[str, float]:
        """By name, the Adds of the FP32 graph that join or make a tensor with outliers, and its ratio."""
        ratios = {outlier.tensor: outlier.ratio for outlier in self.outliers}
        met = {node.name: [ratios[n] for n in (*node.input, *node.output) if n in ratios] for node in graph.node
               if node.op_type == "Add"}  # fmt: skip
        return {name: max(found) for name, found in met.items() if found}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; at most 20 outliers, with their number."""
        names: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            names.setdefault(reason, []).append(name)
        return {
            "kept": {reason: len(nodes) for reason, nodes in sorted(names.items())},
            "products": {name: self.reasons[name] for name in self.products},
            "outliers": [
                {"tensor": o.tensor, "node": o.node, "largest": o.largest, "ratio": o.ratio}
                for o in self.outliers[:20]
            ],
            "outlier_count": len(self.outliers),
        }

    def tell(self) -> str:
        """One sentence for people; empty where nothing stays in float."""
        if not self.reasons:
            return ""
        counts = Counter(self.reasons.values())
        kept = ", ".join(f"{count} for {_WORDS[reason]}" for reason, count in sorted(counts.items()))
        worst = (
            f"; the largest outlier is {self.outliers[0].largest:.4g} at {self.outliers[0].node}, "
            f"{self.outliers[0].ratio:.0f} times the {HIGH_PERCENTILE:.0f}th percentile"
            if self.outliers
            else ""
        )
        return f"{len(self.reasons)} nodes stay in float: {kept}{worst}"


_WORDS = {
    "attention": "attention",
    "normalization": "normalization",
    "outlier": "outliers",
    "transformer": "softmax, GELU, residual sums and the like of transformer blocks",
}
EVERYTHING_QUANTIZED = FloatPlan()
"""What a quantizer does without this module: for the tests, which show what that costs."""


def plan_float(model: Any, calibration: CalibrationSet) -> FloatPlan:
    """Decide for an exported FP32 ModelProto on real training pictures."""
    inferred = onnx.shape_inference.infer_shapes(model)
    nodes = _Nodes(inferred.graph)
    return nodes.decide(measure_outliers(inferred, nodes.candidates(), calibration.frames))


class _Nodes:
    """A graph's nodes by what they are."""

    def __init__(self, graph: Any) -> None:
        entry = {node.name for node in entry_chain(graph)}
        makers = float_tensors(graph)
        # The entry stays in float, or is the pixel itself: each quantizer knows. Shape arithmetic is no float.
        self.nodes = [n for n in graph.node if n.name not in entry and set(n.output) & set(makers)]
        self.values = set(makers) - {name for n in graph.node if n.name in entry for name in n.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.attention = {
            n.name for n in self.nodes if n.op_type == "MatMul" and len(self.values & set(n.input)) == 2
        }
        self.transformer = bool(self.attention) or any(n.op_type == "LayerNormalization" for n in self.nodes)
        self.plain = _convolutional_parts(graph) if self.transformer else {n.name for n in self.nodes}

    def candidates(self) -> list[str]:
        """Tensors whose values decide: those that would be put through 8 bits, and all residual streams."""
        names: dict[str, None] = {}
        for node in self.nodes:
            if node.op_type in PRODUCTS and node.name not in self.attention:
                names |= dict.fromkeys(node.input[:1])
            if node.name in self.plain or (node.op_type == "Add" and len(self.values & set(node.input)) == 2):
                names |= dict.fromkeys([*node.input, *node.output])
        return [name for name in names if name in self.values and not self._is_clipped(name)]

    def _is_clipped(self, name: str) -> bool:
        """Whether an activation function follows, into whose limits quantizers fold the range."""
        readers = self.readers.get(name, [])
        return bool(readers) and all(node.op_type in {"Relu", "Clip"} for node in readers)

    def decide(self, outliers: tuple[Outlier, ...]) -> FloatPlan:
        wide = {outlier.tensor for outlier in outliers}
        reasons: dict[str, str] = {}
        for node in self.nodes:
            if node.name in self.attention:
                reasons[node.name] = "attention"
            elif node.op_type in _NORMALIZATIONS:
                reasons[node.name] = "normalization"
            elif node.op_type not in PRODUCTS and node.name not in self.plain:
                reasons[node.name] = "transformer"
            elif _meets_outlier(node, wide):
                reasons[node.name] = "outlier"
        products = tuple(n.name for n in self.nodes if n.op_type in PRODUCTS and n.name in reasons)
        return FloatPlan(reasons, products, outliers, self.transformer)


def _meets_outlier(node: Any, wide: Set[str]) -> bool:
    """Whether a node reads or makes such a tensor.

    A linear layer may make one: its output need not be quantized. An INT8 convolution of a CPU has an 8-bit output.
    """
    if wide & set(node.input):
        return True
    return node.op_type not in {"Gemm", "MatMul"} and bool(wide & set(node.output))


def _convolutional_parts(graph: Any) -> frozenset[str]:
    """Nodes whose nearest products, before and behind, are all convolutions: such parts are quantized as in CNNs."""
    kinds = {node.name: node.op_type for node in graph.node}
    above, below = nearest_products(graph)
    return frozenset(
        node.name
        for node in graph.node
        if {kinds[name] for name in above[node.output[0]] | below[node.output[0]]} == {"Conv"}
    )


def measure_outliers(model: Any, names: Sequence[str], frames: Frames) -> tuple[Outlier, ...]:
    """Which of the named tensors of a ModelProto have outliers on real pictures, the worst first.

    Args:
        model: exported FP32 graph.
        names: float activations.
        frames: uint8 (N, H, W, 3); the largest value is of all, the percentile the mean over batches of 8.
    """
    makers = {name: node.name for node in model.graph.node for name in node.output}
    largest, typical, batches = np.zeros(len(names)), np.zeros(len(names)), 0
    for values in _activations(model, names, frames):
        found = np.array([_spread(value) for value in values]).reshape(-1, 2)
        largest, typical, batches = np.maximum(largest, found[:, 0]), typical + found[:, 1], batches + 1
    outliers = [
        Outlier(name, makers[name], float(peak), float(total / batches))
        for name, peak, total in zip(names, largest, typical, strict=True)
        if peak > OUTLIER_RATIO * total / max(1, batches) > 0
    ]
    return tuple(sorted(outliers, key=lambda outlier: -outlier.ratio))


def _activations(model: Any, names: Sequence[str], frames: Frames) -> Iterator[list[NDArray[np.float32]]]:
    """Values of the named tensors, batch by batch."""
    ort = import_onnxruntime("cpu")
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    for name in names:
        opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    if not names:
        return
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for start in range(0, len(frames), _BATCH):
        yield session.run(names, {INPUT_NAME: np.array(frames[start : start + _BATCH])})


def _spread(value: NDArray[np.float32]) -> tuple[float, float]:
    """Largest |value|, and the percentile of a sample of those that are not zero (0 where all are)."""
    sizes = np.abs(value).ravel()
    peak = float(sizes.max(initial=0.0))
    sample = sizes[:: max(1, len(sizes) // _SAMPLED)]
    sample = sample[sample > 0]
    return peak, float(np.percentile(sample, HIGH_PERCENTILE)) if len(sample) else 0.0
