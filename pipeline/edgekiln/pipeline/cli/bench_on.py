"""``bench BUNDLE --on DEVICE,...``: a bundle on one's own devices, and what came of it on each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.damage import untrusted_when_damaged
from edgekiln.pipeline.cli.device import may_ask
from edgekiln.pipeline.cli.options import describe_error, echo_line, fail, print_document
from edgekiln.pipeline.cli.running import RunWish
from edgekiln.pipeline.cli.tables import print_judgement
from edgekiln.runtime.errors import EdgekilnError, GateError, UsageError

if TYPE_CHECKING:
    from edgekiln.pipeline.device.bench import BenchRequest
    from edgekiln.pipeline.device.remote.fleet_bench import FleetResult

__all__ = ["measure_on"]


def measure_on(request: BenchRequest, on: str, devices: Path, checkpoint: Path | None, wish: RunWish) -> None:
    """Measure a bundle on the devices named in ``on`` and print a table for each.

    Raises:
        UsageError: as ``bench_on_devices``; there is no such device.
        EdgekilnError: of the first device that failed, after all have ended.
        GateError: a required variant did not pass on one.
    """
    from edgekiln.pipeline.device.remote.fleet_bench import FleetRequest, bench_on_devices
    from edgekiln.pipeline.device.remote.registry import choose_devices
    from edgekiln.pipeline.workspace.progress import make_progress

    names = [name.strip() for name in on.split(",") if name.strip()]
    if not names:
        raise UsageError(
            "--on names no device.", hint="--on orin,pi,here; `edgekiln device list` lists yours."
        )
    wanted = FleetRequest(
        request, choose_devices(devices, names), checkpoint, may_ask(wish.quiet, wish.as_json)
    )
    result = bench_on_devices(wanted, make_progress(wish.quiet))
    with untrusted_when_damaged("The report that a device made cannot be used"):
        document = _describe(result, request.out)
        if not wish.as_json:
            _print(result, request.out, wide=wish.wide)
        problem = _find_problem(result)
    for error in result.errors.values():
        if not isinstance(error, EdgekilnError):
            raise error  # a bug, which is told as one
    if problem is not None:
        fail(problem, document, wish.as_json)
    if wish.as_json:
        print_document(document)


def _find_problem(result: FleetResult) -> EdgekilnError | None:
    """What ends the command: a device that failed, else a required variant that did not pass on one."""
    from edgekiln.benchmarks.judging.required import check_gate

    for error in result.errors.values():
        if isinstance(error, EdgekilnError):
            return error
    for name, report in result.reports.items():
        try:
            check_gate(report)
        except GateError as error:
            return GateError(f"On the device {name!r}: {error.message}", hint=error.hint)
    return None


def _describe(result: FleetResult, out: Path) -> dict[str, Any]:
    from dataclasses import asdict

    rows = []
    for state in result.fleet.devices:
        report, error = result.reports.get(state.name), result.errors.get(state.name)
        variants = [
            {key: row.get(key) for key in ("name", "verdict", "reason", "drop", "latency", "speedup")}
            for row in (report or {}).get("variants", ())
        ]
        told = describe_error(error) if isinstance(error, EdgekilnError) else None
        rows.append({**asdict(state), "variants": variants, "error": told})
    return {"devices": rows, "out": str(out), "bundle": result.fleet.bundle_name}


def _print(result: FleetResult, out: Path, *, wide: bool) -> None:
    for name, report in result.reports.items():
        echo_line(f"device   {name}")
        for notice in report["notices"]:
            echo_line(f"         {notice}")
        print_judgement(report, wide=wide)
        echo_line(f"bundle   {out / name}")
        click.echo("")
    for name, error in result.errors.items():
        echo_line(f"device   {name}: failed: {error}")
