"""Writes the bundle that a target's engines are in. It names its parent's digest and has what the parent has for CPUs.

Knows neither how engines were built nor how they were judged.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine
from edgekiln.pipeline.shipping.privacy import machine_folders, strip_folders
from edgekiln.pipeline.shipping.sbom import write_sbom
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.judged_with import JUDGED_ON, VERDICT_KIND
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.spec import Logits

__all__ = ["write_derived"]

_JUDGED = frozenset({"pass", "fail", "inconclusive"})


def write_derived(parent: Bundle, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Add what the parent has for CPUs, its logits and the manifest; returns the manifest's content.

    Args:
        parent: the bundle that was built from.
        rows: an entry of the manifest for each variant that was to be built, with its ``logits`` (or ``None``), which
            are taken out of it. Those that have a verdict were judged on this machine.
        folder: holds graphs and engines; everything else that is in it is removed.
    """
    built = {row["name"] for row in rows}
    carried = [
        entry
        for entry, variant in zip(parent.manifest["variants"], parent.variants, strict=True)
        if variant.device == "cpu" and variant.name not in built
    ]
    for name in sorted({name for entry in carried for name in parent.variant(entry["name"]).files}):
        (folder / name).write_bytes(parent.read(name))
    answers = {f"logits.{row['name']}": row.pop("logits", None) for row in rows}
    for row in rows:
        if row["verdict"] in _JUDGED:
            row["figures"] = {**row["figures"], VERDICT_KIND: read_kind(row["backend"]).verdict.to_dict()}
    _write_answers(parent, answers, {entry["name"] for entry in carried}, folder)
    _remove_leftovers(rows, carried, folder, parent.manifest["logits"])
    content = {
        "name": parent.name,
        "contract": parent.manifest["contract"],
        "contract_digest": parent.contract.digest,
        "parent": {"digest": parent.digest, "name": parent.name, "machine": parent.manifest.get("machine")},
        "baseline": parent.manifest.get("baseline"),
        "gate": parent.manifest.get("gate"),
        "canary_reference": parent.manifest.get("canary_reference"),
        "logits": parent.manifest["logits"],
        # What libraries said on this machine names its folders.
        "variants": [
            *_strip_rows(rows, machine_folders(folder, parent.path)),
            *(_carry(entry, parent.manifest.get("machine")) for entry in carried),
        ],
        "provenance": parent.manifest.get("provenance"),
        "machine": describe_machine(),
    }
    write_sbom(folder, {**content, "recipe": (content["provenance"] or {}).get("recipe")})
    write_manifest(folder, content)
    return content


def _strip_rows(rows: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[dict[str, Any]]:
    """Rows without this machine's folders. Canaries hold base64, in which a short folder's name may stand by chance."""
    stripped = strip_folders([{**row, "canaries": None} for row in rows], folders)
    return [{**new, "canaries": row.get("canaries")} for new, row in zip(stripped, rows, strict=True)]


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
    values |= {key: own for key, own in answers.items() if own is not None}
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
