"""What the report says of its benchmark beside the engines' own rows: figures of a contender, peers, notices, and
what speed-ups are over.

Works on the JSON values of the benchmark alone; ``None`` stands for a run without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BASELINE",
    "PHASE_HEADINGS",
    "describe_phases",
    "find_reference",
    "is_noisy",
    "latency_of",
    "peer_rows",
    "phase_rows",
    "shown_name",
    "timing_notices",
]

BASELINE = "baseline"
"""Name of the PyTorch model among those that were timed."""

PHASE_HEADINGS = (
    "median ms", "picture to frame", "host", "enqueue", "copy in", "engine", "copy out", "whole call",
)  # fmt: skip
_ENOUGH_ROTATING = 64


def find_reference(report: Mapping[str, Any]) -> str | None:
    """The engine that speed-ups are over, where PyTorch was not timed; ``None`` where they are over PyTorch."""
    reference = (report.get("benchmark") or {}).get("reference")
    return None if reference is None else str(reference["name"])


def is_noisy(report: Mapping[str, Any]) -> bool:
    """Whether the timings are shown with reservations; of invalid ones there is no speed-up to show."""
    validity = (report.get("benchmark") or {}).get("validity") or {}
    return bool(validity.get("state") == "noisy")


def shown_name(measurement: Mapping[str, Any]) -> str:
    """What tables and drawings call a contender."""
    return "PyTorch" if measurement["name"] == BASELINE else str(measurement["name"])


def peer_rows(benchmark: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What was timed and is not ours."""
    if benchmark is None:
        return []
    return [
        {
            **peer,
            "latency": latency_of(benchmark, peer["name"]),
            "speedup": benchmark["ratios"].get(peer["name"]),
        }
        for peer in benchmark["peers"]
    ]


def latency_of(benchmark: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The figures of one contender without its raw times, which stay in the report's benchmark part."""
    for measurement in benchmark["measurements"] if benchmark else ():
        if measurement["name"] == name:
            return {
                key: value for key, value in measurement.items() if key not in {"blocks", "search", "name"}
            }
    return None


def phase_rows(benchmark: Mapping[str, Any] | None) -> list[list[str]]:
    """Rows: engine, then milliseconds at batch 1 of picture to frame, host, enqueue, copy in, engine, copy out.

    Of an engine on a CPU nothing is copied and nothing enqueued: the engine's part is the library's call alone, and the
    host's what ``Session.run`` takes beside it: differences, which say nothing where the timings are invalid, and then
    are left out. Of a GPU's engine they are the phases that its session measured.
    """
    if benchmark is None:
        return []
    sides = {(side["boundary"], side["name"]): side["p50_ms"] for side in benchmark.get("sides", ())}
    is_invalid = (benchmark.get("validity") or {}).get("state") == "invalid"
    rows = []
    for measured in benchmark["measurements"]:
        name, call = measured["name"], measured["p50_ms"]
        engine, image = sides.get(("engine", name)), sides.get(("image", name))
        phases = measured.get("phases")
        if phases is None and (engine is None or is_invalid):
            continue
        parts = phases or {"host_ms": call - engine, "device_ms": engine}
        keys = ("host_ms", "enqueue_ms", "copy_in_ms", "device_ms", "copy_out_ms")
        figures = [
            None if image is None or is_invalid else image - call,
            *(parts.get(key) for key in keys),
            call,
        ]
        rows.append([shown_name(measured), *("-" if ms is None else f"{ms:.3f}" for ms in figures)])
    return rows


def describe_phases(report: Mapping[str, Any]) -> list[str]:
    """The rows of ``phase_rows`` as lines: what of a call of each engine goes where."""
    lines = []
    for name, *figures in phase_rows(report.get("benchmark")):
        known = [(part, ms) for part, ms in zip(PHASE_HEADINGS[1:], figures, strict=True) if ms != "-"]
        lines.append(f"{name}: {', '.join(f'{part} {ms}' for part, ms in known)} ms")
    return lines


def timing_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """What a reader of the timings has to know, each in a sentence."""
    return [
        *_reference_notices(benchmark),
        *_absence_notices(benchmark),
        *_rotation_notices(benchmark),
        *_device_notices(benchmark),
    ]


def _reference_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence where speed-ups are over one of the engines."""
    reference = (benchmark or {}).get("reference")
    if reference is None:
        return []
    return [f"Speed-ups are over {reference['name']}: PyTorch was not timed here, {reference['reason']}."]


def _absence_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each peer that was asked for and not timed."""
    absent = benchmark["absent_peers"] if benchmark else ()
    return [f"{a['name']} was asked for and not timed: {a['reason'].rstrip('.')}." for a in absent]


def _rotation_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence where caches may flatter because few images rotated."""
    if benchmark is None or benchmark["images"] >= _ENOUGH_ROTATING:
        return []
    return [
        f"Only {benchmark['images']} images rotated while timing, {_ENOUGH_ROTATING} are wanted: caches may flatter."
    ]


def _device_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A sentence where speed-ups compare two devices."""
    first, *others = benchmark["measurements"] if benchmark else [{"device": None}]
    apart = [m for m in others if m["device"] != first["device"]]
    if not apart:
        return []
    names = ", ".join(f"{m['name']} ran on {m['device']}" for m in apart)
    return [f"Speed-ups are to {shown_name(first)} on {first['device']}; {names}."]
