"""``doctor``: what this machine, its packages and a bundle lack, in lines that fit a bug report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.options import echo_line, json_option, print_document
from edgekiln.runtime.errors import ExitCode

__all__ = ["doctor", "print_rows"]


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@json_option
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Check this machine, its packages and, if given, whether a bundle's engines load here.

    Changes nothing and sends nothing. Names no user, host or home folder. Exits 5 when a check fails.

    \b
    edgekiln doctor
    edgekiln doctor runs/traffic-lights/bundle
    """
    from dataclasses import asdict

    from edgekiln.pipeline.doctor import examine

    print_rows([asdict(row) for row in examine(bundle)], as_json)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows of ``doctor``, here or on a device; ends with exit code 5 where one failed."""
    states = [row["state"] for row in rows]
    counts = {state: states.count(state) for state in ("OK", "WARN", "FAIL")}
    if as_json:
        _print_json(rows, counts)
    else:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            echo_line(f"{row['state']:4}  {row['name']:{width}}  {row['found']}")
            if row["fix"]:
                echo_line(f"{'':4}  {'':{width}}  -> {row['fix']}")
        click.echo(", ".join(f"{number} {state}" for state, number in counts.items()))
    if counts["FAIL"]:
        raise click.exceptions.Exit(int(ExitCode.ENVIRONMENT))


def _print_json(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
    failed = [row for row in rows if row["state"] == "FAIL"]
    error = None
    if failed:
        names = ", ".join(row["name"] for row in failed)
        error = {
            "code": "environment",
            "message": f"{len(failed)} of {len(rows)} checks failed: {names}.",
            "hint": failed[0]["fix"],
            "path": None,
        }
    document = {"rows": list(rows), "counts": counts}
    print_document({**document, "error": error} if error else document, ok=not failed)
