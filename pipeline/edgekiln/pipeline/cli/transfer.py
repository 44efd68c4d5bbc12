"""``transfer``: is the transfer worth it, and which way of it?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import echo_line, fail, json_option, print_document, quiet_option
from edgekiln.pipeline.cli.running import recipe_argument, set_option
from edgekiln.runtime.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgekiln.pipeline.study.cells import Cell, CellResult, StudyPlan

__all__ = ["transfer"]

_FOLDER = "transfer"
_SHARES = "0.05,0.1,0.25,0.5,1"


_OPTIONS = (
    click.option(
        "--methods", metavar="NAME,...", default=None,
        help="Of scratch, probe, full and combined; all that the recipe allows when left out.",
    ),
    click.option(
        "--shares", metavar="SHARE,...", default=_SHARES, show_default=True,
        help="Of the images that the recipe trains on, each above 0 and at most 1.",
    ),
    click.option(
        "--seeds", type=click.IntRange(min=1), default=3, show_default=True,
        help="How many, from the recipe's seed upwards; one gives no interval.",
    ),
    click.option(
        "--margin", type=click.FloatRange(0, 1, max_open=True), default=None, metavar="SHARE",
        help="What may be given up for a cheaper method; gate.max_drop when left out.",
    ),
    set_option,
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Folder of the result; NAME/transfer/ below --runs when left out.",
    ),
    click.option(
        "--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
        help="Folder in which NAME/transfer/ is made; stages are shared with `edgekiln run`.",
    ),
    click.option("--dry-run", is_flag=True, help="Say what is done and about how long the rest takes; change nothing."),
    quiet_option,
    json_option,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StudyWish:
    """The options of the command."""

    methods: str | None
    shares: str
    seeds: int
    margin: float | None
    overrides: tuple[str, ...]
    runs: Path
    out: Path | None
    dry_run: bool
    quiet: bool
    as_json: bool


def _study_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command those options; it takes them as its first argument, a StudyWish."""

    @functools.wraps(function)
    def collected(**values: Any) -> None:
        wish = StudyWish(**{name: values.pop(name) for name in StudyWish.__slots__})
        function(wish, **values)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), collected)


@click.command()
@recipe_argument
@_study_options
def transfer(wish: StudyWish, recipe: Path) -> None:
    """Study a recipe: from scratch, linear probe, full fine-tuning and combined loss, at several sizes and seeds.

    Each is trained with the recipe's epochs and rates, and judged in PyTorch on the same test images. Writes a table, a
    plot with intervals and the method to take into runs/NAME/transfer/. Interrupted, the same command goes on. A
    training that fails is recorded, the others go on, and the command exits 3.

    \b
    edgekiln transfer recipes/traffic-lights.toml --dry-run
    edgekiln transfer recipes/traffic-lights.toml --shares 0.1,1 --seeds 5
    """
    from edgekiln.runtime.extras import import_extra

    for module in ("pydantic", "torch", "torchvision", "timm", "jinja2"):
        import_extra(module, "build")
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.study.cells import find_cells, make_plan, run_study
    from edgekiln.pipeline.study.result import describe_study, write_study
    from edgekiln.pipeline.workspace.progress import make_progress

    studied = load_recipe(recipe, wish.overrides)
    names = [] if wish.methods is None else _split_names(wish.methods)
    plan, left_out = make_plan(studied, methods=names, shares=_parse_shares(wish.shares), seeds=wish.seeds)
    if wish.dry_run:
        _print_plan(plan, find_cells(plan, wish.runs), left_out, wish.as_json)
        return
    results = run_study(plan, wish.runs, make_progress(wish.quiet))
    margin = studied.gate.max_drop if wish.margin is None else wish.margin
    study = describe_study(plan, results, left_out=left_out, margin=margin)
    folder = wish.out or wish.runs / studied.name / _FOLDER
    _print_study(study, write_study(folder, study), wish.as_json)


def _split_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(
            "--methods names no method.", hint="Example: --methods scratch,full - or leave it out."
        )
    return names


def _parse_shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(
            f"--shares {text}: wanted numbers with commas between.", hint=f"Example: --shares {_SHARES}"
        ) from error


def _print_plan(
    plan: StudyPlan, found: Mapping[Cell, CellResult | None], left_out: Sequence[str], as_json: bool
) -> None:
    from edgekiln.pipeline.study.cells import estimate_seconds

    estimates = estimate_seconds(found)
    known = [seconds for seconds in estimates.values() if seconds is not None]
    document = {
        "dry_run": True,
        "name": plan.recipe.name,
        "cells": [
            {
                "method": cell.method, "share": cell.share, "seed": cell.seed, "done": result is not None,
                "estimated_seconds": estimates.get(cell),
            }
            for cell, result in found.items()
        ],
        "to_run": len(estimates),
        "estimated_seconds": sum(known) if known else None,
        "without_estimate": len(estimates) - len(known),
        "left_out": list(left_out),
    }  # fmt: skip
    if as_json:
        print_document(document)
        return
    for notice in left_out:
        echo_line(notice)
    for cell, result in found.items():
        seconds = estimates.get(cell)
        state = "to run" if result is None else "done" if result.error is None else "failed"
        about = "" if seconds is None else f"about {seconds:.0f} s"
        click.echo(f"{cell.label:28}  {state:6}  {about}".rstrip())
    click.echo("")
    click.echo(_sum_up_plan(len(found), len(estimates), known))


def _sum_up_plan(cells: int, waiting: int, known: Sequence[float]) -> str:
    if not waiting:
        return f"All {cells} cells are done. Nothing was changed."
    unknown = waiting - len(known)
    if not known:
        time = "nothing alike was measured yet, so there is no estimate"
    else:
        rest = f", and {unknown} of methods never measured here" if unknown else ""
        time = f"about {_format_time(sum(known))}{rest}"
    return f"{waiting} of {cells} cells to run: {time}. Nothing was changed."


def _format_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_study(study: Mapping[str, Any], files: Mapping[str, Path], as_json: bool) -> None:
    document = {"study": study, "files": {name: str(path) for name, path in files.items()}}
    failed = sum(cell["state"] == "failed" for cell in study["cells"])
    if not as_json:
        _print_table(study, files)
    if failed:
        error = GateError(
            f"{failed} of {len(study['cells'])} trainings failed; the others are in the result.",
            hint="Their messages are above and in transfer.json; the same command tries them again.",
        )
        fail(error, document, as_json)
    if as_json:
        print_document(document)


def _print_table(study: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    from edgekiln.benchmarks.report.table import format_text
    from edgekiln.benchmarks.report.transfer import difference_rows, study_headings, study_rows, tell_choice

    for notice in study["notices"]:
        echo_line(notice)
    click.echo(format_text(study_rows(study), study_headings(study)))
    click.echo("")
    if rows := difference_rows(study):
        click.echo(format_text(rows, ["images", "difference", "points", "95% interval", "first is"]))
        click.echo("")
    for choice in study["choices"]:
        click.echo(tell_choice(choice))
    for path in files.values():
        click.echo(str(path))
