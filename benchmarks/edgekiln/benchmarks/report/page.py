"""The HTML page, the model card and the summary of a report. The page is one file: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.judging.gate import format_confidence
from edgekiln.benchmarks.report.charts.accuracy import (
    MOST_CLASSES,
    compare_confusions,
    confusion_matrix,
    draw_drops,
    draw_recalls,
    recall_changes,
)
from edgekiln.benchmarks.report.charts.precision import draw_precisions, draw_search
from edgekiln.benchmarks.report.charts.speed import (
    draw_accuracy_latency,
    draw_distributions,
    draw_series,
    draw_speedups,
)
from edgekiln.benchmarks.report.charts.training import draw_training
from edgekiln.benchmarks.report.first_screen import answer_first, engine_lines, tell_headline
from edgekiln.benchmarks.report.layers import (
    DIFFERENCE_HEADINGS,
    LAYER_HEADINGS,
    difference_tables,
    layer_tables,
)
from edgekiln.benchmarks.report.peers import cell_headings, cell_rows, describe_made
from edgekiln.benchmarks.report.table import (
    CONDITION_HEADINGS,
    condition_rows,
    describe_audit,
    describe_best_pytorch,
    describe_config,
    describe_limits,
    describe_mlperf,
    describe_simulation,
    escape_markdown,
    format_markdown,
    mlperf_headings,
    mlperf_rows,
    short_headings,
    short_rows,
    table_headings,
    table_rows,
    throughput_headings,
    throughput_rows,
)
from edgekiln.benchmarks.report.timings import PHASE_HEADINGS, phase_rows, shown_name
from edgekiln.runtime.errors import as_printable
from edgekiln.runtime.extras import import_extra

__all__ = ["render_card", "render_page", "render_summary", "render_template"]

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_LISTED = 200
"""Changed answers listed by name, of each engine; report.json has all."""


def render_page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page; every value is escaped, so a class may be called ``<script>``."""
    timed = bool(report.get("benchmark"))
    charts = {
        "speedups": draw_speedups(report),
        "drops": draw_drops(report),
        "pareto": draw_accuracy_latency(report),
        "latency": draw_distributions(report) if timed else "",
        "series": draw_series(report) if timed else "",
        "precision": draw_precisions(report),
        "training": draw_training(report),
    }
    return _render(
        "page.html",
        report,
        charts=charts,
        first=answer_first(report),
        engine_lines=engine_lines(report),
        confusions=_confusions(report),
        recalls=_recalls(report),
        headline=tell_headline(report),
        boundaries=_boundaries(report),
        phase_headings=PHASE_HEADINGS,
        phase_rows=phase_rows(report.get("benchmark")),
        throughput_headings=throughput_headings(report),
        throughput_rows=throughput_rows(report),
        condition_headings=CONDITION_HEADINGS,
        condition_rows=condition_rows(report),
        cell_headings=cell_headings(report),
        cell_rows=cell_rows(report),
        made_peers=[line for peer in report.get("peers", ()) if (line := describe_made(peer))],
        layer_headings=LAYER_HEADINGS,
        layer_tables=layer_tables(report),
        difference_headings=DIFFERENCE_HEADINGS,
        difference_tables=difference_tables(report),
        floors=_floors(report),
        energies=_energies(report),
        no_energy=_explain_no_energy(report),
        searches=_searches(report),
        answers=_answers(report),
        doctors=_doctors(report),
        environment=_describe_environment(report),
        few_classes=MOST_CLASSES,
        max_listed=_MAX_LISTED,
    )


def render_card(report: Mapping[str, Any]) -> str:
    """The report as a Markdown model card."""
    return _render(
        "card.md", report, markdown_table=format_markdown(table_rows(report), table_headings(report))
    )


def render_summary(report: Mapping[str, Any], *, wide: bool = False) -> str:
    """The report as a short Markdown summary for a pull request: verdicts, table, notices; no links.

    The table has what decides, or with ``wide`` every column.
    """
    rows, headings = (table_rows, table_headings) if wide else (short_rows, short_headings)
    return _render(
        "summary.md",
        report,
        markdown_table=format_markdown(rows(report), headings(report)),
        mlperf_table=format_markdown(mlperf_rows(report), mlperf_headings()),
        headline=tell_headline(report),
    )


def _render(template: str, report: Mapping[str, Any], **extra: Any) -> str:
    return render_template(
        template,
        report=report,
        headings=table_headings(report),
        rows=table_rows(report),
        mlperf_headings=mlperf_headings(),
        mlperf_rows=mlperf_rows(report),
        mlperf_lines=describe_mlperf(report),
        **extra,
    )


def render_template(template: str, **values: Any) -> str:
    """A template of this folder filled in; in HTML every value is escaped that is no Markup.

    Pages extend ``base.html``, which writes ``style.css`` into each of them, so that a page stays one file. What the
    macro ``section`` opens stands in the page's list of contents.
    """
    jinja2 = import_extra("jinja2", "build")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        finalize=_without_controls if template.endswith(".html") else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "config": describe_config,
        "confidence": format_confidence,
        "limits": describe_limits,
        "best_pytorch": describe_best_pytorch,
        "audit": describe_audit,
        "shown": shown_name,
        "simulation": describe_simulation,
        "plain": escape_markdown,  # a reason may quote a name of the user's
    }
    text: str = environment.get_template(template).render(contents=[], **values)
    return text


def _without_controls(value: Any) -> Any:
    """A text of a page with escapes in the place of what would turn it round; drawings and line ends are left alone."""
    if type(value) is not str:
        return value
    return "\n".join(as_printable(line) for line in value.split("\n"))


def _confusions(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each judged engine: which classes it lost, what it confuses that PyTorch did not, and its recalls."""
    baseline = report["baseline"].get("accuracy")
    classes = [as_printable(name) for name in report["data"]["classes"]]
    judged = [v for v in report["variants"] if v.get("accuracy")] if baseline else []
    parts = []
    for variant in judged:
        changes = recall_changes(baseline, variant["accuracy"], classes)
        lost = [(name, recall - own) for name, own, recall in changes if recall < own]
        shown = changes if len(classes) <= MOST_CLASSES else [c for c in changes if c[1] != c[2]]
        before, now = confusion_matrix(baseline), confusion_matrix(variant["accuracy"])
        parts.append(
            {
                "name": variant["name"],
                "lost": len(lost),
                "losses": lost[:3],
                "heat": compare_confusions(before, now, classes),
                "recalls": draw_recalls(shown[:MOST_CLASSES], variant["name"]),
            }
        )
    return parts


def _recalls(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Headings and rows of the recall of each class by each engine; of many classes those that an engine changed."""
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"]]
    engines = [e for e in engines if e.get("accuracy")]
    if len(engines) < 2:
        return None
    columns = [engine["accuracy"]["recall"] for engine in engines]
    rows = [(name, *(column[i] for column in columns)) for i, name in enumerate(report["data"]["classes"])]
    changed = [row for row in rows if len(set(row[1:])) > 1]
    shown = rows if len(rows) <= _MAX_LISTED else changed[:_MAX_LISTED]
    return {
        "headings": ["class", *(f"{engine['name']} %" for engine in engines)],
        "rows": [[row[0], *("-" if r is None else f"{100 * r:.2f}" for r in row[1:])] for row in shown],
        "classes": len(rows),
        "changed": len(changed),
    }


def _boundaries(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, bare library call, Session.run, picture to label, import, load, first answer, repeated image."""
    benchmark = report.get("benchmark") or {}
    sides = {(m["boundary"], m["name"]): m["p50_ms"] for m in benchmark.get("sides", ())}
    rows = []
    for measurement in benchmark.get("measurements", ()):
        name = measurement["name"]
        cold = benchmark.get("cold_start", {}).get(name, {})
        repeated = benchmark.get("repeated_image", {}).get(name)
        times = (
            sides.get(("engine", name)), measurement["p50_ms"], sides.get(("image", name)),
            cold.get("import_ms"), cold.get("load_ms"), cold.get("first_result_ms"),
        )  # fmt: skip
        figures = ["-" if time is None else f"{time:.2f}" for time in times]
        rows.append([shown_name(measurement), *figures, "-" if repeated is None else f"{repeated:.2f}x"])
    return rows


def _floors(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, median, floor, share of it; of the engines whose floor is known."""
    engines = [{**report["baseline"], "name": "PyTorch"}, *report["variants"]]
    known = [(e["name"], e["latency"]) for e in engines if (e.get("latency") or {}).get("share_of_floor")]
    return [
        [name, f"{t['p50_ms']:.3g}", f"{t['floor_ms']:.3g}", f"{t['share_of_floor']:.0%}"]
        for name, t in known
    ]


def _answers(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows of every figure of an engine's answers that the main table has no room for, the baseline's own first."""
    rows = []
    for engine in ({**report["baseline"], "name": "PyTorch"}, *report["variants"]):
        accuracy = engine.get("accuracy")
        if not accuracy:
            continue
        rows.append(
            [
                engine["name"],
                "-" if accuracy["top5"] is None else f"{100 * accuracy['top5']:.2f}",
                f"{accuracy['ece']:.4f}",
                *(_format_pairs(engine) if engine.get("counts") else ["-"] * 7),
                str(accuracy["distinct_outputs"]),
            ]
        )
    return rows


def _format_pairs(engine: Mapping[str, Any]) -> list[str]:
    counts = engine["counts"]
    differences = (engine[key] for key in ("max_logit_difference", "mean_logit_difference", "kl_nats"))
    return [
        f"{100 * counts['agreeing'] / counts['images']:.2f}",
        str(counts["broken"]),
        str(counts["mended"]),
        f"{engine['mcnemar_p']:.2g}",
        *(f"{value:.3g}" for value in differences),
    ]


def _doctors(report: Mapping[str, Any]) -> list[tuple[str, int, Mapping[str, Any] | None, Sequence[str]]]:
    """Each variant that was calibrated: how its method was chosen, and what the calibration doctor said."""
    calibrations = [(v["name"], v.get("calibration") or {}) for v in report["variants"]]
    return [
        (name, c["images"], c.get("choice"), c["doctor"]["warnings"])
        for name, c in calibrations
        if "doctor" in c
    ]


def _energies(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: engine, energy of an image with the bound of its error, idle and busy power, images, source."""
    rows = []
    for measurement in (report.get("benchmark") or {}).get("measurements", ()):
        energy = measurement.get("energy")
        if energy:
            figure = f"{energy['mj_per_image']:.3g} ± {energy['error_mj']:.2g}"
            resolved = abs(energy["mj_per_image"]) > energy["error_mj"]
            rows.append(
                [
                    shown_name(measurement),
                    figure if resolved else f"{figure}: not resolved",
                    f"{energy['idle_watts']:.2f}",
                    f"{energy['busy_watts']:.2f}",
                    str(energy["images"]),
                    energy["source"],
                ]
            )
    return rows


def _explain_no_energy(report: Mapping[str, Any]) -> list[str]:
    """Why engines have no energy, one line for all that share the reason."""
    names: dict[str, list[str]] = {}
    measurements = (report.get("benchmark") or {}).get("measurements", ())
    for measurement in measurements:
        if reason := measurement.get("energy_reason"):
            names.setdefault(reason, []).append(shown_name(measurement))
    return [
        f"{'All engines' if len(who) == len(measurements) else ', '.join(who)}: not known, {reason}."
        for reason, who in names.items()
    ]


def _searches(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The closed loop of each variant that had one: its words and its curve."""
    searched = [(v["name"], v["search"]) for v in report["variants"] if v.get("search")]
    return [{"name": name, "search": search, "drawing": draw_search(search)} for name, search in searched]


def _describe_environment(report: Mapping[str, Any]) -> list[str]:
    """The machine in short lines; what was not told is left out."""
    machine = report["machine"]
    clock = machine.get("cpu_mhz") or {}
    facts = {
        "board": machine.get("board"),
        "instructions": ", ".join(machine.get("cpu_flags", ())),
        "governor": machine.get("governor"),
        "clock": f"{clock['current']:.0f} MHz" if clock.get("current") else None,
        "cores that the container's quota allows": machine.get("cpu_quota_cores"),
        "load average before": machine.get("load_1min"),
        "thread settings": ", ".join(f"{k}={v}" for k, v in machine.get("thread_settings", {}).items()),
        "power mode": (machine.get("jetson") or {}).get("power_mode"),
        "edgekiln's git commit": machine.get("commit"),
        "the recipe's git commit": report.get("recipe_commit"),
    }
    lines = [f"{name}: {value}" for name, value in facts.items() if value not in (None, "")]
    return lines + [_describe_gpu(gpu, state) for gpu, state in _pair_gpus(machine)]


def _pair_gpus(machine: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    gpus, states = machine.get("gpus", ()), machine.get("gpu_state", ())
    # nvidia-smi may list more GPUs than this process may use: then nobody knows which state belongs to which.
    return list(zip(gpus, states, strict=True)) if len(gpus) == len(states) else [(gpu, {}) for gpu in gpus]


def _describe_gpu(gpu: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    words = [
        f"{state[key]:g} {unit}"
        for key, unit in (("sm_mhz", "MHz"), ("temperature_c", "°C"), ("power_w", "W"))
        if isinstance(state.get(key), int | float)
    ]
    if state.get("driver"):
        words.append(f"driver {state['driver']}")
    if state.get("throttled_by"):
        words.append(f"held back by {', '.join(state['throttled_by'])}")
    return f"GPU: {gpu['name']}{', ' if words else ''}{', '.join(words)}"
