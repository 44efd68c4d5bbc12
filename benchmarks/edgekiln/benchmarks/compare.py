"""Compares two bundles: did any engine become worse? The gate of a team that ships a new model every week.

Accuracy is paired image by image, matched by the sha256 of the pictures. Speed is compared through each run's own
baseline, since two runs were never interleaved: the ratio of two speed-ups, with the interval that both imply. What
cannot be compared is refused with the reason; a figure without an interval never decides.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from edgekiln.benchmarks.accuracy import pair_answers
from edgekiln.benchmarks.gate import tango_interval
from edgekiln.runtime.bundle import Bundle, open_bundle
from edgekiln.runtime.errors import BundleError, UsageError

__all__ = ["Change", "Comparison", "compare_bundles"]

Verdict = Literal["better", "same", "worse", "undecided", "not compared"]
_REPORT_NAME = "report.json"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one engine, before and after.

    Attributes:
        engine: name of the variant, or ``baseline`` for the PyTorch model.
        figure: ``top1`` (a share; positive change is better) or ``speed`` (a ratio; above 1 is faster).
        before, after: the figure in each bundle; ``None`` where it is not there.
        change, low, high: after against before, with its interval; ``None`` where it cannot be compared.
        reason: why not, or what decided.
    """

    engine: str
    figure: Literal["top1", "speed"]
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All changes, and what stands in one bundle only."""

    changes: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Figures that became worse, with an interval that says so."""
        return tuple(change for change in self.changes if change.verdict == "worse")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "changes": [asdict(change) for change in self.changes],
            "added": list(self.added),
            "removed": list(self.removed),
            "regressions": len(self.regressions),
        }


@dataclass(frozen=True, slots=True)
class _Side:
    """One bundle as far as it is compared."""

    bundle: Bundle
    report: Mapping[str, Any]
    digests: tuple[str, ...]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    logits: Mapping[str, Any]


def compare_bundles(
    before: Path, after: Path, *, confidence: float = 0.95, max_drop: float = 0.0, max_slowdown: float = 0.05
) -> Comparison:
    """Compare every engine that both bundles have, by name, and the PyTorch models.

    Args:
        before, after: folders of bundles.
        confidence: of every interval, two-sided.
        max_drop: share of top-1 that may be lost; an engine is *worse* when its whole interval lies beyond it.
        max_slowdown: share of speed that may be lost, likewise.

    Raises:
        BundleError: a bundle is damaged or of a newer schema.
        UsageError: the two do unlike work: other classes, or not one picture in common.
    """
    old, new = _read(before), _read(after)
    shared = _match(old, new)
    names = ["baseline", *(v.name for v in old.bundle.variants if _names(new) & {v.name})]
    changes = [_compare_accuracy(name, old, new, shared, confidence, max_drop) for name in names]
    changes += [_compare_speed(name, old, new, max_slowdown) for name in names[1:]]
    return Comparison(
        tuple(changes),
        added=tuple(sorted(_names(new) - _names(old))),
        removed=tuple(sorted(_names(old) - _names(new))),
    )


def _names(side: _Side) -> set[str]:
    return {variant.name for variant in side.bundle.variants}


def _read(path: Path) -> _Side:
    bundle = open_bundle(path)
    try:
        with np.load(io.BytesIO(bundle.read(str(bundle.manifest["logits"]))), allow_pickle=False) as arrays:
            logits = {
                name.removeprefix("logits."): arrays[name]
                for name in arrays.files
                if name.startswith("logits.")
            }
            digests, labels = tuple(map(str, arrays["image_sha256"])), arrays["labels"].astype(np.int64)
        report = json.loads(bundle.read(_REPORT_NAME)) if _REPORT_NAME in bundle.files else {}
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise BundleError(f"The answers in {path} cannot be read: {error}.", path=path) from error
    return _Side(bundle, report, digests, labels, logits)


def _match(old: _Side, new: _Side) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Positions of the pictures that both were judged on, in each."""
    if old.bundle.contract.classes != new.bundle.contract.classes:
        raise UsageError(
            f"These bundles do unlike work: one knows {', '.join(old.bundle.contract.classes[:5])}, the other "
            f"{', '.join(new.bundle.contract.classes[:5])}.",
            hint="Compare bundles of the same classes, in the same order.",
            path=new.bundle.path,
        )
    places = {digest: i for i, digest in enumerate(new.digests)}
    pairs = [(i, places[digest]) for i, digest in enumerate(old.digests) if digest in places]
    if not pairs:
        raise UsageError(
            f"These bundles were judged on different pictures: none of {len(old.digests)} is among the other's "
            f"{len(new.digests)}.",
            hint="Judge both on the same test split.",
            path=new.bundle.path,
        )
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


def _compare_accuracy(
    name: str,
    old: _Side,
    new: _Side,
    shared: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    confidence: float,
    max_drop: float,
) -> Change:
    if name not in old.logits or name not in new.logits:
        where = [side.bundle.path for side in (old, new) if name not in side.logits]
        reason = f"it was not run in {' and '.join(map(str, where))}"
        return Change(name, "top1", None, None, None, None, None, "not compared", reason)
    labels = old.labels[shared[0]]
    if not np.array_equal(labels, new.labels[shared[1]]):
        reason = "the same pictures have other labels in the two bundles"
        return Change(name, "top1", None, None, None, None, None, "not compared", reason)
    first, second = old.logits[name][shared[0]], new.logits[name][shared[1]]
    counts = pair_answers(first, second, labels)
    low, high = tango_interval(counts.broken, counts.mended, counts.images, confidence)
    seen = f"{counts.broken} broken, {counts.mended} mended of {counts.images} pictures"
    if low > max_drop:
        verdict: Verdict = "worse"
    elif high < 0:
        verdict = "better"
    else:
        verdict = "same" if high <= max(max_drop, 0.01) else "undecided"
    before, after = (float((x.argmax(axis=1) == labels).mean()) for x in (first, second))
    return Change(name, "top1", before, after, -counts.drop, -high, -low, verdict, seen)


def _compare_speed(name: str, old: _Side, new: _Side, max_slowdown: float) -> Change:
    reason = _why_unlike(name, old, new)
    if reason is not None:
        return Change(name, "speed", None, None, None, None, None, "not compared", reason)
    before, after = _row(old, name)["speedup"], _row(new, name)["speedup"]
    ratio = after["value"] / before["value"]
    # Both intervals are roughly symmetric on the log scale; independent errors add in squares (MOVER, Zou & Donner
    # 2008, on logarithms).
    down = math.hypot(math.log(after["value"] / after["low"]), math.log(before["high"] / before["value"]))
    up = math.hypot(math.log(after["high"] / after["value"]), math.log(before["value"] / before["low"]))
    low, high = ratio * math.exp(-down), ratio * math.exp(up)
    if high < 1 - max_slowdown:
        verdict: Verdict = "worse"
    elif low > 1:
        verdict = "better"
    else:
        verdict = "same" if low > 1 - max_slowdown else "undecided"
    seen = "speed-up over each run's own PyTorch baseline"
    return Change(name, "speed", before["value"], after["value"], ratio, low, high, verdict, seen)


def _row(side: _Side, name: str) -> Mapping[str, Any]:
    return next((row for row in side.report.get("variants", ()) if row["name"] == name), {})


def _why_unlike(name: str, old: _Side, new: _Side) -> str | None:
    """Why two speed-ups may not be compared, or ``None``."""
    for side in (old, new):
        if not _row(side, name).get("speedup"):
            return f"{side.bundle.path} has no valid speed-up of it"
    for part in ("cpu", "cores", "gpus"):
        first, second = ((side.report.get("machine") or {}).get(part) for side in (old, new))
        if first != second:
            return f"they were timed on different machines ({part}: {first} and {second})"
    shapes = [(s.bundle.contract.height, s.bundle.contract.width) for s in (old, new)]
    if shapes[0] != shapes[1]:
        return f"their inputs differ: {shapes[0]} and {shapes[1]} pixels"
    backbones = [((s.report.get("recipe") or {}).get("backbone") or {}).get("model") for s in (old, new)]
    if backbones[0] != backbones[1]:
        return f"their PyTorch baselines differ: {backbones[0]} and {backbones[1]}"
    return None
