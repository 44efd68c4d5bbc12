"""``report``: a finished run's report once more, as a page, a summary or a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from edgekiln.pipeline.cli.options import json_option, print_document
from edgekiln.runtime.errors import UntrustedError, UsageError

__all__ = ["report"]

Format = Literal["html", "markdown", "card"]
_REPORT_NAME = "report.json"


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write, instead of standard output.")
@click.option(
    "--format", "form", type=click.Choice(["html", "markdown", "card"]), default="html", show_default=True,
    help="The page, a summary for a pull request, or the model card.",
)  # fmt: skip
@json_option
def report(target: Path, out: Path | None, form: Format, as_json: bool) -> None:
    """Render the report of a run, a bundle or a report.json again. A bundle is never changed.

    \b
    edgekiln report runs/traffic-lights --out report.html
    edgekiln report runs/traffic-lights/bundle --format markdown
    """
    from edgekiln.benchmarks.report import read_report, render_card, render_page, render_summary
    from edgekiln.runtime.extras import import_extra

    path = _find_report(target)
    if out is not None:
        _check_out(out)
    values = read_report(path)
    render = {"html": render_page, "markdown": render_summary, "card": render_card}[form]
    try:
        text = render(values)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        import_extra("jinja2", "build").UndefinedError,
    ) as error:
        # Deep inside, a report has hundreds of values: rendering is what checks them. --debug shows where.
        raise UntrustedError(
            f"{path} cannot be rendered, it lacks something: {error!r}.",
            hint="Take the file that `edgekiln run` wrote, unchanged.",
            path=path,
        ) from error
    if out is not None:
        out.write_text(text, "utf-8")
    if as_json:
        print_document(_describe(values, form, path, out, text))
    elif out is not None:
        click.echo(str(out))
    else:
        click.echo(text.encode(), nl=not text.endswith("\n"))  # bytes: a terminal's encoding may lack letters


def _find_report(target: Path) -> Path:
    """The report.json of a run's folder, a bundle or itself. A bundle's is checked against the manifest."""
    from edgekiln.runtime.bundle import MANIFEST_NAME, open_bundle

    if target.is_file():
        return target
    if not target.exists():
        raise UsageError(
            f"There is no file or folder {target}.",
            hint="Give a run's folder, a bundle or a report.json; `edgekiln run` makes them.",
            path=target,
        )
    for folder in (target, target / "bundle"):
        if (folder / MANIFEST_NAME).exists():
            # A page made from an altered report would prove nothing.
            if _REPORT_NAME not in open_bundle(folder).files:
                raise UsageError(
                    f"{folder} holds no {_REPORT_NAME}: it was built on a target from another bundle.",
                    hint="Take the bundle of the run.",
                    path=folder,
                )
            return folder / _REPORT_NAME
    if (target / _REPORT_NAME).is_file():
        return target / _REPORT_NAME
    raise UsageError(
        f"{target} holds no finished report.",
        hint="Give a run's folder, a bundle or a report.json; `edgekiln run` makes them.",
        path=target,
    )


def _check_out(out: Path) -> None:
    from edgekiln.runtime.bundle import MANIFEST_NAME

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
