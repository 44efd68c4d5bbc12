"""The report of a bench on a device, with the schema of a recipe's report: what is not known here is left out.

Measures nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.environment import describe_machine
from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import warn_of_guessing
from edgekiln.benchmarks.judging.stored_answers import digest_split
from edgekiln.benchmarks.report.reading import REPORT_SCHEMA, read_bundled_report
from edgekiln.benchmarks.report.table import describe_static_batches
from edgekiln.benchmarks.report.timings import BASELINE, latency_of, timing_notices
from edgekiln.pipeline.device.pictures import KnownPictures
from edgekiln.pipeline.device.request import read_gate
from edgekiln.pipeline.shipping.privacy import name_picture
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.bundles.times import TIMES, MeasuredTime, add_time

__all__ = ["add_timings", "device_report"]

_OF_THE_MODEL = ("training", "parity", "recipe_toml", "recipe_commit")
"""Parts of the parent's report that are about the network, wherever it runs."""


def device_report(
    parent: Bundle,
    rows: Sequence[Mapping[str, Any]],
    pictures: KnownPictures,
    benchmark: dict[str, Any] | None,
    problem: str | None,
) -> dict[str, Any]:
    """``report.json``; folders of this machine may still stand in what libraries said.

    Args:
        parent: what was measured.
        rows: of the variants, as ``bench`` makes them.
        pictures: on which they were judged.
        benchmark: what ``time_engines`` found; ``None`` where nothing was timed.
        problem: why nothing was, where it was tried.
    """
    original = read_bundled_report(parent) or {}
    recipe = dict((parent.manifest.get("provenance") or {}).get("recipe") or {})
    recipe["gate"] = {**read_gate(parent, ""), **(recipe.get("gate") or {})}
    shown = (recipe.get("report") or {}).get("images", True)
    variants = [_variant_row(row, benchmark, pictures, shown) for row in rows]
    baseline = _describe_baseline(parent, pictures, benchmark)
    return {
        "schema_version": REPORT_SCHEMA,
        "name": parent.name,
        "contract": parent.contract.to_dict(),
        "contract_digest": parent.contract.digest,
        "parent": {"digest": parent.digest, "name": parent.name, "machine": parent.manifest.get("machine")},
        **{key: original[key] for key in _OF_THE_MODEL if key in original},
        "recipe": recipe,
        "data": _describe_data(parent, pictures),
        "baseline": baseline,
        "peers": [],
        "variants": variants,
        "notices": [
            *warn_of_guessing([baseline, *variants], parent.contract.classes, recipe["gate"]["confidence"]),
            *_picture_notices(pictures, recipe["gate"]),
            *(notice for variant in variants for notice in variant["notices"]),
            *_untimed(benchmark, problem),
            *timing_notices(benchmark),
        ],
        "benchmark": benchmark,
        "mlperf": None,
        "machine": benchmark["machine"] if benchmark else describe_machine(),
    }


def _describe_data(parent: Bundle, pictures: KnownPictures) -> dict[str, Any]:
    labels = pictures.reference.labels
    return {
        "classes": list(parent.contract.classes),
        "counts": {"test": len(labels)},
        "test_digest": digest_split(pictures.digests, labels),
        **{key: [] for key in ("unreadable", "duplicates", "conflicts", "ignored")},
    }


def _describe_baseline(
    parent: Bundle, pictures: KnownPictures, benchmark: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The row of PyTorch: its recorded answers on the pictures that were found, and its time here, if it was timed."""
    recorded = {k: v for k, v in (parent.manifest.get("baseline") or {}).items() if k != "latency"}
    accuracy = measure_accuracy(pictures.reference.logits, pictures.reference.labels).to_dict()
    latency = latency_of(benchmark, BASELINE)
    return {**recorded, "name": BASELINE, "precision": "fp32", "accuracy": accuracy, "latency": latency}


def add_timings(rows: Sequence[dict[str, Any]], report: Mapping[str, Any]) -> None:
    """Put what the report says of each variant's speed into its figures, as a run's manifest has them."""
    for row, told in zip(rows, report["variants"], strict=True):
        row["figures"] |= {
            key: told[key]
            for key in ("latency", "speedup", "notices", "size", "sha256", TIMES)
            if key in told
        }


def _variant_row(
    row: Mapping[str, Any], benchmark: Mapping[str, Any] | None, pictures: KnownPictures, shown: bool
) -> dict[str, Any]:
    figures = dict(row["figures"])
    built = figures.get("build") or {}
    if time := (benchmark or {}).get(TIMES, {}).get(row["name"]):
        # Beside those of other kinds of machines, which the parent tells.
        figures[TIMES] = add_time(figures.get(TIMES) or (), MeasuredTime.from_dict(time))
    return {
        **figures,
        **{key: value for key, value in row.items() if key not in {"figures", "logits", "file", "canaries"}},
        "flips": _name_flips(row.get("flips", []), pictures, shown),
        "notices": [
            *figures.get("notices", ()),
            *built.get("notices", ()),
            *describe_static_batches(row["name"], figures.get("static_batches", ())),
            *(f"{row['name']}: {warning}." for warning in figures.get("warnings", ())),
        ],
        "latency": latency_of(benchmark, row["name"]),
        "speedup": None if benchmark is None else benchmark["ratios"].get(row["name"]),
    }


def _name_flips(
    flips: Sequence[Mapping[str, Any]], pictures: KnownPictures, shown: bool
) -> list[dict[str, Any]]:
    """As they are, or without the names of files where the recipe withholds these."""
    if shown:
        return [dict(flip) for flip in flips]
    places = {key: name_picture("test", place) for place, key in enumerate(pictures.reference.keys)}
    return [{**flip, "key": places[flip["key"]]} for flip in flips]


def _picture_notices(pictures: KnownPictures, gate: Mapping[str, Any]) -> list[str]:
    """On which pictures the verdicts rest, where these are not all of those that the parent's rest on."""
    here, told = len(pictures.reference.labels), []
    if here != pictures.known:
        told.append(
            f"Judged on {here} of the parent's {pictures.known} test pictures: the others were not found here."
        )
    if gate.get("evidence") == "test+val":
        told.append("The parent's verdicts rest on test and val; here test pictures alone judge.")
    return told


def _untimed(benchmark: Mapping[str, Any] | None, problem: str | None) -> list[str]:
    """Why nothing was timed; a sentence for each engine that ran and could not be. Of PyTorch another notice tells."""
    left_out = (benchmark or {}).get("left_out", {})
    told = [] if problem is None else [problem]
    return told + [
        f"{name} was not timed: {why.rstrip('.')}." for name, why in left_out.items() if name != BASELINE
    ]
