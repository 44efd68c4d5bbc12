"""The answers that a finished bundle keeps of its test split: read, and judged again under another gate.

Bundles keep all logits, so nothing has to run for that.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from edgekiln.benchmarks.judging.accuracy import Labels
from edgekiln.benchmarks.judging.gate import Metric
from edgekiln.benchmarks.judging.verdict import Pairs, Reference, judge_answers
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import BundleError
from edgekiln.runtime.spec import Logits

__all__ = ["StoredAnswers", "digest_split", "read_answers", "rejudge"]

_PREFIX = "logits."
_BASELINE = f"{_PREFIX}baseline"
_SPLITS = {"logits": "test", "val_logits": "val"}


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """The test split, or val, as a bundle keeps it.

    Attributes:
        digests: sha256 of each picture's bytes.
        labels: int64 (N,).
        baseline: PyTorch's logits, float32 (N, C).
        engines: logits float32 (N, C) by variant.
    """

    digests: Sequence[str]
    labels: Labels
    baseline: Logits
    engines: Mapping[str, Logits] = field(repr=False)


def digest_split(image_digests: Sequence[str], labels: Labels) -> str:
    """One sha256 over which images, by the sha256 of their bytes, have which label; their order does not matter."""
    pairs = sorted(f"{digest} {label}" for digest, label in zip(image_digests, labels.tolist(), strict=True))
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def read_answers(bundle: Bundle, key: Literal["logits", "val_logits"] = "logits") -> StoredAnswers:
    """The logits and labels that a bundle keeps of its test split; of val, where its gate judged on val too.

    Raises:
        BundleError: there are none, or they do not match one another.
    """
    name = str(bundle.manifest.get(key) or "")
    try:
        with np.load(io.BytesIO(bundle.read(name)), allow_pickle=False) as arrays:
            answers = StoredAnswers(
                digests=[str(digest) for digest in arrays["image_sha256"]],
                labels=arrays["labels"].astype(np.int64),
                baseline=arrays[_BASELINE].astype(np.float32),
                engines={
                    key.removeprefix(_PREFIX): arrays[key].astype(np.float32)
                    for key in arrays.files
                    if key.startswith(_PREFIX) and key != _BASELINE
                },
            )
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise BundleError(
            f"{bundle.path} holds no {_SPLITS[key]} logits that can be read: {error}.", path=bundle.path
        ) from error
    rows = {len(answers.digests), len(answers.labels), len(answers.baseline)}
    if len(rows) > 1 or any(logits.shape != answers.baseline.shape for logits in answers.engines.values()):
        raise BundleError(
            f"The {_SPLITS[key]} logits of {bundle.path} do not match one another.", path=bundle.path
        )
    return answers


def rejudge(
    path: str | os.PathLike[str], *, max_drop: float, confidence: float = 0.95, metric: Metric = "top1"
) -> list[dict[str, Any]]:
    """Judge a finished bundle's stored answers under another gate, without running anything.

    The gate given here is the only one: a variant's own ``max_drop`` is passed over. What failed for another reason
    than accuracy still fails. Flips name images by the sha256 of their bytes. The evidence is the bundle's own: test,
    or test and val.

    Returns:
        ``judge_answers`` and ``name`` for each variant whose own logits are stored: not for those that did not run,
        nor for engines built on a target, whose bundle carries the parent's logits.
    """
    bundle = open_bundle(path)
    answers = read_answers(bundle)
    val = read_answers(bundle, "val_logits") if "val_logits" in bundle.manifest else None
    reference = Reference(answers.baseline, answers.labels, answers.digests, bundle.contract.classes)
    return [
        {
            "name": variant.name,
            **judge_answers(
                reference,
                answers.engines[variant.name],
                max_drop=max_drop,
                confidence=confidence,
                metric=metric,
                failure=variant.figures.get("failure"),
                val=_pair_val(val, variant.name),
            ),
        }
        for variant in bundle.variants
        if variant.name in answers.engines and not _is_built_here(bundle, variant)
    ]


def _pair_val(answers: StoredAnswers | None, name: str) -> Pairs | None:
    """Of a variant that answered val."""
    if answers is None or name not in answers.engines:
        return None
    return Pairs(answers.baseline, answers.engines[name], answers.labels)


def _is_built_here(bundle: Bundle, variant: VariantRecord) -> bool:
    """Whether a derived bundle's variant is its own engine; only what runs on CPUs was carried over with its logits."""
    return "parent" in bundle.manifest and variant.device != "cpu"
