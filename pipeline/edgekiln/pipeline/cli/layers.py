"""Layers on a terminal: the slowest first, with their share of the time and of the MACs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekiln.export.audits.layers.profile import EngineProfile, LayerRow

__all__ = ["describe_layer", "describe_timing", "tell_layers"]


def tell_layers(profile: EngineProfile) -> Iterator[str]:
    """Lines about one engine."""
    yield f"{profile.engine}: {_describe_engine(profile)}"
    if profile.rows:
        yield f"{'ms':>9} {'time':>7} {'MACs':>7}  {'in':8} layer"
    total_ms, total_macs = profile.sum_ms, profile.macs
    for row in profile.slowest_first():
        ms = "-" if row.ms is None else f"{row.ms:.3f}"
        time = _percent(row.ms, total_ms)
        yield f"{ms:>9} {time:>7} {_percent(row.macs, total_macs):>7}  {row.precision:8} {describe_layer(row)}"
    yield from describe_timing(profile)
    yield from profile.notes


def _describe_engine(profile: EngineProfile) -> str:
    library = f"{profile.backend} {profile.version}".rstrip()
    count = profile.threads
    threads = "" if count is None else f"{count} thread{'s' if count > 1 else ''}"
    words = [library, threads, profile.machine, f"batch {profile.batch}", f"{len(profile.rows)} layers"]
    return ", ".join(filter(None, words))


def describe_layer(row: LayerRow) -> str:
    """Its kind, the ONNX nodes that it computes or else its own name, and its kernel."""
    layer = row.layer
    nodes = " + ".join(layer.origins) or f"({layer.name})"
    kernel = f" [{layer.tactic}]" if layer.tactic else ""
    return f"{layer.kind}: {nodes}{kernel}"


def _percent(part: float | None, whole: float | None) -> str:
    return "-" if part is None or not whole else f"{part / whole:.1%}"


def describe_timing(profile: EngineProfile) -> Iterator[str]:
    """What the layers' times are held against: the call without a profiler, and the call with it."""
    timing, total = profile.timing, profile.sum_ms
    if timing is None or total is None:
        return
    yield (
        f"the call takes {timing.call_ms:.3f} ms, with the profiler {timing.profiled_ms:.3f} ms "
        f"({timing.profiled_ms / timing.call_ms - 1:+.0%}); the layers' sum is {total:.3f} ms, "
        f"{total / timing.profiled_ms:.0%} of that ({timing.statistic} of {timing.calls} calls)"
    )
