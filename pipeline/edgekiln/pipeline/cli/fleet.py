"""``fleet``: one bundle's results on several devices, on one page; and a release gate for those that are required."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgekiln.pipeline.cli.damage import untrusted_when_damaged
from edgekiln.pipeline.cli.options import fail, json_option, print_document
from edgekiln.pipeline.cli.report import check_out
from edgekiln.runtime.errors import GateError, UsageError, as_printable

if TYPE_CHECKING:
    from edgekiln.benchmarks.comparing.fleet import Member

__all__ = ["fleet"]

Format = Literal["html", "table", "markdown"]


@click.command()
@click.argument("derived", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write, instead of standard output.")
@click.option(
    "--format", "form", type=click.Choice(["html", "table", "markdown"]), default="html", show_default=True,
    help="The page, a table for the terminal, or a summary for a pull request.",
)  # fmt: skip
@click.option(
    "--require", "required", multiple=True, metavar="DEVICE",
    help="A release needs a variant that passes on this device.",
)  # fmt: skip
@json_option
def fleet(
    derived: tuple[Path, ...], out: Path | None, form: Format, required: tuple[str, ...], as_json: bool
) -> None:
    """Set one bundle's results on several devices side by side. Exits 3 when no variant passes on a required one.

    DERIVED is the folder that `edgekiln bench BUNDLE --on` wrote; or bundles that `edgekiln bench BUNDLE` wrote on the
    devices, where a folder's name is its device's. A run's own bundle may stand for the machine of the run. Required
    are devices with `required = true` in devices.toml when they were benched, and those of --require. Unlike work
    (other classes, contract, pictures, weights or graphs) is refused (exit 2). Of an emulated processor no time, ratio
    or energy is told.

    \b
    edgekiln fleet results --out fleet.html
    edgekiln fleet orin pi5 server --out fleet.html --require orin
    edgekiln fleet orin pi5 server --format markdown
    """
    from edgekiln.benchmarks.comparing.fleet import compare_fleet
    from edgekiln.runtime.extras import import_extra

    if out is not None:
        check_out(out)
    members = _require(_find_members(derived), required)
    # What the page needs is asked for before anything is read: the same for all formats, as for `report`.
    undefined = import_extra("jinja2", "build").UndefinedError
    with untrusted_when_damaged("These reports cannot be set side by side", also=(undefined,)):
        values = compare_fleet(members)
        text = _renderers()[form](values)
    if out is not None:
        out.write_text(text, "utf-8")
    if not as_json:
        click.echo(
            str(out) if out is not None else text.encode(), nl=not text.endswith("\n") or out is not None
        )
    document = {**values, "format": form, "out": None if out is None else str(out)}
    if values["failing"]:
        told = ", ".join(values["failing"])
        fail(
            GateError(f"No variant passes on {told}, which a release needs.", hint=_why(values)),
            document,
            as_json,
        )
    if as_json:
        print_document(document)


def _renderers() -> Mapping[Format, Callable[[Mapping[str, Any]], str]]:
    from edgekiln.benchmarks.report import (
        format_text,
        render_fleet_page,
        render_fleet_summary,
    )
    from edgekiln.benchmarks.report.fleet import describe_fleet, fleet_headings, fleet_rows, tell_fleet

    def render_table(values: Mapping[str, Any]) -> str:
        rows = [[as_printable(cell) for cell in row] for row in fleet_rows(values)]
        told = [as_printable(line) for line in (*describe_fleet(values), tell_fleet(values))]
        return "\n".join([format_text(rows, fleet_headings(values)), "", *told, ""])

    return {"html": render_fleet_page, "table": render_table, "markdown": render_fleet_summary}


def _why(values: Mapping[str, Any]) -> str:
    """The reasons, a sentence each."""
    told = [
        f"{device['name']}, {v['name']}: {v['reason'].rstrip('.')}."
        for device in values["devices"]
        if device["name"] in values["failing"]
        for v in device["variants"]
    ]
    told += [
        f"{device['name']} has no result: {(device['why'] or 'nothing tells why').rstrip('.')}."
        for device in values["devices"]
        if device["name"] in values["failing"] and device["state"] != "done"
    ]
    return " ".join(told)


# --------------------------------------------------------------------------------------------------------------
# Who the devices are


def _find_members(paths: Sequence[Path]) -> list[Member]:
    """The devices of each fleet's folder, and each bundle as a device."""
    from edgekiln.benchmarks.comparing.fleet import Member
    from edgekiln.pipeline.device.remote.fleet_file import FLEET_FILE

    resolved = [path.resolve() for path in paths]
    for number, place in enumerate(resolved):
        if place in resolved[:number]:
            raise UsageError(f"{paths[number]} is given twice.", path=paths[number])
    folders = [path for path in paths if (path / FLEET_FILE).is_file()]
    bundles = [path for path in paths if path not in folders]
    members = [member for folder in folders for member in _read_fleet(folder)]
    names = _name_devices([path.resolve() for path in bundles])
    members += [Member(name, path) for name, path in zip(names, bundles, strict=True)]
    known = [member.name for member in members]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise UsageError(
            f"Two devices have the same name: {', '.join(twice)}.", hint="Give each once, or another name."
        )
    return members


def _read_fleet(folder: Path) -> list[Member]:
    """The devices of a folder that ``bench --on`` wrote, also those that have no result."""
    from edgekiln.benchmarks.comparing.fleet import Member
    from edgekiln.pipeline.device.remote.fleet_file import read_fleet

    return [
        Member(d.name, folder / d.name if d.state == "done" else None, d.required, d.emulated, d.why)
        for d in read_fleet(folder).devices
    ]


def _name_devices(places: Sequence[Path]) -> list[str]:
    """Names of folders, without an ending ``bundle``, which every run has; with as many parents as tell them apart."""
    parts = [
        [*place.parts[1:-1], place.stem] if place.suffix == ".zip" else [*place.parts[1:]] for place in places
    ]
    parts = [own[:-1] if own[-1] == "bundle" and len(own) > 1 else own for own in parts]
    depth = 1
    while len({tuple(own[-depth:]) for own in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(own[-depth:]) for own in parts]


def _require(members: Sequence[Member], names: Sequence[str]) -> list[Member]:
    from dataclasses import replace

    known = [member.name for member in members]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--require {name} is none of these devices: {', '.join(known)}.",
                hint="A device that a release needs has to be among the results.",
            )
    return [replace(member, required=member.required or member.name in names) for member in members]
