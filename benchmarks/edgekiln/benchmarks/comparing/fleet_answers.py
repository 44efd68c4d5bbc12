"""On which pictures the devices of a fleet answer otherwise than one another, variant by variant.

Works on the answers that their bundles keep. Every two bundles are of the same pictures with the same labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekiln.benchmarks.comparing.comparable import Answers, Side, check_finite
from edgekiln.benchmarks.judging.accuracy import find_flips
from edgekiln.benchmarks.report.timings import BASELINE
from edgekiln.runtime.spec import Logits

__all__ = ["align_answers", "compare_answers"]


def align_answers(side: Side, first: Side) -> Answers:
    """The answers of ``side`` in the order of the pictures of ``first``; both have the same pictures."""
    assert side.answers is not None
    assert first.answers is not None
    places = {digest: i for i, digest in enumerate(side.answers.digests)}
    return side.answers.take([places[digest] for digest in first.answers.digests])


def compare_answers(sides: Mapping[str, Side]) -> list[dict[str, Any]]:
    """For each variant that two devices or more answered with: how far apart they are, and the pictures; JSON values.

    Args:
        sides: by the device's name, all of the same pictures.

    Returns:
        For each variant its ``devices``, ``images``, ``max_logit_difference`` between any two of them, and ``answers``:
        of each picture on which their answers differ the label, PyTorch's answer and each device's.
        ``not_kept`` names devices that judged it and kept no answers: they found only some of the pictures.

    Raises:
        NonFiniteError: NaN or infinity among the answers.
    """
    first = next(iter(sides.values()))
    aligned = {device: align_answers(side, first) for device, side in sides.items()}
    names = dict.fromkeys(row["name"] for side in sides.values() for row in side.report["variants"])
    found = []
    for name in names:
        judged = [device for device, side in sides.items() if side.row(name).get("accuracy")]
        logits = {device: aligned[device].logits[name] for device in judged if name in aligned[device].logits}
        for device in logits:
            check_finite(name, sides[device].path, aligned[device])
        if len(judged) > 1:
            entry = _compare(name, logits, aligned, sides) if len(logits) > 1 else _EMPTY
            not_kept = [device for device in judged if device not in logits]
            found.append({"variant": name, "devices": list(logits), "not_kept": not_kept, **entry})
    return found


_EMPTY: Mapping[str, Any] = {"images": 0, "max_logit_difference": None, "answers": []}


def _compare(
    name: str, logits: Mapping[str, Logits], aligned: Mapping[str, Answers], sides: Mapping[str, Side]
) -> dict[str, Any]:
    stacked = np.stack(list(logits.values()))  # (devices, N, C)
    answers = stacked.argmax(axis=2)
    classes = next(iter(sides.values())).classes
    reference = aligned[next(iter(logits))]
    before = reference.logits[BASELINE].argmax(axis=1)
    pictures: dict[str, str] = {}
    for device in logits:
        pictures |= _name_pictures(sides[device], name)
    return {
        "images": len(reference.digests),
        "max_logit_difference": float((stacked.max(axis=0) - stacked.min(axis=0)).max()),
        "answers": [
            {
                "sha256": reference.digests[i],
                "picture": pictures.get(reference.digests[i]),
                "label": classes[reference.labels[i]],
                "pytorch": classes[before[i]],
                "by_device": {device: classes[row[i]] for device, row in zip(logits, answers, strict=True)},
            }
            for i in np.flatnonzero((answers != answers[0]).any(axis=0)).tolist()
        ],
    }


def _name_pictures(side: Side, name: str) -> dict[str, str]:
    """Names by sha256 of the pictures that this variant answers otherwise than PyTorch, as its report calls them.

    Reports list these by name, bundles keep digests: both are in the order of ``find_flips``. Where two devices
    differ, one of them differs from PyTorch.
    """
    answers = side.answers
    assert answers is not None
    baseline, own = answers.logits[BASELINE], answers.logits[name]
    flips = find_flips(baseline, own, answers.labels, keys=answers.digests, classes=side.classes)
    told = side.row(name).get("flips") or []
    if [(f.label, f.before, f.now) for f in flips] != [(f["label"], f["before"], f["now"]) for f in told]:
        return {}
    return {flip.key: entry["key"] for flip, entry in zip(flips, told, strict=True)}
