"""A report on a terminal: the table, what decides or everything, and why an engine did not pass."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from edgekiln.runtime.errors import as_printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Repeat", "add_ways", "print_judgement", "render_judgement", "repeat_any", "wide_option"]

Repeat: TypeAlias = Callable[[str | None], str]
"""What runs the same again, with a setting of the recipe changed where one is given."""

_WIDTH = 100
_UNFOLDED = 10_000
_GAP = 2  # characters between columns
_LEAST_NAME = 12
_STYLES = {
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "not-run": "yellow",
    "unverified": "yellow",
    "faster peer": "yellow",
}

wide_option = click.option(
    "--wide", is_flag=True, help="Every column of the table: precision, balanced accuracy, p50 and p99 apart."
)


def print_judgement(report: Mapping[str, Any], *, wide: bool, repeat: Repeat | None = None) -> None:
    """The table, and below it the reason of each engine that did not pass, and what decides it, in one line each.

    ``repeat`` gives the command that made the report; without it RECIPE stands for the recipe. Colours where rich finds
    a terminal that has them, and NO_COLOR is not set.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    click.echo(_render(report, console, wide, repeat or repeat_any), color=console.color_system is not None)


def render_judgement(report: Mapping[str, Any], *, wide: bool) -> str:
    """What ``print_judgement`` prints, for a file: no colour, and as wide as without a terminal."""
    from rich.console import Console

    return _render(report, Console(file=io.StringIO(), highlight=False), wide, repeat_any)


def repeat_any(setting: str | None) -> str:
    """A ``Repeat`` for a report whose recipe lies nobody knows where."""
    return "edgekiln run RECIPE" + (f" --set {shlex.quote(setting)}" if setting else "")


def add_ways(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the variants for a JSON document, undecided ones with ``ways_out``."""
    from edgekiln.benchmarks.judging.ways_out import find_ways

    return [
        {**v, **({"ways_out": [asdict(way) for way in ways]} if (ways := find_ways(report, v)) else {})}
        for v in report["variants"]
    ]


def _describe_ways(report: Mapping[str, Any], repeat: Repeat) -> list[str]:
    """What decides the undecided verdicts: a line each, what to type and behind a # what comes of it.

    Engines with the same ways share them.
    """
    from edgekiln.benchmarks.judging.ways_out import find_ways

    engines: dict[tuple[str, ...], list[str]] = {}
    for variant in report["variants"]:
        lines = tuple(f"  {repeat(way.setting)}  # {way.why}" for way in find_ways(report, variant))
        engines.setdefault(lines, []).append(variant["name"])
    engines.pop((), None)
    return [
        line for lines, names in engines.items() for line in (f"what decides {', '.join(names)}:", *lines)
    ]


def _render(report: Mapping[str, Any], console: Console, wide: bool, repeat: Repeat) -> str:
    from edgekiln.benchmarks.report import (
        describe_reasons,
        short_headings,
        short_rows,
        table_headings,
        table_rows,
    )

    if wide:
        console.width = _UNFOLDED
        lines = _render_table(table_rows(report), table_headings(report), console)
    else:
        console.width = min(_WIDTH, console.width) if console.is_terminal else _WIDTH
        lines = _render_table(short_rows(report), short_headings(report), console)
    below = [*describe_reasons(report), *_describe_ways(report, repeat)]
    return "\n".join([*lines, "", *map(as_printable, below), *([""] if below else [])])


def _render_table(rows: Sequence[Sequence[str]], headings: Sequence[str], console: Console) -> list[str]:
    """Columns with two spaces between them; what is too long for the console goes on in the next line of its cell."""
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    rule = Box(
        "    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True
    )  # dashes below the headings alone
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, (heading, width) in enumerate(
        zip(headings, _choose_widths(rows, headings, console), strict=True)
    ):
        is_text = place == 0 or heading in {"precision", "verdict"}
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", width=width)
    for *cells, verdict in rows:
        table.add_row(*(Text(as_printable(cell)) for cell in cells), Text(verdict, _STYLES.get(verdict, "")))
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _choose_widths(
    rows: Sequence[Sequence[str]], headings: Sequence[str], console: Console
) -> list[int | None]:
    """Characters of each column: figures stay whole, names of engines fold; ``None`` where that is too narrow, and rich
    folds what it must."""
    columns = list(zip(*rows, strict=True))
    if console.width == _UNFOLDED:
        return [None] * len(headings)
    widths = [
        max(map(len, (*column, *heading.split()))) for heading, column in zip(headings, columns, strict=True)
    ]
    spare = console.width - sum(widths) - _GAP * (len(widths) - 1)
    # What is left over puts headings into one line, from the right.
    for place in range(len(widths) - 1, 0, -1):
        more = min(max(0, spare), max(0, len(headings[place]) - widths[place]))
        widths[place], spare = widths[place] + more, spare - more
    widths[0] += min(0, spare)
    return [None] * len(widths) if widths[0] < _LEAST_NAME else list(widths)
