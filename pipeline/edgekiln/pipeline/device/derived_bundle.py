"""Writes the bundle that a target's engines are in. It names its parent's digest and has what the parent has for CPUs.

Knows neither how engines were built nor how they were judged.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine
from edgekiln.benchmarks.report.reading import REPORT_NAME
from edgekiln.pipeline.shipping.privacy import machine_folders, strip_folders
from edgekiln.pipeline.shipping.sbom import write_sbom
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.judged_with import JUDGED_ON, VERDICT_KIND
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Logits

__all__ = ["check_place", "publish", "write_derived"]

_JUDGED = frozenset({"pass", "fail", "inconclusive"})


_OF_THE_PARENT = ("name", "contract", "gate", "canary_reference", "logits", "provenance")


def check_place(out: Path, parent: Path) -> Path:
    """The place of a derived bundle, resolved.

    Raises:
        UsageError: something is there, or it lies inside the parent.
    """
    place = out.resolve()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise _in_use(place)
    if parent.resolve() in (place, *place.parents):
        raise UsageError(
            f"{place} lies inside the bundle that it is made from.",
            hint="Give --out another place.",
            path=place,
        )
    return place


def publish(folder: Path, out: Path) -> None:
    """Give a finished derived bundle its name, in one step; raises UsageError where another was faster."""
    try:
        if out.exists():
            out.rmdir()  # an empty folder that the caller made
        folder.rename(out)
    except OSError as error:
        raise _in_use(out) from error


def _in_use(out: Path) -> UsageError:
    return UsageError(f"{out} is in use.", hint="Give --out a folder that does not exist.", path=out)


def write_derived(
    parent: Bundle,
    rows: list[dict[str, Any]],
    folder: Path,
    *,
    report: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Add what the parent has for CPUs, its logits and the manifest; returns the manifest's content.

    Args:
        parent: the bundle that was built from.
        rows: an entry of the manifest for each variant that was to be built or judged, with its ``flips``; and its
            ``logits`` of the pictures that were found, kept where they are of all. A verdict is this machine's.
        folder: holds graphs and engines; everything else that is in it is removed.
        report: of what was found here, kept as ``report.json``; without one the baseline's figures are the parent's.
    """
    built = {row["name"] for row in rows}
    carried = [
        entry
        for entry, variant in zip(parent.manifest["variants"], parent.variants, strict=True)
        if variant.device == "cpu" and variant.name not in built
    ]
    for name in sorted({name for entry in carried for name in parent.variant(entry["name"]).files}):
        (folder / name).write_bytes(parent.read(name))
    answers = {f"logits.{row['name']}": row.get("logits") for row in rows}
    rows = [_row_of_manifest(row) for row in rows]
    _write_answers(parent, answers, {entry["name"] for entry in carried}, folder)
    _remove_leftovers(rows, carried, folder, parent.manifest["logits"])
    places = machine_folders(folder, parent.path)
    baseline = _write_report(parent, report, folder, places)
    content: dict[str, Any] = {
        **{key: parent.manifest.get(key) for key in _OF_THE_PARENT},
        "contract_digest": parent.contract.digest,
        "parent": {"digest": parent.digest, "name": parent.name, "machine": parent.manifest.get("machine")},
        "baseline": baseline,
        # What libraries said on this machine names its folders.
        "variants": [
            *_strip_rows(rows, places),
            *(_carry(entry, parent.manifest.get("machine")) for entry in carried),
        ],
        "machine": describe_machine() if report is None else report["machine"],
    }
    write_sbom(folder, {**content, "recipe": (content["provenance"] or {}).get("recipe")})
    write_manifest(folder, content)
    return content


def _row_of_manifest(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row the manifest keeps, with the kind of machine that its verdict holds for."""
    kept = {key: value for key, value in row.items() if key not in {"flips", "logits"}}
    if row["verdict"] in _JUDGED:
        kept["figures"] = {**row["figures"], VERDICT_KIND: read_kind(row["backend"]).verdict.to_dict()}
    return kept


def _strip_rows(rows: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[dict[str, Any]]:
    """Rows without this machine's folders. Canaries hold base64, in which a short folder's name may stand by chance."""
    stripped = strip_folders([{**row, "canaries": None} for row in rows], folders)
    return [{**new, "canaries": row.get("canaries")} for new, row in zip(stripped, rows, strict=True)]


def _write_report(
    parent: Bundle, report: Mapping[str, Any] | None, folder: Path, places: Sequence[str]
) -> Mapping[str, Any] | None:
    """Write the report and the parent's checkpoint, where there are such; returns the manifest's ``baseline``."""
    baseline: Mapping[str, Any] | None = parent.manifest.get("baseline")
    if report is not None:
        text = json.dumps(strip_folders(report, places), sort_keys=True, ensure_ascii=False)
        (folder / REPORT_NAME).write_text(text, "utf-8")
        baseline = report["baseline"]
    if baseline and (checkpoint := baseline.get("file")):
        (folder / checkpoint).write_bytes(parent.read(checkpoint))
    return baseline


def _carry(entry: Mapping[str, Any], machine: object) -> dict[str, Any]:
    """A variant of the parent as it is, with the machine that it was judged on, which is not this one."""
    figures = {JUDGED_ON: machine, **entry["figures"]}  # what is carried a second time has its own already
    return {**entry, "figures": figures}


def _write_answers(
    parent: Bundle, answers: Mapping[str, Logits | None], carried: set[str], folder: Path
) -> None:
    """The parent's recorded answers without those of engines that were built anew, whose own take their place."""
    kept = {"image_sha256", "labels", "logits.baseline", *(f"logits.{name}" for name in carried)}
    name = parent.manifest["logits"]
    with np.load(io.BytesIO(parent.read(name)), allow_pickle=False) as arrays:
        values: dict[str, Any] = {key: arrays[key] for key in arrays.files if key in kept}
    count = len(values["labels"])
    values |= {key: own for key, own in answers.items() if own is not None and len(own) == count}
    np.savez(folder / name, **values)


def _remove_leftovers(
    rows: Sequence[Mapping[str, Any]], carried: Sequence[Mapping[str, Any]], folder: Path, logits: str
) -> None:
    """Files of a build that failed half-way belong to no row."""
    named: set[Any] = {logits}
    for row in (*rows, *carried):
        named |= {*(row.get("files") or ()), row.get("file"), row.get("source"), row.get("fallback_source")}
    for entry in folder.iterdir():
        if entry.name not in named:
            entry.unlink()
