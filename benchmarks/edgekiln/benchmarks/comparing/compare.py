"""Compares two bundles, runs or reports: did any engine become worse? The gate of a team that ships every week.

Accuracy is paired image by image, matched by the sha256 of the pictures; of reports alone, which hold no single
answers, it is compared unpaired, with a wider interval, and only where both were judged on the same images. Speed is
compared through each run's own baseline, since two runs were never interleaved: the ratio of two speed-ups, with the
interval that both imply. What cannot be compared is refused with the reason; a figure without an interval never
decides. An engine that was judged before and is gone, broken or no longer judged became worse: nothing vanishes
unseen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekiln.benchmarks.comparing.comparable import (
    Answers,
    Side,
    check_classes,
    check_finite,
    read_side,
    tell_contracts,
)
from edgekiln.benchmarks.judging.accuracy import pair_answers
from edgekiln.benchmarks.judging.gate import newcombe_interval, tango_interval
from edgekiln.benchmarks.report.timings import find_reference
from edgekiln.runtime.bundles.judged_with import describe_kind
from edgekiln.runtime.errors import UsageError

__all__ = ["Change", "Comparison", "compare_bundles"]

Figure = Literal["top1", "speed", "verdict"]
Verdict = Literal["better", "same", "worse", "undecided", "not compared"]
_SMALL_DROP = 0.01  # an interval that ends below this, or below what may be lost, is called ``same``


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one engine, before and after.

    Attributes:
        engine: name of the variant, or ``baseline`` for the PyTorch model.
        figure: ``top1`` (a share; positive change is better), ``speed`` (a ratio; above 1 is faster) or
            ``verdict``, which stands here only where it became worse, and has no numbers.
        before, after: the figure on each side; ``None`` where it is not there.
        change, low, high: after against before, with its interval; ``None`` where it cannot be compared.
        reason: why not, or what decided.
    """

    engine: str
    figure: Figure
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All changes, what stands on one side only, and what a reader should know of the whole."""

    changes: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Figures that became worse, with an interval that says so, and engines that were lost."""
        return tuple(change for change in self.changes if change.verdict == "worse")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "changes": [asdict(change) for change in self.changes],
            "added": list(self.added),
            "removed": list(self.removed),
            "notes": list(self.notes),
            "regressions": len(self.regressions),
        }


@dataclass(frozen=True, slots=True)
class _Limits:
    confidence: float
    max_drop: float
    max_slowdown: float


def compare_bundles(
    before: Path,
    after: Path,
    *,
    confidence: float = 0.95,
    max_drop: float = 0.0,
    max_slowdown: float = 0.05,
    other_contract: bool = False,
) -> Comparison:
    """Compare every engine that either side has, by name, and the PyTorch models.

    Args:
        before, after: bundles, run folders or report.json files.
        confidence: of the intervals of accuracy, two-sided; those of speed have 95 %, as the benchmark gave them.
        max_drop: share of top-1 that may be lost; an engine is *worse* when its whole interval lies beyond it.
        max_slowdown: share of speed that may be lost, likewise.
        other_contract: compare answers although the sides prepare pictures otherwise; speed is then left out.

    Raises:
        UntrustedError: a side is damaged or of a newer schema.
        UsageError: the two do unlike work: other classes, another contract, other test images, or for the most part.
        NonFiniteError: NaN or infinity among stored answers.
    """
    old, new, limits = read_side(before), read_side(after), _Limits(confidence, max_drop, max_slowdown)
    _check_contracts(old, new, other_contract)
    answers = _match(old, new)
    names = ["baseline", *(name for name in old.names if name in new.names)]
    changes = [_compare_accuracy(name, old, new, answers, limits) for name in names]
    changes += [_compare_speed(name, old, new, limits) for name in names[1:]]
    told = {change.engine for change in changes if change.figure == "top1" and change.verdict == "worse"}
    changes += [change for name in old.names if name not in told for change in _find_loss(name, old, new)]
    return Comparison(
        tuple(changes),
        added=tuple(sorted({*new.names} - {*old.names})),
        removed=tuple(sorted({*old.names} - {*new.names})),
        notes=(*_note(old, new, answers), *_note_kinds(old, new), *_note_evidence(old, new)),
    )


# --------------------------------------------------------------------------------------------------------------
# Is it like work?


def _check_contracts(old: Side, new: Side, other_contract: bool) -> None:
    check_classes(old, new)
    told = tell_contracts(old, new)
    if told and not other_contract:
        raise UsageError(
            f"These do unlike work: their contracts prepare pictures otherwise ({told}).",
            hint="--other-contract compares their answers all the same, and leaves out speed.",
        )


def _match(old: Side, new: Side) -> tuple[Answers, Answers] | None:
    """The answers for the pictures that both were judged on, in one order; ``None`` where a side has no answers."""
    if old.answers is None or new.answers is None:
        _check_same_split(old, new)
        return None
    places = {digest: i for i, digest in enumerate(new.answers.digests)}
    pairs = [(i, places[digest]) for i, digest in enumerate(old.answers.digests) if digest in places]
    if not pairs:
        raise UsageError(
            f"These were judged on different pictures: none of {len(old.answers.digests)} is among the other's "
            f"{len(new.answers.digests)}.",
            hint="Judge both on the same test split.",
            path=new.path,
        )
    first, second = zip(*pairs, strict=True)
    _check_overlap(len(pairs), old.answers, new.answers, new.path)
    return old.answers.take(first), new.answers.take(second)


def _check_overlap(shared: int, old: Answers, new: Answers, path: Path) -> None:
    """A few shared pictures say nothing of what the rest of either split would have shown."""
    sizes = len(old.digests), len(new.digests)
    if 2 * shared < max(sizes):
        raise UsageError(
            f"These were judged on different pictures for the most part: {shared} are in both, of {sizes[0]} in the "
            f"first and {sizes[1]} in the second; at least half of each must be.",
            hint="Judge both on the same test split.",
            path=path,
        )


def _check_same_split(old: Side, new: Side) -> None:
    for side in (old, new):
        if side.test_digest is None:
            raise UsageError(
                f"{side.path} does not say which images it was judged on: an earlier edgekiln wrote it.",
                hint="Compare the bundles, which keep their answers.",
                path=side.path,
            )
    if old.test_digest != new.test_digest:
        raise UsageError(
            "These reports were judged on different test images, or on other labels of them.",
            hint="Judge both on the same test split, or compare the bundles, which keep single answers.",
        )


def _note(old: Side, new: Side, answers: tuple[Answers, Answers] | None) -> list[str]:
    if answers is None:
        return [
            "A report alone holds no single answers: accuracy is compared unpaired, with Newcombe's interval, which "
            "is wider. Compare bundles for paired intervals."
        ]
    assert old.answers is not None
    assert new.answers is not None
    shared, first, second = len(answers[0].labels), len(old.answers.labels), len(new.answers.labels)
    if shared == first == second:
        return []
    return [
        f"{shared} test pictures are in both; {first - shared} in the first only, {second - shared} in the second."
    ]


def _note_kinds(old: Side, new: Side) -> list[str]:
    """A sentence for each pair of kinds of machines that differ, with the engines that were judged on them."""
    apart: dict[tuple[str, str], list[str]] = {}
    for name in (name for name in old.names if name in new.names):
        before, after = old.standings[name].kind, new.standings[name].kind
        if before is not None and after is not None and before != after:
            apart.setdefault((describe_kind(before), describe_kind(after)), []).append(name)
    return [
        f"{', '.join(names)}: judged on another kind of machine: {before} before, {after} after."
        for (before, after), names in apart.items()
    ]


def _note_evidence(old: Side, new: Side) -> list[str]:
    """A sentence for each side whose verdicts rest on val too: what is compared here does not."""
    judged = {
        side.path: [name for name in side.names if side.row(name).get("drop_by_split")] for side in (old, new)
    }
    return [
        f"{path}: the verdicts of {', '.join(names)} rest on test and val; here answers to test alone are compared."
        for path, names in judged.items()
        if names
    ]


# --------------------------------------------------------------------------------------------------------------
# Accuracy


def _compare_accuracy(
    name: str, old: Side, new: Side, answers: tuple[Answers, Answers] | None, limits: _Limits
) -> Change:
    if answers is None:
        return _compare_unpaired(name, old, new, limits)
    first, second = answers
    missing = [side.path for side, a in ((old, first), (new, second)) if name not in a.logits]
    if missing:
        return _not_compared(name, "top1", f"it was not run in {' and '.join(map(str, missing))}")
    if not np.array_equal(first.labels, second.labels):
        return _not_compared(name, "top1", "the same pictures have other labels in the two bundles")
    for side, side_answers in ((old, first), (new, second)):
        check_finite(name, side.path, side_answers)
    counts = pair_answers(first.logits[name], second.logits[name], first.labels)
    interval = tango_interval(counts.broken, counts.mended, counts.images, limits.confidence)
    seen = f"{counts.broken} broken, {counts.mended} mended of {counts.images} pictures"
    before, after = (float((a.logits[name].argmax(axis=1) == a.labels).mean()) for a in answers)
    return _judge_drop(name, (before, after), interval, limits, seen)


def _compare_unpaired(name: str, old: Side, new: Side, limits: _Limits) -> Change:
    first, second = (side.row(name).get("accuracy") for side in (old, new))
    if not first or not second:
        missing = [str(side.path) for side, a in ((old, first), (new, second)) if not a]
        return _not_compared(name, "top1", f"it was not judged in {' and '.join(missing)}")
    images = first["images"]
    if images != second["images"]:
        return _not_compared(name, "top1", "it was judged on other numbers of images")
    right = [round(accuracy["top1"] * images) for accuracy in (first, second)]
    interval = newcombe_interval(right[0], right[1], images, limits.confidence)
    seen = f"{right[0]} and {right[1]} right of {images}, unpaired"
    return _judge_drop(name, (first["top1"], second["top1"]), interval, limits, seen)


def _judge_drop(
    name: str, shares: tuple[float, float], interval: tuple[float, float], limits: _Limits, seen: str
) -> Change:
    (before, after), (low, high) = shares, interval
    if low > limits.max_drop:
        verdict: Verdict = "worse"
    elif high < 0:
        verdict = "better"
    else:
        verdict = "same" if high <= max(limits.max_drop, _SMALL_DROP) else "undecided"
    return Change(name, "top1", before, after, after - before, -high, -low, verdict, seen)


def _not_compared(name: str, figure: Figure, reason: str) -> Change:
    return Change(name, figure, None, None, None, None, None, "not compared", reason)


# --------------------------------------------------------------------------------------------------------------
# Engines that were lost


def _find_loss(name: str, old: Side, new: Side) -> list[Change]:
    """What an engine that was judged before lost: itself, its judgement or its pass; empty where nothing."""
    before, after = old.standings[name], new.standings.get(name)
    if not before.judged or before.verdict == "fail":  # what had failed is no loss
        return []
    if after is None:
        reason = f"{before.verdict} before, and not in {new.path}"
    elif not after.judged or (before.verdict, after.verdict) == ("pass", "fail"):
        reason = f"{before.verdict} before, {after.verdict} now: {after.reason}"
    else:
        return []
    return [Change(name, "verdict", None, None, None, None, None, "worse", reason)]


# --------------------------------------------------------------------------------------------------------------
# Speed


def _compare_speed(name: str, old: Side, new: Side, limits: _Limits) -> Change:
    reason = _why_unlike(name, old, new)
    if reason is not None:
        return _not_compared(name, "speed", reason)
    before, after = old.row(name)["speedup"], new.row(name)["speedup"]
    ratio = after["value"] / before["value"]
    # Both intervals are roughly symmetric on the log scale; independent errors add in squares (MOVER, Zou & Donner
    # 2008, on logarithms).
    down = math.hypot(math.log(after["value"] / after["low"]), math.log(before["high"] / before["value"]))
    up = math.hypot(math.log(after["high"] / after["value"]), math.log(before["value"] / before["low"]))
    low, high = ratio * math.exp(-down), ratio * math.exp(up)
    if high < 1 - limits.max_slowdown:
        verdict: Verdict = "worse"
    elif low > 1:
        verdict = "better"
    else:
        verdict = "same" if low > 1 - limits.max_slowdown else "undecided"
    reference = find_reference(new.report)
    seen = f"speed-up over each run's own {'PyTorch baseline' if reference is None else reference}"
    return Change(name, "speed", before["value"], after["value"], ratio, low, high, verdict, seen)


def _why_unlike(name: str, old: Side, new: Side) -> str | None:
    """Why two speed-ups may not be compared, or ``None``."""
    for side in (old, new):
        if not side.row(name).get("speedup"):
            return _why_no_speed(side)
    for what, read in _LIKE.items():
        first, second = (read(side, name) for side in (old, new))
        if first != second:
            return f"{what}: {first} and {second}"
    return None


def _why_no_speed(side: Side) -> str:
    validity = (side.report.get("benchmark") or {}).get("validity") or {}
    if validity.get("state") == "invalid":
        return f"the benchmark of {side.path} is invalid: {'; '.join(validity['reasons'])}"
    return f"{side.path} has no valid speed-up of it"


def _machine(part: str) -> Any:
    return lambda side, name: (side.report.get("machine") or {}).get(part)


def _torch_version(side: Side, name: str) -> Any:
    return ((side.report.get("machine") or {}).get("versions") or {}).get("torch")


def _baseline(part: str) -> Any:
    return lambda side, name: (side.row("baseline").get("latency") or {}).get(part)


def _latency(part: str) -> Any:
    return lambda side, name: (side.row(name).get("latency") or {}).get(part)


_LIKE: Mapping[str, Any] = {
    "they were timed on different machines (cpu)": _machine("cpu"),
    "they were timed on different machines (cores)": _machine("cores"),
    "they were timed on different machines (gpus)": _machine("gpus"),
    "their speed-ups are over different engines": lambda side, name: find_reference(side.report) or "PyTorch",
    "they were timed with other batch sizes": _latency("batch"),
    "they were timed at other boundaries": _latency("boundary"),
    "their contracts differ": lambda side, name: {k: v for k, v in side.contract.items() if k != "classes"},
    "their PyTorch baselines differ": lambda side, name: (
        (side.report.get("recipe") or {}).get("backbone") or {}
    ).get("model"),
    # A speed-up moves when its baseline does: a faster PyTorch is no slower engine.
    "their PyTorch baselines ran in different versions of torch": _torch_version,
    "their PyTorch baselines ran on different devices": _baseline("device"),
}
"""What must be equal for two speeds to be compared, and how each side tells it."""
