"""Whether what a device sent back is a derived bundle of the parent: nothing that it could have altered is believed.

Every byte agreed with its manifest when it was opened; here the manifest is held against the parent, and verdicts are
found again from the answers. What a device answered to a picture is its own word: who controls a device controls that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import apply_floor
from edgekiln.benchmarks.judging.stored_answers import StoredAnswers, read_answers
from edgekiln.benchmarks.judging.verdict import Reference, judge_answers
from edgekiln.benchmarks.report.reading import REPORT_NAME, read_bundled_report
from edgekiln.pipeline.device.request import read_gate
from edgekiln.pipeline.shipping.sbom import SBOM_NAME
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import BundleError

__all__ = ["check_derived"]

_SAME = ("name", "gate", "canary_reference", "logits", "provenance", "contract_digest")
_JUDGED = frozenset({"pass", "fail", "inconclusive"})


def check_derived(derived: Bundle, parent: Bundle, pictures: int) -> dict[str, Any]:
    """Hold an opened bundle against the one that it says it was made from; returns its report.

    Args:
        derived: what the device sent.
        parent: what it was given.
        pictures: how many of the parent's test pictures it was given.

    Raises:
        BundleError: it is of another bundle, has another network, or claims what its own answers do not show.
    """
    manifest, own = derived.manifest, parent.manifest
    if (manifest.get("parent") or {}).get("digest") != parent.digest:
        _refuse(derived, "it was made from another bundle")
    for key in _SAME:
        if manifest.get(key) != own.get(key) and key in own:
            _refuse(derived, f"its {key} is not the parent's")
    if derived.contract.digest != parent.contract.digest:
        _refuse(derived, "its contract is not the parent's")
    if [_identity(v) for v in derived.variants] != [_identity(v) for v in parent.variants]:
        _refuse(derived, "its variants are not the parent's")
    _check_files(derived, parent)
    _check_answers(derived, parent, pictures)
    return _check_report(derived, parent)


def _identity(variant: VariantRecord) -> tuple[object, ...]:
    return variant.name, variant.backend, variant.required, variant.source, variant.fallback_source


def _made_there(bundle: Bundle) -> set[str]:
    """Names of files that a device makes: its report, its answers, and engines that are built of a graph."""
    engines = {name for variant in bundle.variants if variant.source is not None for name in variant.files}
    return {REPORT_NAME, SBOM_NAME, str(bundle.manifest["logits"]), *engines}


def _check_files(derived: Bundle, parent: Bundle) -> None:
    """Graphs and the checkpoint are the parent's own, byte for byte."""
    kept = set(parent.files) - _made_there(parent)
    for name, record in derived.files.items():
        if name not in kept and name in _made_there(derived):
            continue
        if name not in parent.files or record != parent.files[name]:
            _refuse(derived, f"{name} is not the parent's")
    for mine, theirs in zip(derived.variants, parent.variants, strict=True):
        if mine.source is None and mine.files not in ((), theirs.files):
            _refuse(derived, f"{mine.name} is another file than the parent's")


def _check_answers(derived: Bundle, parent: Bundle, pictures: int) -> None:
    """The pictures, labels and PyTorch's answers are the parent's; verdicts follow from the answers that are there."""
    answers, known = read_answers(derived), read_answers(parent)
    same = (
        list(answers.digests) == list(known.digests)
        and np.array_equal(answers.labels, known.labels)
        and np.array_equal(answers.baseline, known.baseline, equal_nan=True)
    )
    if not same:
        _refuse(derived, "the pictures, labels or PyTorch's answers in it are not the parent's")
    for variant in derived.variants:
        if variant.verdict not in _JUDGED:
            continue
        logits = answers.engines.get(variant.name)
        if logits is not None:
            _check_verdict(derived, parent, variant, known, logits)
        elif variant.verdict == "pass" and pictures == len(known.labels):
            _refuse(derived, f"it says that {variant.name} passed, without the answers that show it")


def _check_verdict(
    derived: Bundle, parent: Bundle, variant: VariantRecord, known: StoredAnswers, logits: Any
) -> None:
    if variant.verdict != "pass":
        return  # who says so of its own engine is believed: nothing ships for it
    gate = read_gate(parent, variant.name)
    if not np.isfinite(logits).all():
        _refuse(derived, f"it says that {variant.name} passed, and its answers hold NaN or infinity")
    reference = Reference(known.baseline, known.labels, known.digests, parent.contract.classes)
    judged = judge_answers(
        reference,
        logits,
        max_drop=gate["max_drop"],
        confidence=gate["confidence"],
        metric=gate["metric"],
        failure=variant.figures.get("failure"),
    )
    baseline = measure_accuracy(known.baseline, known.labels).to_dict()
    if apply_floor(judged, baseline, gate["min_top1"])["verdict"] != "pass":
        _refuse(derived, f"it says that {variant.name} passed, and by its own answers it did not")


def _check_report(derived: Bundle, parent: Bundle) -> dict[str, Any]:
    report = read_bundled_report(derived)
    if report is None:
        _refuse(derived, "it has no report")
    told = {
        str(row.get("name")): row.get("verdict") for row in report["variants"] if isinstance(row, Mapping)
    }
    if told != {variant.name: variant.verdict for variant in derived.variants}:
        _refuse(derived, "its report has other verdicts than its manifest")
    if (report.get("parent") or {}).get("digest") != parent.digest:
        _refuse(derived, "its report is of another bundle")
    return report


def _refuse(derived: Bundle, why: str) -> NoReturn:
    raise BundleError(
        f"What the device sent is not taken: {why}.",
        hint="Look at that device: it, or who has it, altered the result.",
        path=derived.path,
    )
