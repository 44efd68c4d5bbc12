"""``bench --mlperf``: MLPerf LoadGen drives a bundle's engine, and its stopwatch is compared with ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.options import echo_line, print_document

__all__ = ["run_and_print"]

_ROWS = ("p50_ms", "p90_ms", "p99_ms", "early_stopping_p90_ms", "samples_per_second")


def run_and_print(
    bundle: Path,
    images: Path | None,
    *,
    variant: str | None,
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Both scenarios, one after the other."""
    from edgekiln.benchmarks.timing.loadgen.rules import SCENARIOS
    from edgekiln.benchmarks.timing.loadgen.run import run_loadgen

    results = []
    for scenario in SCENARIOS:
        result = run_loadgen(bundle, variant, scenario, images=images, threads=threads, min_seconds=seconds)
        results.append(result)
        if not as_json:
            _print(result)
    if as_json:
        print_document({"mlperf": results})


def _print(result: Mapping[str, Any]) -> None:
    threads = "" if result["threads"] is None else f", {result['threads']} threads"
    click.echo(
        f"{result['scenario']}: {result['result']}  ({result['tool']}; {result['variant']} on {result['backend']}"
        f"{threads}, batch {result['batch']}, {result['ours']['samples']} samples of {result['library']} images)"
    )
    click.echo(f"  {'':22} {'LoadGen':>12} {'ours':>12}")
    # Offline a latency counts from the start of the one query, which is no figure of the engine.
    for key in _ROWS if result["scenario"] == "SingleStream" else _ROWS[-1:]:
        cells = [_cell(result[side].get(key)) for side in ("loadgen", "ours")]
        click.echo(f"  {key:22} {cells[0]:>12} {cells[1]:>12}")
    for key, value in result.items():
        if key.startswith("ours_over_loadgen"):
            click.echo(f"  {key} {value:.3f}")
    for reason in result["reasons"]:
        echo_line(f"  {result['result'].lower()}: {reason}")
    if result["shortfalls"]:
        click.echo(f"  not of MLPerf's length: {'; '.join(result['shortfalls'])}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
