"""Does an exported graph compute what its source computes? Compared on real images, never on noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekiln.runtime.errors import ParityError
from edgekiln.runtime.spec import Logits

__all__ = ["Compared", "Parity", "check_parity"]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two sets of logits lie apart.

    Attributes:
        images: how many were compared.
        max_difference: largest |difference| of a logit.
        logit_range: largest minus smallest reference logit.
        worst_image: where that largest difference is.
    """

    images: int
    max_difference: float
    logit_range: float
    worst_image: str

    @property
    def relative(self) -> float:
        """``max_difference`` as a share of ``logit_range``."""
        return self.max_difference / self.logit_range if self.logit_range else float(self.max_difference > 0)


@dataclass(frozen=True, slots=True)
class Compared:
    """What an error calls the two sides, and what it advises."""

    graph: str = "The exported graph"
    source: str = "PyTorch"
    hint: str = "A layer was exported wrongly; try another export.opset or PyTorch version."


def check_parity(
    reference: Logits,
    logits: Logits,
    keys: Sequence[str],
    tolerance: float,
    compared: Compared = Compared(),  # frozen
) -> Parity:
    """Compare logits (N, C) of the same images.

    The same top-1 is wanted wherever the reference's two best logits lie further apart than the tolerance; closer
    ones may legitimately swap.

    Args:
        reference: logits of the source.
        logits: logits of the exported graph.
        keys: names of the N images.
        tolerance: largest |difference| as a share of the logit range.
        compared: the words of an error.

    Raises:
        ParityError: too large a difference, or another top-1; names the worst image.
    """
    difference = np.abs(reference.astype(np.float64) - logits).max(axis=1)
    worst = int(np.nanargmax(np.where(np.isfinite(difference), difference, np.inf)))
    parity = Parity(len(keys), float(difference[worst]), float(np.ptp(reference)), keys[worst])
    if not parity.relative <= tolerance:
        raise ParityError(
            f"{compared.graph} differs from {compared.source} by {parity.max_difference:.2e} in a logit, "
            f"{parity.relative:.1e} of their range; allowed is {tolerance:.1e}. Worst image: {keys[worst]}.",
            hint=compared.hint,
        )
    best_two = np.sort(reference, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > tolerance * parity.logit_range
    flipped = np.flatnonzero(clear & (reference.argmax(axis=1) != logits.argmax(axis=1)))
    if flipped.size:
        raise ParityError(
            f"{compared.graph} gives another class than {compared.source} for {flipped.size} of {len(keys)} images; "
            f"the first is {keys[flipped[0]]}.",
            hint=compared.hint,
        )
    return parity
