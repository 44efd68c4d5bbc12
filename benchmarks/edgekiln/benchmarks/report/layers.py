"""Tables of an engine's layers, and of what two engines compute otherwise. Works on the report's JSON values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["DIFFERENCE_HEADINGS", "LAYER_HEADINGS", "difference_tables", "layer_tables"]

LAYER_HEADINGS = ("layer", "ms", "time %", "MACs %", "computes in", "kernel")
DIFFERENCE_HEADINGS = ("ONNX nodes", "before ms", "after ms", "gained ms", "computes in", "kernels", "fusing")
_SHOWN = 12
"""Rows of each table; report.json has all."""
_NODES = 4


def layer_tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each engine: what it is, its slowest layers, how many more there are, and what the profiler adds."""
    found = []
    for profile in _part(report, "profiles"):
        layers = sorted(profile["layers"], key=lambda row: -(row["ms"] or 0.0))
        found.append(
            {
                "name": profile["engine"],
                "rows": [_layer_row(layer) for layer in layers[:_SHOWN]],
                "more": max(0, len(layers) - _SHOWN),
                "reformats": sum(layer["reformat"] for layer in layers),
                "layers": len(layers),
                "timing": profile["timing"],
                "notes": profile["notes"],
            }
        )
    return found


def difference_tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each engine that was compared with another: both in sums, and the parts that differ most in time."""
    return [
        {
            "before": difference["before"],
            "after": difference["after"],
            "rows": [_difference_row(piece) for piece in difference["pieces"][:_SHOWN]],
            "more": max(0, len(difference["pieces"]) - _SHOWN),
            "notes": difference["notes"],
        }
        for difference in _part(report, "differences")
    ]


def _part(report: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """Empty for a report from before layers were told."""
    layers = (report.get("benchmark") or {}).get("layers") or {}
    part: Sequence[Mapping[str, Any]] = layers.get(name, ())
    return part


def _layer_row(layer: Mapping[str, Any]) -> list[str]:
    nodes = _join(layer["nodes"]) or f"({layer['name']})"
    return [
        f"{layer['kind']}: {nodes}",
        _figure(layer["ms"]),
        _percent(layer["share_of_time"]),
        _percent(layer["share_of_macs"]),
        layer["precision"],
        layer["kernel"] or "-",
    ]


def _difference_row(piece: Mapping[str, Any]) -> list[str]:
    before, after = piece["before"], piece["after"]
    fusing = [f"fused: {_join(group)}" for group in piece["fused"]]
    fusing += [f"no longer fused: {_join(group)}" for group in piece["unfused"]]
    return [
        _join(piece["nodes"]),
        _figure(before["ms"]),
        _figure(after["ms"]),
        _figure(piece["gained_ms"]),
        _change(", ".join(before["precisions"]), ", ".join(after["precisions"])),
        _change(", ".join(before["kernels"]), ", ".join(after["kernels"])),
        "; ".join(fusing) or "-",
    ]


def _join(names: Sequence[str]) -> str:
    more = len(names) - _NODES
    return " + ".join(names[:_NODES]) + (f" and {more} more" if more > 0 else "")


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
