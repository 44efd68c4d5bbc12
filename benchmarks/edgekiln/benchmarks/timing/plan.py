"""How long a benchmark times and how often, and when a round of it may stop. How calls are timed is not known here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekiln.benchmarks.timing.measurement import P99_FROM_CALLS, Block, is_narrow

__all__ = ["BenchmarkPlan"]

_LOOK_EVERY_BLOCKS = 4  # even, so that whoever went first went last as often


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """How long and how often; see the recipe's ``[benchmark]``.

    A round ends after ``blocks`` blocks of each contender, or from ``min_blocks`` on as soon as they tell every ratio
    to ``target_width`` and every contender has its share of the calls that a 99th percentile needs.
    ``side_blocks`` are those of the other boundaries, and of one repeated image, per process.
    """

    processes: int = 5
    blocks: int = 60
    block_seconds: float = 0.05
    side_blocks: int = 4
    min_blocks: int = 20
    target_width: float = 0.05

    def count_units(self, contenders: int) -> int:
        """Units of progress: searches, and per round the starts, blocks and other boundaries."""
        return self.units_before(self.processes, contenders)

    def units_before(self, number: int, contenders: int) -> int:
        """Units that are done when round ``number``, counted from 0, begins."""
        return contenders + number * (contenders + self.blocks + self.side_blocks)

    def is_enough(self, blocks: Sequence[Sequence[Block]]) -> bool:
        """Whether a round may stop here; looks at widths and counts only."""
        count = len(blocks[-1])
        if count < self.min_blocks or count % _LOOK_EVERY_BLOCKS:
            return False
        share = math.ceil(P99_FROM_CALLS / self.processes)
        calls = min(sum(len(block.times_ms) for block in own) for own in blocks)
        return calls >= share and is_narrow(blocks, self.target_width)
