"""The table of a report: one row an engine, the PyTorch baseline first. Short, with what decides, or whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.judging.gate import format_confidence
from edgekiln.benchmarks.report.timings import find_reference, is_noisy
from edgekiln.runtime.errors import as_printable

__all__ = [
    "CONDITION_HEADINGS",
    "condition_rows",
    "describe_audit",
    "describe_best_pytorch",
    "describe_config",
    "describe_evidence",
    "describe_floor",
    "describe_limits",
    "describe_mlperf",
    "describe_reasons",
    "describe_simulation",
    "describe_static_batches",
    "describe_throughput",
    "escape_markdown",
    "format_markdown",
    "format_text",
    "mlperf_headings",
    "mlperf_rows",
    "short_headings",
    "short_rows",
    "table_headings",
    "table_rows",
    "throughput_headings",
    "throughput_rows",
]

_LOADGEN_TOLERANCE = 0.05
"""Our median over LoadGen's: further from 1, the two stopwatches do not tell the same."""


def table_headings(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the columns of ``table_rows`` hold, with the confidence of each interval."""
    gate = format_confidence(report["recipe"]["gate"]["confidence"])
    return (
        "engine",
        "precision",
        "MB",
        "top-1 %",
        f"top-1 drop, points [{gate} CI]",
        "balanced %",
        f"balanced drop [{gate} CI]",
        "p50 ms",
        "p99 ms",
        _speedup_heading(report),
        "verdict",
    )


def short_headings(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the columns of ``short_rows`` hold."""
    gate = report["recipe"]["gate"]
    what = "balanced" if _is_balanced(report) else "top-1"
    drop = f"drop, points [{format_confidence(gate['confidence'])} CI]"
    return ("engine", f"{what} %", drop, "p50 / p99 ms", _speedup_heading(report), "MB", "verdict")


def short_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What decides: of ``table_rows`` the accuracy that the gate judges by, its drop, times, size and verdict."""
    rows: list[tuple[str, ...]] = []
    for name, _, size, top1, drop, balanced, balanced_drop, p50, p99, speedup, verdict in table_rows(report):
        judged = (balanced, balanced_drop) if _is_balanced(report) else (top1, drop)
        times = "-" if p50 == "-" else f"{p50} / {p99}"
        rows.append((name, *judged, times, speedup, size, verdict))
    return rows


def describe_reasons(report: Mapping[str, Any]) -> list[str]:
    """Why each engine that did not pass did not, in one line each."""
    return [
        " ".join(f"{v['name']}: {v['verdict']}: {v['reason']}{describe_simulation(v)}".split())
        for v in report["variants"]
        if v["verdict"] != "pass"
    ]


def describe_evidence(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """That drops are of test and val together, and what each split says alone; nothing where test alone judged."""
    both = [v for v in variants if v.get("drop_by_split")]
    if not both:
        return []
    images = {name: part["counts"]["images"] for name, part in both[0]["drop_by_split"].items()}
    metric = "balanced_drop" if both[0]["metric"] == "balanced" else "drop"
    alone = "; ".join(
        f"{v['name']} {100 * v['drop_by_split']['test'][metric]['value']:+.2f} and "
        f"{100 * v['drop_by_split']['val'][metric]['value']:+.2f}"
        for v in both
    )
    return [
        f"Drops and verdicts are of {images['test']} test and {images['val']} val images together, as gate.evidence = "
        f"'test+val' asks; accuracy is of test alone. Points lost on test and on val: {alone}."
    ]


def _is_balanced(report: Mapping[str, Any]) -> bool:
    return bool(report["recipe"]["gate"].get("metric") == "balanced")


def _speedup_heading(report: Mapping[str, Any]) -> str:
    """Over what, when that is not PyTorch; and whether the timings are noisy."""
    reference = find_reference(report)
    over = "" if reference is None else f" over {reference}"
    noisy = "noisy " if is_noisy(report) else ""
    return f"{noisy}speed-up{over} [95% CI]"  # always: benchmarks/timing/measurement.py


def table_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One tuple of strings per engine, in the order of ``table_headings``; what was not measured is a dash.

    Speed-ups are over PyTorch, or over the engine that the heading names.
    """
    rows = [_row(report["baseline"], verdict="baseline")]
    rows += [_row(p, verdict="faster peer" if p.get("faster") else "peer") for p in report.get("peers", ())]
    rows += [_row(variant, verdict=variant["verdict"]) for variant in report["variants"]]
    return rows


def _row(engine: Mapping[str, Any], verdict: str) -> tuple[str, ...]:
    accuracy, latency = engine.get("accuracy"), engine.get("latency")
    return (
        engine["name"] if verdict != "baseline" else "PyTorch",
        engine["precision"],
        f"{engine['size'] / 1e6:.2f}" if engine.get("size") else "-",
        f"{100 * accuracy['top1']:.2f}" if accuracy else "-",
        _interval(engine.get("drop"), 100, "+.2f"),
        f"{100 * accuracy['balanced']:.2f}" if accuracy else "-",
        _interval(engine.get("balanced_drop"), 100, "+.2f"),
        f"{latency['p50_ms']:.2f}" if latency else "-",
        f"{latency['p99_ms']:.2f}" if latency and latency["p99_ms"] is not None else "-",
        _interval(engine.get("speedup"), 1, ".2f", "x"),
        verdict,
    )


def _interval(values: Mapping[str, float] | None, factor: float, form: str, unit: str = "") -> str:
    if values is None:
        return "-"
    value, low, high = (format(factor * values[key], form) for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def mlperf_headings() -> tuple[str, ...]:
    """What the columns of ``mlperf_rows`` hold."""
    return (
        "engine",
        "scenario",
        "LoadGen says",
        "LoadGen p50 / p90 / p99 ms",
        "our p50 / p90 / p99 ms",
        "LoadGen samples/s",
        "our samples/s",
        "ours / LoadGen",
    )


def mlperf_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One tuple of strings per engine and scenario that LoadGen drove."""
    return [_mlperf_row(result) for result in (report.get("mlperf") or {}).get("results", ())]


def _mlperf_row(result: Mapping[str, Any]) -> tuple[str, ...]:
    theirs, ours = result["loadgen"], result["ours"]
    single = result["scenario"] == "SingleStream"
    # Offline a latency counts from the start of the one query, which is no figure of the engine.
    times = [" / ".join(f"{side[f'p{q}_ms']:.3f}" for q in (50, 90, 99)) for side in (theirs, ours) if single]
    ratios = [f"{value:.3f}" for key, value in sorted(result.items()) if key.startswith("ours_over_loadgen")]
    return (
        result["variant"],
        result["scenario"],
        result["result"],
        *(times or ("-", "-")),
        f"{theirs['samples_per_second']:.1f}",
        f"{ours['samples_per_second']:.1f}",
        (" (p50), ".join(ratios) + " (p90)") if single else ratios[0],
    )


def describe_mlperf(report: Mapping[str, Any]) -> list[str]:
    """What the table of LoadGen does not say, a sentence each: why not tried, why invalid, what was left out."""
    found = report.get("mlperf")
    if not found:
        return []
    lines = []
    if found["reason"]:
        lines.append(f"Asked for, not tried: {found['reason']} {found['remedy'] or ''}".strip())
    for result in found["results"]:
        name = f"{result['variant']}, {result['scenario']}"
        ratio = result.get("ours_over_loadgen_p50")
        # A ratio that is no number is no agreement either.
        if ratio is not None and not abs(ratio - 1) <= _LOADGEN_TOLERANCE:
            lines.append(f"{name}: our p50 differs by {100 * (ratio - 1):+.1f} % from LoadGen's.")
        if not result["valid"]:
            lines.append(f"{name}: LoadGen calls its run {result['result']}: {'; '.join(result['reasons'])}")
    shortfalls = dict.fromkeys(text for result in found["results"] for text in result["shortfalls"])
    if shortfalls:
        lines.append(f"Not of MLPerf's length: {'; '.join(shortfalls)}.")
    for entry in found["left_out"]:
        what = entry["name"] if entry["scenario"] is None else f"{entry['name']}, {entry['scenario']}"
        lines.append(f"{what} was not driven: {entry['reason']}.")
    return lines


def format_text(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """Columns padded with spaces, numbers to the right; nothing but text, so that it can be pasted anywhere."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in {0, 1, len(widths) - 1} else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_markdown(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """A Markdown table; nothing in a name can break it."""
    escaped = [[_escape_cell(cell) for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: Any) -> str:
    """Text as Markdown that shows it letter for letter, in one line: a class may be called ``*x*`` or ``a|b``."""
    return _LINE_START.sub(r"\1\\\2", _escape_cell(str(text)))


def _escape_cell(text: str) -> str:
    shown = as_printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\g<0>", shown)


_MARKS = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:])")
"""What marks something anywhere in a line; underscores do only at the ends of a word, brackets only before a link."""
_LINE_START = re.compile(r"^(\d*)([#+=.)-])")
"""What begins a heading, a rule or a list where a line begins."""


def describe_simulation(variant: Mapping[str, Any]) -> str:
    """What the CPU simulation of an engine that did not run here says, in a sentence; empty without one."""
    simulated = variant.get("simulated")
    if not simulated:
        return ""
    return (
        f" Simulated on the CPU: top-1 {100 * simulated['top1']:.2f} %, {simulated['flips']} of "
        f"{simulated['images']} answers differ from PyTorch. A simulation is no verdict."
    )


def describe_audit(variant: Mapping[str, Any]) -> str:
    """What an engine really computes with, and how that is known, in a sentence; empty where nothing is known."""
    audit = variant.get("audit") or {}
    if audit.get("share") is None:
        return ""
    if "evidence" not in audit:
        return f"{audit['share']:.0%} of its products and residual adds run in INT8 (onnxruntime's optimized graph)."
    source = {
        "inspector": "TensorRT's engine inspector",
        "rtx-plan": "the engine's own plan",
        "openvino": "OpenVINO's runtime model",
    }[audit["evidence"]]
    reformats = f", {audit['reformats']} reformats" if audit["reformats"] else ""
    return (
        f"{audit['share']:.0%} of its MACs run in {audit['precision'].upper()} or less ({source}){reformats}."
    )


def describe_static_batches(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What models for single batch sizes answered next to the one that was judged, a sentence; none without such."""
    if not rows:
        return []
    flips, furthest = (max(row[key] for row in rows) for key in ("flips", "max_difference"))
    return [
        f"{name}: calls of exactly {' or '.join(str(row['batch']) for row in rows)} pictures run in a model of their "
        f"own. There at most {flips} of {rows[0]['images']} test pictures get another class than in the model that the "
        f"gate judged, and logits differ by at most {furthest:.2g}."
    ]


def describe_config(config: Mapping[str, Any]) -> str:
    """A contender's configuration in words: ``2 threads, channels_last``."""
    if "search" in config:  # PyTorch on a GPU
        return "cuDNN's fastest algorithms" if config["search"] else "cuDNN's usual algorithms"
    threads = config.get("threads")
    words = ["default threads" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}"]
    if "channels_last" in config:
        words.append("channels_last" if config["channels_last"] else "contiguous")
    return ", ".join(words)


def describe_floor(report: Mapping[str, Any]) -> str:
    """How near each engine is to what the machine could do, in a line; empty where no floor is known."""
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"]]
    latencies = [(engine["name"], engine.get("latency") or {}) for engine in engines]
    shares = [
        f"{name} {latency['share_of_floor']:.0%}"
        for name, latency in latencies
        if latency.get("share_of_floor")
    ]
    return (
        f"share of the floor: {', '.join(shares)} (100% is the machine's measured ceiling)" if shares else ""
    )


def describe_best_pytorch(report: Mapping[str, Any]) -> str:
    """How many times faster each engine is than the fastest way to run PyTorch that was timed; empty without peers.

    Quotients of the speed-ups to the baseline, without an interval of their own.
    """
    speeds = {
        peer["name"]: peer["speedup"]["value"]
        for peer in report.get("peers", ())
        if peer["name"].startswith("pytorch") and peer.get("speedup")
    }
    timed = [(v["name"], v["speedup"]["value"]) for v in report["variants"] if v.get("speedup")]
    if not speeds or not timed:
        return ""
    name, best = max([("PyTorch eager", 1.0), *speeds.items()], key=lambda entry: entry[1])
    ratios = ", ".join(f"{engine} {value / best:.2f}x" for engine, value in timed)
    return f"against the fastest PyTorch, {name} ({best:.2f}x the baseline): {ratios}"


def throughput_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, then images per second at each batch size and with each number of callers, lowest to highest."""
    found = (report.get("benchmark") or {}).get("throughput") or {}
    return [
        [name, *(_rate(row) for row in (*rates["batches"], *rates["callers"]))]
        for name, rates in found.items()
    ]


def throughput_headings(report: Mapping[str, Any]) -> list[str]:
    """What the columns of ``throughput_rows`` hold; of reports without any, nothing."""
    found = (report.get("benchmark") or {}).get("throughput") or {}
    for rates in found.values():
        sizes = [f"batch {row['batch']}" for row in rates["batches"]]
        return ["images/s", *sizes, *(f"{row['callers']} callers" for row in rates["callers"])]
    return []


def _rate(row: Mapping[str, Any]) -> str:
    if "problem" in row:
        return "failed"
    told = f"{row['images_per_second']:.4g} ({row['low']:.4g} to {row['high']:.4g})"
    return f"{told}; {row['p50_ms']:.3g} ms" if "p50_ms" in row else told  # not in reports before version 1.2


def describe_throughput(report: Mapping[str, Any]) -> list[str]:
    """The most images per second of each engine and how, a line; and each size that failed with its reason."""
    lines = []
    for name, rates in ((report.get("benchmark") or {}).get("throughput") or {}).items():
        rows = [*rates["batches"], *rates["callers"]]
        sound = [row for row in rows if "problem" not in row]
        if sound:
            best = max(sound, key=lambda row: float(row["images_per_second"]))
            how = f"{best['callers']} callers" if best["callers"] > 1 else f"batch {best['batch']}"
            lines.append(f"{name}: {best['images_per_second']:.4g} images/s at most, with {how}")
        lines += [
            f"{name}, batch {row['batch']}, callers {row['callers']}: {row['problem']}"
            for row in rows
            if "problem" in row
        ]
    return lines


def condition_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: when, CPU clock, governor, hottest zone, power mode, GPU, what throttled it; before, during and after."""
    return [
        [
            read["when"],
            " to ".join(f"{mhz:.0f}" for mhz in dict.fromkeys(read["cpu_mhz"])) if read["cpu_mhz"] else "-",
            ", ".join(read["governors"]) or "-",
            _hottest(read["temperatures_c"]),
            read["power_mode"] or "-",
            "; ".join(_describe_gpu(gpu) for gpu in read["gpus"]) or "-",
            ", ".join([*read["throttled_by"], *_gpu_causes(read)]) or "-",
        ]
        for read in (report.get("benchmark") or {}).get("conditions", ())
    ]


CONDITION_HEADINGS = ("when", "CPU MHz", "governor", "hottest", "power mode", "GPU", "throttled by")
"""What the columns of ``condition_rows`` hold."""


def _hottest(zones: Mapping[str, float]) -> str:
    if not zones:
        return "-"
    name = max(zones, key=lambda zone: zones[zone])
    return f"{zones[name]:.0f} °C ({name})"


def _describe_gpu(gpu: Mapping[str, Any]) -> str:
    told = [(gpu.get("sm_mhz"), "MHz"), (gpu.get("temperature_c"), "°C"), (gpu.get("power_w"), "W")]
    return ", ".join(f"{value:.0f} {unit}" for value, unit in told if isinstance(value, int | float))


def _gpu_causes(read: Mapping[str, Any]) -> list[str]:
    return sorted({cause for gpu in read["gpus"] for cause in gpu.get("throttled_by") or ()} - {"idle"})


def describe_limits(measurement: Mapping[str, Any]) -> str:
    """Floor and memory of one engine, in a sentence; empty where neither is known."""
    words = []
    if measurement.get("share_of_floor"):
        words.append(
            f"{measurement['share_of_floor']:.0%} of what the machine could do: the floor is "
            f"{measurement['floor_ms']:.3g} ms, the median {measurement['p50_ms']:.3g} ms"
        )
    if measurement.get("peak_rss_mb"):
        words.append(f"peak memory of its process {measurement['peak_rss_mb']:.0f} MB")
    if measurement.get("device_mb"):
        words.append(f"{measurement['device_mb']:.0f} MB of the GPU")
    return f"{'; '.join(words)}." if words else ""
