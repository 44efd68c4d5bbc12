"""Which blocks cannot bear INT8? The closed loop between quantizer, engine and the task's own metric.

Knows no quantizer, engine or statistics: it is given a function that makes a graph with some products left in float,
one that answers with it, and one that says whether the answers hold the budget. Judged on val, never on test.

Cost, in evaluations (one graph made and run over val): 1 for the plain graph, B to rank B blocks (B is at most 48, see
``blocks``), about 2 log2 K to find how many of the ranked blocks must stay in float (every number up to half of the
MACs, at most B, before none is declared to do), K to give blocks back, and one per product of the kept blocks to give
single products back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.precision.blocks import Block
from edgekiln.runtime.errors import EngineError, NonFiniteError, PrecisionError
from edgekiln.runtime.spec import Logits

__all__ = [
    "MIN_QUANTIZED_SHARE",
    "Candidate",
    "SearchProblem",
    "SearchResult",
    "measure_divergence",
    "search_precision",
]

MIN_QUANTIZED_SHARE = 0.5
"""Of the MACs. With less in INT8 the variant would be INT8 in name: it is declared impossible instead."""

Verdict = Literal["not-needed", "found", "impossible", "stopped"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one choice of products in float answers, next to the FP32 graph.

    Attributes:
        broken, mended: images right before and wrong now, and the other way round.
        images: all of them.
        divergence: mean Kullback-Leibler divergence of the answers from the FP32 graph's, nats.
        failure: why the graph could not be made or run; such a candidate is never accepted.
    """

    broken: int
    mended: int
    images: int
    divergence: float
    failure: str | None = None

    @property
    def drop(self) -> float:
        """Top-1 lost, as a share."""
        return (self.broken - self.mended) / self.images


def _do_not_tell(done: int, total: int, note: str) -> None:
    pass


def _do_not_keep(known: Mapping[str, Candidate]) -> None:
    pass


@dataclass(frozen=True)
class SearchProblem:
    """What is searched.

    Attributes:
        blocks: everything that the plain graph quantizes, in the graph's order.
        macs: of all products of the network, by node name.
        make: a graph's bytes, with these products left in float.
        evaluate: its logits float32 (N, C) on val.
        baseline: the FP32 graph's logits on val.
        labels: of val, int64 (N,).
        accepts: whether (broken, mended, images) hold the budget.
        minimum_share: of the MACs, that must stay quantized.
        seconds: after which the search stops.
    """

    blocks: Sequence[Block]
    macs: Mapping[str, int]
    make: Callable[[Collection[str]], bytes]
    evaluate: Callable[[bytes], Logits]
    baseline: Logits
    labels: NDArray[np.int64]
    accepts: Callable[[int, int, int], bool]
    minimum_share: float = MIN_QUANTIZED_SHARE
    seconds: float = 600.0

    def share_quantized(self, keep_float: Collection[str]) -> float:
        """Share of the network's MACs in INT8."""
        products = [product for block in self.blocks for product in block.products]
        total = sum(self.macs.values())
        if not total:
            return 1 - len(set(keep_float)) / max(1, len(products))
        return sum(self.macs.get(name, 0) for name in products if name not in keep_float) / total


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How the search ended.

    Attributes:
        verdict: ``not-needed`` where the plain graph holds the budget; ``found``; ``impossible`` where it does
            not with half of the MACs in INT8; ``stopped`` where time ran out before either was known.
        kept: what stays in float; empty but for ``found``.
        chosen: the curve's entry of what stays, its ``drop`` and ``share_quantized`` among it: the plain graph's where
            none is needed; ``None`` where nothing was chosen. Names and counts do not tell it: with single products
            given back, several sets have the same.
        fewest: whether everything that could be given back was: not where time ran out first.
        curve: for every set that was tried, the share of MACs in INT8, the drop and the blocks in float; the most
            quantized first.
        ranking: what quantizing each block alone costs, the worst first.
        evaluations: candidates judged, those of an interrupted attempt included.
        blocks: how many there were.
    """

    verdict: Verdict
    kept: tuple[Block, ...]
    chosen: dict[str, Any] | None
    fewest: bool
    curve: tuple[dict[str, Any], ...]
    ranking: tuple[dict[str, Any], ...]
    evaluations: int
    blocks: int

    @property
    def keep_float(self) -> tuple[str, ...]:
        """Node names of the products that stay in float."""
        return tuple(product for block in self.kept for product in block.products)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "kept": [{"name": b.name, "products": list(b.products)} for b in self.kept],
            "curve": list(self.curve),
            "ranking": list(self.ranking),
        }


def search_precision(
    problem: SearchProblem,
    *,
    known: dict[str, Candidate] | None = None,
    remember: Callable[[Mapping[str, Candidate]], None] = _do_not_keep,
    advance: Callable[[int, int, str], None] = _do_not_tell,
) -> SearchResult:
    """Find the fewest blocks that must stay in float for the budget to hold.

    1. Quantize each block *alone* and rank by what breaks: right answers lost on val, then divergence from the FP32
       answers, since a small val split has many ties. Alone, because leaving one block out of an all-INT8 network
       shows nothing where two hurt, and a tensor between two products is quantized as long as either of them is.
    2. Keep the worst k in float, k = 1, 2, 4, ... until the budget holds, then halve between the last two. Where none
       of these holds, nor the most that leaves half of the MACs in INT8, every k in between is tried, the middle of
       the largest gap first: more in float need not be better, since quantization errors may cancel, a block in float
       moves where its neighbours are rounded, and an interval on a small val flips with single images. ``impossible``
       then means that no k holds.
    3. Give back, one by one, whole blocks (the least costly first), then single products, while the budget holds.

    Deterministic but for ``seconds``.

    Args:
        problem: what is searched.
        known: candidates of an earlier, interrupted attempt at the same problem; filled further.
        remember: called with all of them after each new one.
        advance: told how many evaluations are done, of how many at most.
    """
    search = _Search(problem, {} if known is None else known, remember, advance)
    try:
        return search.run()
    except _OutOfTime:
        return search.conclude("found" if search.best is not None else "stopped", fewest=False)


class _OutOfTime(Exception):
    """No error: it ends the search."""


@dataclass
class _Search:
    problem: SearchProblem
    known: dict[str, Candidate]
    remember: Callable[[Mapping[str, Candidate]], None]
    advance: Callable[[int, int, str], None]
    curve: dict[tuple[Block, ...], Candidate] = field(default_factory=dict)
    ranked: list[tuple[Block, Candidate]] = field(default_factory=list)
    best: tuple[Block, ...] | None = None
    judged: set[str] = field(default_factory=set)
    expected: int = 1

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def run(self) -> SearchResult:
        blocks = self.problem.blocks
        if self.holds((), "plain INT8"):
            return self.conclude("not-needed")
        self.expected = 1 + len(blocks) + 2 * len(blocks).bit_length()
        self.rank()
        self.find_prefix()
        if self.best is None:
            return self.conclude("impossible")
        self.expected = len(self.judged) + len(self.best)
        self.give_back_blocks()
        self.give_back_products()
        return self.conclude("found")

    def rank(self) -> None:
        every = {product for block in self.problem.blocks for product in block.products}
        costs = [
            (block, self.judge(every - set(block.products), f"{block.name} alone"))
            for block in self.problem.blocks
        ]
        self.ranked = sorted(costs, key=lambda cost: _severity(cost[1]), reverse=True)

    def find_prefix(self) -> None:
        """Of the ranked blocks, the fewest worst ones that hold the budget; none where the share falls too low."""
        worst = [block for block, _ in self.ranked]
        most = sum(
            self.problem.share_quantized(_products(worst[:k])) >= self.problem.minimum_share
            for k in range(1, len(worst) + 1)
        )
        failing, k = [0], 1
        while (k := min(k, most)) > failing[-1]:
            if self.holds(tuple(worst[:k]), f"{k} in float"):
                self._bisect(worst, failing[-1], k)
                return
            failing.append(k)
            k *= 2
        self._fill_gaps(worst, failing)
        if self.best is None and most + 1 < len(
            worst
        ):  # evidence only: how good it would be with less in INT8 than is worth the name
            self.holds(tuple(worst[: most + 1]), f"{most + 1} in float")

    def _fill_gaps(self, worst: Sequence[Block], failing: Sequence[int]) -> None:
        """Try the numbers between those that failed until one holds; of equal gaps that with more in float."""
        tried = sorted(failing)
        self.expected = len(self.judged) + tried[-1] + 1 - len(tried) + 1
        while len(tried) < tried[-1] + 1:
            _, above = max((tried[i] - tried[i - 1], i) for i in range(1, len(tried)))
            below = tried[above - 1]
            k = (below + tried[above]) // 2
            if self.holds(tuple(worst[:k]), f"{k} in float"):
                self._bisect(worst, below, k)
                return
            tried.insert(above, k)

    def _bisect(self, worst: Sequence[Block], failing: int, holding: int) -> None:
        self.best = tuple(worst[:holding])
        while holding - failing > 1:
            middle = (failing + holding) // 2
            if self.holds(tuple(worst[:middle]), f"{middle} in float"):
                holding, self.best = middle, tuple(worst[:middle])
            else:
                failing = middle

    def give_back_blocks(self) -> None:
        assert self.best is not None
        for block in reversed(self.best):  # the least costly first
            fewer = tuple(b for b in self.best if b != block)
            if fewer and self.holds(fewer, f"giving back {block.name}"):
                self.best = fewer

    def give_back_products(self) -> None:
        assert self.best is not None
        for product in [p for block in self.best if len(block.products) > 1 for p in block.products]:
            fewer = tuple(_without(block, product) for block in self.best)
            fewer = tuple(block for block in fewer if block.products)
            if fewer and self.holds(fewer, f"giving back {product}"):
                self.best = fewer

    def holds(self, kept: tuple[Block, ...], note: str) -> bool:
        """Whether the budget holds with these in float; a point of the curve."""
        candidate = self.curve[kept] = self.judge(_products(kept), note)
        return candidate.failure is None and self.problem.accepts(
            candidate.broken, candidate.mended, candidate.images
        )

    def judge(self, keep_float: Collection[str], note: str) -> Candidate:
        key = hashlib.sha256("\n".join(sorted(keep_float)).encode()).hexdigest()[:32]
        self.advance(len(self.judged), max(self.expected, len(self.judged) + 1), note)
        if key not in self.known:
            # The plain graph is always judged: without it there is nothing to tell.
            if self.judged and time.monotonic() - self.started > self.problem.seconds:
                raise _OutOfTime
            self.known[key] = _judge(self.problem, keep_float)
            self.remember(self.known)
        self.judged.add(key)
        return self.known[key]

    def describe(self, kept: tuple[Block, ...]) -> dict[str, Any]:
        """A set that was tried, as a point of the curve."""
        candidate = self.curve[kept]
        return {
            "share_quantized": self.problem.share_quantized(_products(kept)),
            "drop": None if candidate.failure else candidate.drop,
            "failure": candidate.failure,
            "kept": [block.name for block in kept],
            "products": len(_products(kept)),
        }

    def conclude(self, verdict: Verdict, *, fewest: bool = True) -> SearchResult:
        points = [self.describe(kept) for kept in self.curve]
        kept = () if verdict == "not-needed" else self.best
        return SearchResult(
            verdict=verdict,
            kept=kept or (),
            chosen=None if kept is None else self.describe(kept),
            fewest=fewest,
            curve=tuple(sorted(points, key=lambda p: (-p["share_quantized"], p["products"]))),
            ranking=tuple(
                {"name": b.name, "drop": None if c.failure else c.drop, "divergence": c.divergence}
                for b, c in self.ranked
            ),
            evaluations=len(self.judged),
            blocks=len(self.problem.blocks),
        )


def _products(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(product for block in blocks for product in block.products)


def _without(block: Block, product: str) -> Block:
    return Block(block.name, tuple(p for p in block.products if p != product))


def _severity(candidate: Candidate) -> tuple[bool, int, float]:
    return candidate.failure is not None, candidate.broken - candidate.mended, candidate.divergence


def _judge(problem: SearchProblem, keep_float: Collection[str]) -> Candidate:
    images = len(problem.labels)
    try:
        logits = problem.evaluate(problem.make(tuple(sorted(keep_float))))
    except (PrecisionError, EngineError, NonFiniteError) as error:
        return Candidate(images, 0, images, 0.0, str(error))
    if not np.isfinite(logits).all():
        return Candidate(images, 0, images, 0.0, "NaN or infinity among the answers")
    was_right = problem.baseline.argmax(axis=1) == problem.labels
    is_right = logits.argmax(axis=1) == problem.labels
    return Candidate(
        broken=int((was_right & ~is_right).sum()),
        mended=int((~was_right & is_right).sum()),
        images=images,
        divergence=float(measure_divergence(problem.baseline, logits).mean()),
    )


def measure_divergence(baseline: Logits, logits: Logits) -> NDArray[np.float64]:
    """KL(P || Q) = sum p (log p - log q) of each image, P the baseline's softmax, Q the candidate's; nats, (N,)."""
    log_p, log_q = _log_softmax(baseline), _log_softmax(logits)
    divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores
