"""Raw times and what may be concluded from them. A measurement says itself when it is too noisy to trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "STUDENT_QUANTILES",
    "Block",
    "Boundary",
    "Measurement",
    "Ratio",
    "Validity",
    "assess",
    "compare_speed",
    "interval_width",
    "is_narrow",
    "widen_ratio",
]

Boundary = Literal["engine", "call", "image"]
"""What a call holds: the bare library call; Session.run, copies in and out; encoded picture to label."""
P99_FROM_CALLS = 1000
"""Below this many calls the 99th percentile rests on fewer than ten values and is not reported."""
P999_FROM_CALLS = 10_000
MAX_SELF_INTERVAL = 0.10
MAX_SELF_ERROR = 0.10
"""How far from 1 the ratio of the baseline to itself may be at the outer end of its interval, as a factor less one."""
MIN_REPEATED = 0.90
"""One repeated image may be faster than varying ones by a tenth, as in MLPerf's TEST04: more means a cache."""
_MAX_SPREAD = 0.10
_RESAMPLES = 4000
STUDENT_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Block:
    """Calls timed in one go: milliseconds each, in order, by one process.

    Within one round every contender has one turn (0); the baseline has another (1), to be compared with itself.
    """

    process: int
    index: int
    turn: int
    times_ms: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Measurement:
    """All timed calls of one contender.

    Attributes:
        name: of the contender.
        boundary: what one call holds; ``call`` is Session.run, copies in and out included.
        config: the configuration that was timed, for example threads.
        search: median milliseconds of every configuration that was tried beforehand.
        device: ``cpu`` or ``cuda:0``, as the contender's session said; ``None`` where it did not.
    """

    name: str
    boundary: Boundary
    batch: int
    config: Mapping[str, Any]
    search: Sequence[Mapping[str, Any]]
    blocks: Sequence[Block]
    device: str | None = None

    @property
    def times_ms(self) -> NDArray[np.float64]:
        """Every call, in order of blocks."""
        return np.concatenate([block.times_ms for block in self.blocks])

    @property
    def median_ms(self) -> float:
        """Median over the medians of blocks: one slow block cannot outvote the others by its call count."""
        return float(np.median(np.concatenate(self.block_medians())))

    def percentile_ms(self, q: float) -> float:
        """The ``q``-th percentile of all calls."""
        return float(np.percentile(self.times_ms, q))

    @property
    def p99_ms(self) -> float | None:
        """99th percentile, or ``None`` where there were too few calls."""
        return self.percentile_ms(99) if len(self.times_ms) >= P99_FROM_CALLS else None

    @property
    def p999_ms(self) -> float | None:
        """99.9th percentile, or ``None`` where there were too few calls."""
        return self.percentile_ms(99.9) if len(self.times_ms) >= P999_FROM_CALLS else None

    @property
    def spread(self) -> float:
        """Interquartile range of block medians over their median."""
        low, middle, high = np.percentile(np.concatenate(self.block_medians()), [25, 50, 75])
        return float((high - low) / middle)

    def block_medians(self, turn: int = 0) -> list[NDArray[np.float64]]:
        """One float64 (blocks,) for each process, of one turn; processes may have different numbers of blocks."""
        blocks = [block for block in self.blocks if block.turn == turn]
        processes = sorted({block.process for block in blocks})
        return [
            np.array([np.median(block.times_ms) for block in blocks if block.process == p]) for p in processes
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, raw times included (microsecond resolution)."""
        return {
            "name": self.name,
            "boundary": self.boundary,
            "batch": self.batch,
            "config": dict(self.config),
            "device": self.device,
            "search": [dict(entry) for entry in self.search],
            "calls": len(self.times_ms),
            "p50_ms": self.median_ms,
            "p90_ms": self.percentile_ms(90),
            "p99_ms": self.p99_ms,
            "p99_9_ms": self.p999_ms,
            "calls_per_second": 1000 / float(self.times_ms.mean()),
            "spread": self.spread,
            "blocks": [
                {
                    "process": block.process,
                    "index": block.index,
                    "turn": block.turn,
                    "times_us": np.round(block.times_ms * 1000).astype(int).tolist(),
                }
                for block in self.blocks
            ],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster a contender is than the baseline, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Validity:
    """Whether a run may be believed: an ``invalid`` one gets no ratio, a ``noisy`` one gets it with reasons.

    ``self_ratio`` is the baseline against itself. Where it misses 1 a little, ratios are widened (``widen_ratio``).
    """

    state: Literal["valid", "noisy", "invalid"]
    reasons: tuple[str, ...]
    self_ratio: Ratio


def compare_speed(baseline: Measurement, contender: Measurement, *, seed: int = 0) -> Ratio:
    """Baseline time over contender time: the mean over processes of the trimmed geometric mean over pairs of blocks
    that ran side by side.

    The interval resamples processes first, then blocks within them, the same for both sides: what differs from
    process to process (memory layout, thread placement) is the larger part of the error, and resampling calls
    alone would hide it. Each process counts alike, however many blocks it has. Its distances are stretched for the
    few processes there are (``_stretch_for``).
    """
    return _paired_ratio(baseline.block_medians(), contender.block_medians(), seed)


def widen_ratio(ratio: Ratio, self_ratio: Ratio) -> Ratio:
    """A contender's ratio with the error that the baseline's ratio to itself shows, where that misses 1.

    The two turns of the baseline are the same code: whatever lies between them is an error of the machine that
    resampling blocks does not see, and any other ratio may hold as much of it. So both ends move by the factor
    max(high, 1 / low) of ``self_ratio``. Where that holds 1 and is narrow enough, the ratio stays as it is.
    """
    if not _name_misses(self_ratio, "the baseline"):
        return ratio
    error = _self_error(self_ratio)
    return Ratio(ratio.value, ratio.low / error, ratio.high * error)


def _self_error(own: Ratio) -> float:
    """The factor by which the baseline may differ from itself; 1 is none."""
    return max(own.high, 1 / own.low)


def _name_misses(own: Ratio, name: str) -> list[str]:
    """What is wrong with the baseline's ratio to itself, each in a few words."""
    misses = []
    if own.high - own.low > MAX_SELF_INTERVAL:
        misses.append(f"{name} against itself is known only to {own.low:.2f} .. {own.high:.2f}")
    if not own.low <= 1 <= own.high:
        misses.append(f"{name} differs from itself: {own.low:.3f} .. {own.high:.3f}")
    return misses


def _paired_ratio(
    baseline: Sequence[NDArray[np.float64]], contender: Sequence[NDArray[np.float64]], seed: int
) -> Ratio:
    # Blocks of one index ran side by side, so drift of the machine cancels in their ratio.
    logs = [np.log(ours / theirs) for ours, theirs in zip(baseline, contender, strict=True)]
    resampled = _resample(logs, np.random.default_rng(seed))
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = float(np.mean([_trimmed_mean(row[None])[0] for row in logs]))
    stretch = _stretch_for(len(logs))
    return Ratio(*(float(np.exp(value + stretch * (x - value))) for x in (value, low, high)))


def _stretch_for(processes: int) -> float:
    """By how much the bootstrap's distances are too short with few processes: t(k - 1) / 1.96 * sqrt(k / (k - 1)).

    Resampling k values understates their variance by (k - 1) / k, and takes the normal's tail where Student's is due.
    Without this the 95 % interval over 5 processes covered 85 % in simulation.
    """
    if processes < 2:
        return 1.0
    quantile = STUDENT_QUANTILES[min(processes - 2, len(STUDENT_QUANTILES) - 1)]
    return float(quantile / 1.96 * np.sqrt(processes / (processes - 1)))


def _resample(logs: Sequence[NDArray[np.float64]], generator: np.random.Generator) -> NDArray[np.float64]:
    """float64 (resamples,): the same mean over processes drawn with replacement, and blocks drawn within each."""
    drawn = generator.integers(len(logs), size=(_RESAMPLES, len(logs)))
    means = np.empty(drawn.shape)
    for process, row in enumerate(logs):
        places = drawn == process
        means[places] = _trimmed_mean(row[generator.integers(len(row), size=(int(places.sum()), len(row)))])
    return np.asarray(means.mean(axis=1))


def _trimmed_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each row without its lowest and highest tenth: a stalled block must not decide."""
    cut = rows.shape[1] // 10
    return np.asarray(np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1))


def interval_width(logs: NDArray[np.float64]) -> float:
    """Width of the 95 % interval of the trimmed mean of log ratios, float64 (blocks,), from these blocks alone.

    2 * 1.96 * s_w / ((1 - 2 g) sqrt(n)), s_w the standard deviation after winsorizing a share g at each end (Tukey
    and McLaughlin 1963). Small widths of a log ratio are widths of the ratio, relative to it.
    """
    count, ordered = len(logs), np.sort(logs)
    cut = count // 10
    winsorized = np.clip(logs, ordered[cut], ordered[count - 1 - cut])
    return float(2 * 1.96 * winsorized.std(ddof=1) / ((1 - 2 * cut / count) * np.sqrt(count)))


def is_narrow(measured: Sequence[Sequence[Block]], width: float) -> bool:
    """Whether the blocks of one process tell every ratio to ``width``, the baseline's to itself among them.

    A round may stop when this holds. It looks at widths only, never at which side a ratio lies: a rule that looked
    there would stop on luck. The mean of a nearly symmetric sample does not depend on its spread, so stopping on
    spread leaves the ratios where they are; tests/benchmarks/timing/test_measurement.py simulates it.

    Args:
        measured: by contender, the baseline first, all of one process; two blocks at least.
        width: wanted, relative: 0.03 is three percent.
    """
    first, *others = ([np.log(np.median(b.times_ms)) for b in blocks if b.turn == 0] for blocks in measured)
    again = [np.log(np.median(b.times_ms)) for b in measured[0] if b.turn == 1]
    return all(interval_width(np.subtract(first, other)) <= width for other in (again, *others))


def assess(
    measurements: Sequence[Measurement],
    *,
    steal: float,
    foreign_load: float,
    repeated: Mapping[str, float] | None = None,
) -> Validity:
    """Judge a whole run.

    The baseline takes two turns in every round and is compared with itself like any contender. Where that ratio
    excludes 1, or is known to no better than 10 %, the run is noisy and its other ratios are widened
    (``widen_ratio``). Where it may be 10 % off, the machine cannot support any other ratio: the run is invalid.

    Args:
        measurements: the baseline first.
        steal: share of CPU time that the hypervisor took, 0 to 1.
        foreign_load: mean number of cores that others kept busy before the run.
        repeated: by contender, time of one repeated image over that of varying ones.
    """
    own = _paired_ratio(measurements[0].block_medians(0), measurements[0].block_medians(1), seed=0)
    name = measurements[0].name  # an engine's, where there was no PyTorch to be the baseline
    first = "the baseline" if name == "baseline" else name
    reasons = _name_misses(own, first)
    if reasons and _self_error(own) > 1 + MAX_SELF_ERROR:
        return Validity("invalid", tuple(reasons), own)
    reasons += [
        f"{m.name} varies by {m.spread:.0%} between blocks" for m in measurements if m.spread > _MAX_SPREAD
    ]
    reasons += [
        f"{name} is {1 - ratio:.0%} faster on one repeated image than on varying ones"
        for name, ratio in (repeated or {}).items()
        if ratio < MIN_REPEATED
    ]
    if steal > 0.02:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPU time")
    if foreign_load > 0.5:
        reasons.append(f"other processes kept {foreign_load:.1f} cores busy")
    return Validity("noisy" if reasons else "valid", tuple(reasons), own)
