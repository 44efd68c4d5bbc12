"""What the report says of its benchmark beside the engines' own rows: figures of a contender, peers, notices.

Works on the JSON values of the benchmark alone; ``None`` stands for a run without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["latency_of", "peer_rows", "timing_notices"]

_ENOUGH_ROTATING = 64


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


def timing_notices(benchmark: Mapping[str, Any] | None) -> list[str]:
    """What a reader of the timings has to know, each in a sentence."""
    return [*_absence_notices(benchmark), *_rotation_notices(benchmark), *_device_notices(benchmark)]


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
    return [f"Speed-ups are to PyTorch on {first['device']}; {names}."]
