"""``report``: a finished run's report once more, as a page, a table, a summary or a model card."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import click

from edgekiln.pipeline.cli.damage import untrusted_when_damaged
from edgekiln.pipeline.cli.options import json_option, print_document
from edgekiln.pipeline.cli.tables import print_judgement, render_judgement, wide_option
from edgekiln.runtime.errors import UsageError

__all__ = ["check_out", "report"]

Format = Literal["html", "table", "markdown", "card"]
_WHAT_TO_GIVE = (
    "Give a run's folder, a bundle (a folder or a .zip) or a report.json; `edgekiln run` makes them."
)


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write, instead of standard output.")
@click.option(
    "--format", "form", type=click.Choice(["html", "table", "markdown", "card"]), default="html", show_default=True,
    help="The page, the table that a run prints, a summary for a pull request, or the model card.",
)  # fmt: skip
@wide_option
@json_option
def report(target: Path, out: Path | None, form: Format, wide: bool, as_json: bool) -> None:
    """Render the report of a run, a bundle or a report.json again. A bundle is never changed.

    \b
    edgekiln report runs/traffic-lights --out report.html
    edgekiln report runs/traffic-lights --format table --wide
    edgekiln report runs/traffic-lights/bundle --format markdown
    """
    from edgekiln.benchmarks.report import render_card, render_page, render_summary
    from edgekiln.runtime.extras import import_extra

    if wide and form not in {"table", "markdown"}:
        raise UsageError(f"--wide belongs to --format table and markdown; {form} has every figure.")
    path, values = _read_target(target)
    if out is not None:
        check_out(out)
    renderers: dict[Format, Callable[[Mapping[str, Any]], str]] = {
        "html": render_page,
        "table": functools.partial(render_judgement, wide=wide),
        "markdown": functools.partial(render_summary, wide=wide),
        "card": render_card,
    }
    undefined = import_extra("jinja2", "build").UndefinedError
    with untrusted_when_damaged(f"{path} cannot be rendered", path, also=(undefined,)):
        text = renderers[form](values)
    if out is not None:
        out.write_text(text, "utf-8")
    if as_json:
        print_document(_describe(values, form, path, out, text))
    elif out is not None:
        click.echo(str(out))
    elif form == "table":
        print_judgement(values, wide=wide)
    else:
        click.echo(text.encode(), nl=not text.endswith("\n"))  # bytes: a terminal's encoding may lack letters


def _read_target(target: Path) -> tuple[Path, dict[str, Any]]:
    """The report of a run's folder, a bundle, a zipped bundle or itself, and where it lies."""
    from edgekiln.benchmarks.report import REPORT_NAME, read_report
    from edgekiln.runtime.bundles.manifest import MANIFEST_NAME

    if target.is_file():
        is_zip = target.suffix.lower() == ".zip"
        return _read_from_bundle(target) if is_zip else (target, read_report(target))
    if not target.exists():
        raise UsageError(f"There is no file or folder {target}.", hint=_WHAT_TO_GIVE, path=target)
    for folder in (target, target / "bundle"):
        if (folder / MANIFEST_NAME).exists():
            return _read_from_bundle(folder)
    if (target / REPORT_NAME).is_file():
        return target / REPORT_NAME, read_report(target / REPORT_NAME)
    raise UsageError(f"{target} holds no finished report.", hint=_WHAT_TO_GIVE, path=target)


def _read_from_bundle(path: Path) -> tuple[Path, dict[str, Any]]:
    """Checked against the manifest: a page made from an altered report would prove nothing."""
    from edgekiln.benchmarks.report import REPORT_NAME, read_bundled_report
    from edgekiln.runtime.bundles.bundle import open_bundle

    values = read_bundled_report(open_bundle(path))
    if values is None:
        raise UsageError(
            f"{path} holds no {REPORT_NAME}: it was built on a target from another bundle.",
            hint="Take the bundle of the run.",
            path=path,
        )
    return path / REPORT_NAME, values


def check_out(out: Path) -> None:
    """Raises UsageError for a folder, for a place in a bundle and for one whose folder is not there."""
    from edgekiln.runtime.bundles.manifest import MANIFEST_NAME

    folder = out.resolve().parent
    if out.is_dir() or not folder.is_dir():
        problem = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {folder}"
        raise UsageError(f"{out} {problem}.", hint="--out takes the name of a file.", path=out)
    if (folder / MANIFEST_NAME).exists():
        raise UsageError(
            f"{out} lies in a bundle, whose files are hashed.", hint="Write it elsewhere.", path=out
        )


def _describe(
    values: Mapping[str, Any], form: Format, path: Path, out: Path | None, text: str
) -> dict[str, Any]:
    return {
        "name": values["name"],
        "report": str(path),
        "format": form,
        "out": None if out is None else str(out),
        "text": text if out is None else None,
        "variants": [{key: v[key] for key in ("name", "verdict", "reason")} for v in values["variants"]],
    }
