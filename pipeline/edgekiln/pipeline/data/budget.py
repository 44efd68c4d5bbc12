"""The loss that a new recipe's gate allows: what an INT8 engine with usual flips can prove with those pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekiln.benchmarks.judging.planning import chance_to_pass, most_broken

__all__ = ["GOOD_DROP", "LEAST_CHANCE", "MOST_DROP", "Budget", "propose_budget"]

GOOD_DROP = 0.01
"""The recipe's default: one point of top-1."""
MOST_DROP = 0.02
"""More is a person's decision."""
LEAST_CHANCE = 0.8
"""The probability of passing that is asked for: the power that studies are usually planned with."""

_DROPS = (0.005, GOOD_DROP, MOST_DROP)


@dataclass(frozen=True, slots=True)
class Budget:
    """A proposal for ``[gate]``.

    Attributes:
        max_drop: share of top-1.
        evidence: what judges; val too where test alone is too small.
        test, val: pictures of these splits.
        chance: the probability that an INT8 engine with usual flips passes.
        may_break: pictures that may change for the worse, with none for the better; ``None`` where one that
            changes no answer would not pass.
    """

    max_drop: float
    evidence: Literal["test", "test+val"]
    test: int
    val: int
    chance: float
    may_break: int | None

    @property
    def images(self) -> int:
        """Pictures that judge."""
        return self.test + (self.val if self.evidence == "test+val" else 0)

    @property
    def is_provable(self) -> bool:
        """Whether a usual engine passes as surely as asked for."""
        return self.chance >= LEAST_CHANCE

    def describe(self) -> str:
        """What it means in pictures."""
        judge = f"{self.test} test" + (f" and {self.val} val" if self.evidence == "test+val" else "")
        if self.may_break is None:
            return f"{judge} pictures are too few: not even an engine that changes no answer would pass"
        return (
            f"of {judge} pictures up to {self.may_break} may change for the worse, with none for the better"
        )


def propose_budget(test: int, val: int) -> Budget:
    """The smallest customary drop that is provable; on test alone if that can be, else on test and val.

    Where it cannot be either, the largest that is proposed without being asked.
    """
    for evidence, images in (("test", test), ("test+val", test + val)):
        for drop in _DROPS:
            if (chance := chance_to_pass(images, drop)) >= LEAST_CHANCE:
                return _propose(drop, evidence, test, val, chance)
    return _propose(MOST_DROP, "test+val", test, val, chance_to_pass(test + val, MOST_DROP))


def _propose(drop: float, evidence: str, test: int, val: int, chance: float) -> Budget:
    both = evidence == "test+val"
    return Budget(
        drop,
        "test+val" if both else "test",
        test,
        val,
        chance,
        most_broken(test + val if both else test, drop),
    )
