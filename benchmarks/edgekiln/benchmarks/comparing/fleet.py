"""One network on several devices, side by side: what passed where, what it took, and which answers differ.

A device is a bundle with a report, as ``edgekiln bench BUNDLE`` writes it there. The result is one JSON document, whose
devices have the parts of a report that its charts and tables read. Measures nothing. Verdicts and times are those that
each device's report gives; that the devices did like work is checked here: classes, contract, pictures and labels,
PyTorch's answers and graphs are the same. No time, ratio or energy of an emulated processor is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.comparing.comparable import Side, check_classes, read_side, tell_contracts
from edgekiln.benchmarks.comparing.fleet_answers import align_answers, compare_answers
from edgekiln.benchmarks.report.charts.speed import pareto_front
from edgekiln.benchmarks.report.timings import BASELINE
from edgekiln.runtime.errors import UsageError

__all__ = ["Member", "compare_fleet", "set_side_by_side"]

_JUDGE = "`edgekiln bench BUNDLE --data PICTURES --out DERIVED` on a device makes one."
_SAME = "Bench the same bundle with the same pictures on every device."
_OF_A_VARIANT = (
    "name", "backend", "precision", "verdict", "reason", "metric", "max_drop", "drop", "balanced_drop", "size",
    "agreement",
)  # fmt: skip
_OF_A_LATENCY = ("p50_ms", "p99_ms", "config", "energy", "energy_reason", "peak_rss_mb", "device_mb")
_OF_A_BENCHMARK = ("validity", "reference", "conditions", "images")
_OF_A_MACHINE = (
    "board", "cpu", "cores", "gpus", "jetson", "governor", "cpu_quota_cores", "cpu_flags", "emulated_on", "system",
    "python", "versions",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the fleet.

    Attributes:
        name: what the reader knows it by.
        path: its bundle; ``None`` where it made none, and then ``why`` says why not.
        required: a release needs a variant that passes on it.
        emulated: its owner says so, which its report may not know.
    """

    name: str
    path: Path | None
    required: bool = False
    emulated: bool = False
    why: str | None = None


def compare_fleet(members: Sequence[Member]) -> dict[str, Any]:
    """Set the reports and answers of all devices side by side; JSON values, the devices in their order.

    Raises:
        UsageError: there is no result at all, one is no judged bundle, or the devices did unlike work.
        UntrustedError: a bundle was altered, or is of a newer schema.
        NonFiniteError: NaN or infinity among stored answers.
    """
    sides = {m.name: _read_judged(m.path) for m in members if m.path is not None}
    if not sides:
        told = "; ".join(f"{m.name}: {m.why}" for m in members)
        raise UsageError(f"No device has a result: {told or 'there is none'}.", hint=_JUDGE)
    return set_side_by_side(members, sides)


def set_side_by_side(members: Sequence[Member], sides: Mapping[str, Side]) -> dict[str, Any]:
    """As ``compare_fleet``, of one bundle or more that were read already, each with its report and answers."""
    first, *others = sides.values()
    for other in others:
        _check_like_work(first, other)
    devices = [_describe_device(m, sides.get(m.name)) for m in members]
    report = first.report
    return {
        "name": report["name"],
        "contract_digest": report.get("contract_digest"),
        "recipe": {"gate": report["recipe"]["gate"]},
        "data": {"classes": report["data"]["classes"], "counts": {"test": report["data"]["counts"]["test"]}},
        "devices": devices,
        "failing": [d["name"] for d in devices if d["required"] and not d["passing"]],
        "differences": compare_answers(sides),
        "notes": _note(sides),
    }


def _read_judged(path: Path) -> Side:
    side = read_side(path)
    if side.answers is None:
        raise UsageError(
            f"{path} is a report alone: it holds no single answers, and nothing proves that it is unaltered.",
            hint="Give the bundle that it came from.",
            path=path,
        )
    if not side.report:
        raise UsageError(f"{path} holds no report: nothing was judged there.", hint=_JUDGE, path=path)
    return side


# --------------------------------------------------------------------------------------------------------------
# Is it like work?


def _check_like_work(first: Side, other: Side) -> None:
    check_classes(first, other)
    if told := tell_contracts(first, other):
        raise _unlike(first, other, f"their contracts prepare pictures otherwise ({told})")
    counts = [side.report["data"]["counts"]["test"] for side in (first, other)]
    digests = [side.report["data"].get("test_digest") for side in (first, other)]
    if first.test_digest != other.test_digest or digests[0] != digests[1]:
        raise _unlike(
            first,
            other,
            f"they were judged on other pictures, or with other labels ({counts[0]} and {counts[1]})",
        )
    before, now = (align_answers(side, first).logits[BASELINE] for side in (first, other))
    if not np.array_equal(before, now):
        apart = int((before != now).any(axis=1).sum())
        raise _unlike(
            first, other, f"their weights differ: PyTorch answered {apart} of {len(now)} pictures otherwise"
        )
    graphs = [{row["name"]: _graph(row) for row in side.report["variants"]} for side in (first, other)]
    for name in graphs[0].keys() & graphs[1].keys():
        if None not in (graphs[0][name], graphs[1][name]) and graphs[0][name] != graphs[1][name]:
            raise _unlike(first, other, f"{name} is another graph in each")


def _unlike(first: Side, other: Side, why: str) -> UsageError:
    return UsageError(f"{first.path} and {other.path} do unlike work: {why}.", hint=_SAME, path=other.path)


def _graph(row: Mapping[str, Any]) -> str | None:
    """sha256 of the ONNX file that a variant runs or is built from; ``None`` where the report names none."""
    names = [row.get("source"), *row.get("files", ())]
    graph = next((name for name in names if name and name.endswith(".onnx")), None)
    digest = row.get("sha256", {}).get(graph)
    return None if digest is None else str(digest)


def _note(sides: Mapping[str, Side]) -> list[str]:
    """What a reader should know of the whole."""
    gates = {name: side.report["recipe"]["gate"] for name, side in sides.items()}
    first, *others = gates
    apart = [name for name in others if gates[name] != gates[first]]
    return [f"{', '.join(apart)}: judged by another gate than {first}."] if apart else []


# --------------------------------------------------------------------------------------------------------------
# One device


def _describe_device(member: Member, side: Side | None) -> dict[str, Any]:
    """A device with the parts of its report that are set side by side; without a result, why there is none."""
    told: dict[str, Any] = {"name": member.name, "required": member.required, "why": member.why}
    if side is None:
        empty: dict[str, Any] = {"variants": [], "passing": [], "pareto": [], "notices": []}
        return {**told, "state": "failed", "emulated_on": None, "machine": None, "benchmark": None, **empty}
    report = side.report
    kernel = report["machine"].get("emulated_on") or ("another processor" if member.emulated else None)
    benchmark = None if kernel else report["benchmark"]
    variants = [_describe_variant(row, benchmark, bool(kernel)) for row in report["variants"]]
    baseline = _describe_variant({**report["baseline"], "name": BASELINE}, benchmark, bool(kernel))
    device = {
        **told,
        "state": "done",
        "emulated_on": kernel,
        "machine": {key: report["machine"].get(key) for key in _OF_A_MACHINE},
        "benchmark": benchmark and {key: benchmark[key] for key in _OF_A_BENCHMARK if key in benchmark},
        "baseline": baseline,
        "variants": variants,
        "passing": [v["name"] for v in variants if v["verdict"] == "pass"],
        "notices": list(report["notices"]),
    }
    return {**device, "pareto": _find_pareto(device), "best": _find_best(device)}


def _describe_variant(
    row: Mapping[str, Any], benchmark: Mapping[str, Any] | None, emulated: bool
) -> dict[str, Any]:
    accuracy, latency = row.get("accuracy"), None if emulated else row.get("latency")
    rates = ((benchmark or {}).get("throughput") or {}).get(row["name"]) or {"batches": [], "callers": []}
    known = [r["images_per_second"] for r in (*rates["batches"], *rates["callers"]) if "problem" not in r]
    return {
        **{key: row.get(key) for key in _OF_A_VARIANT},
        "required": row.get("required", True),
        "accuracy": accuracy and {key: accuracy[key] for key in ("top1", "balanced", "images")},
        "latency": latency and {key: latency.get(key) for key in _OF_A_LATENCY},
        "speedup": None if emulated else row.get("speedup"),
        "cold_start": ((benchmark or {}).get("cold_start") or {}).get(row["name"]),
        "images_per_second": max(known, default=None),
    }


def _find_pareto(device: Mapping[str, Any]) -> list[str]:
    """Names of what no other on this device beats in median time without losing top-1; none where times are invalid."""
    if not device["benchmark"] or device["benchmark"]["validity"]["state"] == "invalid":
        return []
    engines = [e for e in (device["baseline"], *device["variants"]) if e["latency"] and e["accuracy"]]
    points = [(e["latency"]["p50_ms"], e["accuracy"]["top1"]) for e in engines]
    return [engines[i]["name"] for i in pareto_front(points)]


def _find_best(device: Mapping[str, Any]) -> str | None:
    """The fastest variant that passes; ``None`` where none does, and where no valid time tells."""
    valid = device["benchmark"] and device["benchmark"]["validity"]["state"] != "invalid"
    timed = [v for v in device["variants"] if valid and v["verdict"] == "pass" and v["latency"]]
    return min(timed, key=lambda v: float(v["latency"]["p50_ms"]))["name"] if timed else None
