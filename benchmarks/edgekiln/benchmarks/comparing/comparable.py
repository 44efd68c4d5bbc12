"""One side of a comparison: a bundle, a run's folder or a report.json, as far as it can be compared."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.judging.accuracy import Labels
from edgekiln.benchmarks.judging.stored_answers import digest_split
from edgekiln.benchmarks.report.reading import REPORT_NAME, read_bundled_report, read_report
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.machine_kind import MachineKind
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
from edgekiln.runtime.errors import BundleError, NonFiniteError, UntrustedError, UsageError
from edgekiln.runtime.spec import Logits

__all__ = ["Answers", "Side", "Standing", "check_classes", "check_finite", "read_side", "tell_contracts"]

_PREFIX = "logits."
_NEVER_JUDGED = frozenset({"not-run", "unverified"})


@dataclass(frozen=True, slots=True)
class Answers:
    """The test split as a bundle keeps it: sha256 of each picture, int64 (N,) labels, logits (N, C) by engine."""

    digests: tuple[str, ...]
    labels: Labels
    logits: Mapping[str, Logits] = field(repr=False)

    def take(self, rows: Sequence[int]) -> Answers:
        """Those of some pictures, in the order of ``rows``."""
        index = np.array(rows)
        return Answers(
            tuple(self.digests[i] for i in rows),
            self.labels[index],
            {name: logits[index] for name, logits in self.logits.items()},
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a variant: its verdict, the reason, whether accuracy stands behind it, and on what it was judged.

    An engine that could not be built, or failed while running, has the verdict ``fail`` and was not judged.
    """

    verdict: str
    reason: str
    judged: bool
    kind: MachineKind | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared.

    Attributes:
        path: as it was given.
        contract: JSON values of the contract.
        standings: of the variants by name, in their order.
        report: the report, or nothing: a bundle that was built on a target has none.
        answers: ``None`` where there is a report alone, which holds no single answers.
        test_digest: which images with which labels were judged; ``None`` in reports of the first versions.
    """

    path: Path
    contract: Mapping[str, Any]
    standings: Mapping[str, Standing]
    report: Mapping[str, Any] = field(repr=False)
    answers: Answers | None
    test_digest: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variants, in their order."""
        return tuple(self.standings)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.contract["classes"])

    def row(self, name: str) -> Mapping[str, Any]:
        """What the report says of an engine; empty where it says nothing."""
        if name == "baseline":
            return dict(self.report.get("baseline", {}))
        return next((row for row in self.report.get("variants", ()) if row["name"] == name), {})


def read_side(path: Path) -> Side:
    """Open what ``path`` names; a ``.zip`` is a bundle. A report that lies in a bundle stands for the whole of it.

    Raises:
        UsageError: there is nothing, or nothing finished.
        UntrustedError: a damaged bundle or report, or one of a newer schema.
    """
    if path.is_file() and path.suffix.lower() == ".zip":
        return _read_bundle(path)
    if path.is_file():
        in_bundle = path.name == REPORT_NAME and (path.parent / MANIFEST_NAME).exists()
        return _read_bundle(path.parent) if in_bundle else _read_report(path)
    if not path.exists():
        raise UsageError(f"There is no file or folder {path}.", path=path)
    for folder in (path, path / "bundle"):
        if (folder / MANIFEST_NAME).exists():
            return _read_bundle(folder)
    if (path / REPORT_NAME).is_file():
        return _read_report(path / REPORT_NAME)
    raise UsageError(
        f"{path} holds nothing to compare.",
        hint="Give a bundle (a folder or a .zip), a run's folder or a report.json; `edgekiln run` makes them.",
        path=path,
    )


def _read_bundle(path: Path) -> Side:
    bundle = open_bundle(path)
    try:
        with np.load(io.BytesIO(bundle.read(str(bundle.manifest["logits"]))), allow_pickle=False) as arrays:
            answers = _read_answers(arrays)
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise BundleError(f"The answers in {path} cannot be read: {error}.", path=path) from error
    return Side(
        path=path,
        contract=bundle.contract.to_dict(),
        standings={v.name: _standing(v.verdict, v.reason, v.figures, v.kind) for v in bundle.variants},
        report=read_bundled_report(bundle) or {},
        answers=answers,
        test_digest=digest_split(answers.digests, answers.labels),
    )


def _read_answers(arrays: Mapping[str, NDArray[Any]]) -> Answers:
    names = [name for name in arrays if name.startswith(_PREFIX)]
    answers = Answers(
        digests=tuple(map(str, arrays["image_sha256"])),
        labels=arrays["labels"].astype(np.int64),
        logits={name.removeprefix(_PREFIX): arrays[name] for name in names},
    )
    lengths = {len(answers.digests), len(answers.labels), *(len(a) for a in answers.logits.values())}
    if len(lengths) > 1:
        raise ValueError(f"arrays of {' and '.join(map(str, sorted(lengths)))} images")
    return answers


def _read_report(path: Path) -> Side:
    report = read_report(path)
    return Side(
        path=path,
        contract=report["contract"],
        standings={
            row["name"]: _standing(row["verdict"], row["reason"], row, _read_kind(row, path))
            for row in report["variants"]
        },
        report=report,
        answers=None,
        test_digest=report["data"].get("test_digest"),
    )


def _standing(verdict: str, reason: str, figures: Mapping[str, Any], kind: MachineKind | None) -> Standing:
    judged = verdict not in _NEVER_JUDGED and (verdict == "pass" or bool(figures.get("accuracy")))
    return Standing(verdict, reason, judged, kind)


def _read_kind(row: Mapping[str, Any], path: Path) -> MachineKind | None:
    """Of a report, which nothing signs or hashes."""
    kind = row.get(VERDICT_KIND)
    try:
        return None if kind is None else MachineKind.from_dict(kind)
    except (KeyError, TypeError) as error:
        raise UntrustedError(f"{path} is no report that can be read: {error!r}.", path=path) from error


def check_classes(old: Side, new: Side) -> None:
    """That both know the same classes in the same order; raises UsageError with the first of each."""
    if old.classes != new.classes:
        raise UsageError(
            f"These do unlike work: one knows {', '.join(old.classes[:5])}, the other "
            f"{', '.join(new.classes[:5])}.",
            hint="Compare what has the same classes, in the same order.",
            path=new.path,
        )


def tell_contracts(old: Side, new: Side) -> str:
    """Where the two prepare pictures otherwise, as ``width: 32 and 64``; empty where they do not."""
    differing = sorted(
        key
        for key in {*old.contract, *new.contract} - {"classes"}
        if old.contract.get(key) != new.contract.get(key)
    )
    return "; ".join(f"{key}: {old.contract.get(key)} and {new.contract.get(key)}" for key in differing)


def check_finite(name: str, path: Path, answers: Answers) -> None:
    """That an engine's answers are numbers; raises NonFiniteError."""
    bad = int((~np.isfinite(answers.logits[name]).all(axis=1)).sum())
    if bad:
        raise NonFiniteError(
            f"{path} holds NaN or infinite logits of {name} for {bad} of {len(answers.labels)} pictures.",
            hint="Such answers cannot be compared: run it again, or leave that engine out.",
            path=path,
        )
