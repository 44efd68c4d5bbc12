"""The page, the table and the summary of several devices side by side; see ``comparing/fleet.py``. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.judging.gate import format_confidence
from edgekiln.benchmarks.report.charts.accuracy import drop_of
from edgekiln.benchmarks.report.charts.fleet import draw_device_drops, draw_device_latencies
from edgekiln.benchmarks.report.charts.speed import draw_accuracy_latency
from edgekiln.benchmarks.report.page import render_template
from edgekiln.benchmarks.report.table import CONDITION_HEADINGS, condition_rows, format_markdown
from edgekiln.benchmarks.report.timings import shown_name

__all__ = [
    "describe_fleet",
    "fleet_headings",
    "fleet_rows",
    "render_fleet_page",
    "render_fleet_summary",
    "tell_fleet",
]

_MAX_LISTED = 200
"""Differing answers listed by picture, of each variant; ``--json`` has all."""

_MAX_DRAWN = 12
"""Devices of which an own chart is drawn; the tables have all."""


def render_fleet_page(fleet: Mapping[str, Any]) -> str:
    """The devices as one HTML page: no script, nothing from elsewhere; every value is escaped."""
    names = _variant_names(fleet)
    done = [device for device in fleet["devices"] if device["state"] == "done"]
    return render_template(
        "fleet.html",
        fleet=fleet,
        state=_state_of(fleet),
        headline=tell_fleet(fleet),
        first=_answer_first(fleet),
        short=[_short_row(device) for device in fleet["devices"]],
        notices=describe_fleet(fleet),
        names=names,
        matrix=[_verdicts(device, names) for device in fleet["devices"]],
        headings=fleet_headings(fleet),
        rows=fleet_rows(fleet),
        drops=[(name, drawing) for name in names if (drawing := draw_device_drops(fleet, name))],
        latencies=draw_device_latencies(fleet),
        paretos=[(d, draw_accuracy_latency(d)) for d in done[:_MAX_DRAWN]],
        not_drawn=[d["name"] for d in done[_MAX_DRAWN:]],
        differences=[_difference(entry) for entry in fleet["differences"]],
        condition_headings=CONDITION_HEADINGS,
        conditions=[(d, describe_device(d), condition_rows(d)) for d in done],
        max_listed=_MAX_LISTED,
    )


def render_fleet_summary(fleet: Mapping[str, Any]) -> str:
    """The devices as a short Markdown summary for a pull request; no links."""
    return render_template(
        "fleet.md",
        fleet=fleet,
        headline=tell_fleet(fleet),
        notices=describe_fleet(fleet),
        markdown_table=format_markdown(fleet_rows(fleet), fleet_headings(fleet)),
        differences=[_difference(entry) for entry in fleet["differences"]],
    )


def tell_fleet(fleet: Mapping[str, Any]) -> str:
    """Which required devices lack a variant that passes, in a sentence, and on how many devices one passes."""
    devices, failing = fleet["devices"], fleet["failing"]
    passing = sum(bool(device["passing"]) for device in devices)
    count = f"On {passing} of {len(devices)} devices a variant passes."
    required = sum(device["required"] for device in devices)
    if failing:
        told = ", ".join(failing)
        return f"No variant passes on {told}, which {'is' if len(failing) == 1 else 'are'} required. {count}"
    return f"{count} {'All that are required are among them.' if required else 'No device is required.'}"


def _state_of(fleet: Mapping[str, Any]) -> tuple[str, str, str]:
    """CSS class, mark and word of the whole."""
    if fleet["failing"]:
        return "fail", "✗", "Failed"
    if any(device["required"] for device in fleet["devices"]):
        return "pass", "✓", "Passed"
    return "none", "-", "Nothing required"


def describe_fleet(fleet: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the figures, a sentence each."""
    told = []
    for device in fleet["devices"]:
        name = device["name"]
        if device["state"] != "done":
            told.append(f"{name} has no result: {(device['why'] or 'not told why').rstrip('.')}.")
        if device["emulated_on"]:
            told.append(
                f"{name} is an emulated processor, on {device['emulated_on']}: its answers are told, and no time, "
                "ratio or energy."
            )
        validity = (device["benchmark"] or {}).get("validity")
        if validity and validity["state"] != "valid":
            told.append(f"The timings of {name} are {validity['state']}: {'; '.join(validity['reasons'])}.")
    return [*told, *fleet["notes"]]


# --------------------------------------------------------------------------------------------------------------
# Tables


def fleet_headings(fleet: Mapping[str, Any]) -> tuple[str, ...]:
    """What the columns of ``fleet_rows`` hold."""
    gate = fleet["recipe"]["gate"]
    what = "balanced" if gate.get("metric") == "balanced" else "top-1"
    drop = f"drop, points [{format_confidence(gate['confidence'])} CI]"
    return ("device", "variant", f"{what} %", drop, "p50 ms", "p99 ms", "mJ / image", "cold start ms", "images/s",
            "verdict")  # fmt: skip


def fleet_rows(fleet: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One tuple of strings for each variant on each device; what was not measured, or may not be told, is a dash.

    Cold start is from the start of the process to the first answer, images/s the most at any batch size and number of
    callers.
    """
    balanced = fleet["recipe"]["gate"].get("metric") == "balanced"
    rows: list[tuple[str, ...]] = []
    for device in fleet["devices"]:
        if device["state"] != "done":
            rows.append((device["name"], "-", "-", "-", "-", "-", "-", "-", "-", "no result"))
        for v in device["variants"]:
            accuracy = v["accuracy"] and v["accuracy"]["balanced" if balanced else "top1"]
            cold, rate = v["cold_start"], v["images_per_second"]
            rows.append(
                (
                    device["name"],
                    v["name"],
                    "-" if accuracy is None else f"{100 * accuracy:.2f}",
                    _drop(v),
                    *_times(v["latency"]),
                    _energy(v["latency"]),
                    "-" if cold is None else f"{sum(cold.values()):.0f}",
                    "-" if rate is None else f"{rate:.4g}",
                    v["verdict"],
                )
            )
    return rows


def _drop(variant: Mapping[str, Any]) -> str:
    drop = drop_of(variant)
    if drop is None:
        return "-"
    value, low, high = (f"{100 * drop[key]:+.2f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _times(latency: Mapping[str, Any] | None) -> tuple[str, str]:
    if latency is None:
        return "-", "-"
    slow = latency["p99_ms"]
    return f"{latency['p50_ms']:.2f}", "-" if slow is None else f"{slow:.2f}"


def _energy(latency: Mapping[str, Any] | None) -> str:
    """With the bound of its error; what that bound hides is not told as a figure."""
    energy = (latency or {}).get("energy")
    if not energy:
        return "-"
    if abs(energy["mj_per_image"]) <= energy["error_mj"]:
        return "not resolved"
    return f"{energy['mj_per_image']:.3g} ± {energy['error_mj']:.2g}"


def _variant_names(fleet: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(v["name"] for device in fleet["devices"] for v in device["variants"]))


def _verdicts(device: Mapping[str, Any], names: list[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The device, and its verdict of each variant; empty where it has none of that name."""
    known = {v["name"]: v["verdict"] for v in device["variants"]}
    return device, [known.get(name, "") for name in names]


def _short_row(device: Mapping[str, Any]) -> dict[str, str]:
    """One short line a device: the best verdict of a variant, which is the fastest, its median and what it lost."""
    best = next((v for v in device["variants"] if v["name"] == device.get("best")), None)
    verdicts = {v["verdict"] for v in device["variants"]}
    state = next((word for word in ("pass", "inconclusive", "fail") if word in verdicts), "not-run")
    return {
        "name": device["name"],
        "state": state,
        "best": best["name"] if best else ", ".join(device["passing"]) or "-",
        "median": f"{best['latency']['p50_ms']:.2f} ms" if best else "-",
        "lost": f"{100 * drop['value']:+.2f}" if best and (drop := drop_of(best)) else "-",
        "machine": describe_device(device),
    }


def describe_device(device: Mapping[str, Any]) -> str:
    """Board, processor, cores and GPU in a line; that it is emulated, where it is."""
    machine = device["machine"]
    if machine is None:
        return "-"
    gpus = [gpu["name"] for gpu in machine["gpus"] or ()]
    emulated = f"emulated on {device['emulated_on']}" if device["emulated_on"] else None
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return ", ".join(filter(None, [machine["board"], machine["cpu"], cores, *gpus, emulated]))


# --------------------------------------------------------------------------------------------------------------
# First screen, differences


def _answer_first(fleet: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Four answers: a question, a figure, its unit, what stands below."""
    devices = fleet["devices"]
    passing = [d["name"] for d in devices if d["passing"]]
    images, classes = fleet["data"]["counts"]["test"], len(fleet["data"]["classes"])
    return [
        ("Where one passes", f"{len(passing)} of {len(devices)}", "devices", ", ".join(passing) or "nowhere"),
        ("What an image takes", *_tell_spread(fleet)),
        ("Where answers differ", *_tell_differing(fleet)),
        ("On what", f"{images}", "pictures", f"held out, {classes} classes, the same on every device"),
    ]


def _tell_spread(fleet: Mapping[str, Any]) -> tuple[str, str, str]:
    """The best variant's median on the fastest and on the slowest device."""
    timed = [
        (v["latency"]["p50_ms"], v["name"], d["name"])
        for d in fleet["devices"]
        for v in d["variants"]
        if v["name"] == d.get("best")
    ]
    if not timed:
        return "-", "", "Nothing was timed that may be told"
    fast, slow = min(timed), max(timed)
    figure = f"{fast[0]:.3g}" if len(timed) == 1 else f"{fast[0]:.2g} to {slow[0]:.2g}"
    places = dict.fromkeys(f"{name} on {device}" for _, name, device in (fast, slow))
    return figure, "ms", f"median of the fastest that passes: {' to '.join(places)}"


def _tell_differing(fleet: Mapping[str, Any]) -> tuple[str, str, str]:
    compared = [entry for entry in fleet["differences"] if entry["images"]]
    if not compared:
        return "-", "", "No variant was judged on two devices"
    pictures = {answer["sha256"] for entry in compared for answer in entry["answers"]}
    apart = max(entry["max_logit_difference"] for entry in compared)
    return f"{len(pictures)}", "pictures", f"logits up to {apart:.2g} apart between devices"


def _difference(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's differing answers as lines of a table, and what its devices have in common, in words."""
    return {
        "variant": entry["variant"],
        "images": entry["images"],
        "count": len(entry["answers"]),
        "devices": entry["devices"],
        "not_kept": entry["not_kept"],
        "apart": entry["max_logit_difference"],
        "headings": ["picture", "is", shown_name({"name": "baseline"}), *entry["devices"]],
        "rows": [
            [
                answer["picture"] or f"sha256 {answer['sha256'][:12]}",
                answer["label"],
                answer["pytorch"],
                *(answer["by_device"][device] for device in entry["devices"]),
            ]
            for answer in entry["answers"][:_MAX_LISTED]
        ],
    }
