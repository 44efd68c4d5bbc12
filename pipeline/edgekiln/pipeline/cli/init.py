"""``init``: a look at a folder of images, and a recipe for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import (
    as_printable,
    echo_line,
    json_option,
    print_document,
    program_name,
    quiet_option,
)
from edgekiln.runtime.errors import UsageError

if TYPE_CHECKING:
    from edgekiln.pipeline.data.survey import Survey

__all__ = ["init"]

_MOST_CLASSES = 40  # in the table; --json names all


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recipe.toml"),
    show_default=True,
    help="Recipe to write.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@quiet_option
@json_option
def init(folder: Path, out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Look at a folder of images and write a recipe for it.

    FOLDER/CLASS/PICTURE, or FOLDER/train/CLASS/PICTURE with val and test beside it, or pictures whose labels stand in
    a CSV file in FOLDER or beside it.

    \b
    edgekiln init my-photos
    edgekiln init my-photos --out recipes/my-photos.toml
    """
    from edgekiln.runtime.extras import import_extra

    import_extra("pydantic", "build")
    from edgekiln.pipeline.data.proposal import propose, render_proposal
    from edgekiln.pipeline.data.survey import survey_folder
    from edgekiln.pipeline.workspace.progress import make_progress

    _check_out(out, force)
    progress = make_progress(quiet)
    with progress.stage("looking"):
        survey = survey_folder(folder, lambda done, total: progress.advance(done, total, "pictures"))
    proposal = propose(survey, out)
    _write(out, render_proposal(proposal, survey), force)
    if as_json:
        budget = proposal.budget
        about = {
            "size": proposal.size,
            "max_drop": budget.max_drop,
            "evidence": budget.evidence,
            "chance": budget.chance,
            "may_change_for_the_worse": budget.may_break,
            "weights": proposal.weights,
            "sensor_bits": proposal.sensor_bits,
        }
        print_document({"recipe": str(out), "proposal": about, **_describe(survey)})
        return
    _print(survey)
    echo_line(f"gate     max_drop = {proposal.budget.max_drop}: {proposal.budget.describe()}")
    echo_line(f"recipe   {out}")
    echo_line(f"next     {program_name()} run {shlex.quote(str(out))}")


def _check_out(out: Path, force: bool) -> None:
    """Before the look, which may take a while."""
    if str(out) == "-":
        raise UsageError(
            "init writes its recipe to a file, not to standard output (-).",
            hint="Give --out the name of a file; `edgekiln recipe show FILE` prints it.",
        )
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent}.", hint="Make it first.", path=out.parent)
    if out.is_dir():
        raise UsageError(f"{out} is a folder.", hint="--out takes the name of a file.", path=out)
    if out.exists() and not force:
        raise _exists(out)


def _exists(out: Path) -> UsageError:
    return UsageError(
        f"{out} is there already.", hint="--force replaces it; --out names another file.", path=out
    )


def _write(out: Path, text: str, force: bool) -> None:
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:  # made by somebody else meanwhile
        raise _exists(out) from error


def _describe(survey: Survey) -> dict[str, Any]:
    widths, heights = survey.sizes.T
    return {
        "classes": {
            name: {split: int(part[label]) for split, part in survey.counts.items()}
            for label, name in enumerate(survey.images.classes)
        },
        "images": survey.total,
        "splits": {split: int(part.sum()) for split, part in survey.counts.items()},
        "test_folder": survey.images.test is not None,
        "width": _spread(widths),
        "height": _spread(heights),
        "unreadable": [{"path": key, "reason": reason} for key, reason in survey.unreadable],
        "warnings": survey.warnings,
    }


def _spread(values: Any) -> dict[str, int]:
    import numpy as np

    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _print(survey: Survey) -> None:
    about = _describe(survey)
    shown = {as_printable(name): counts for name, counts in list(about["classes"].items())[:_MOST_CLASSES]}
    width = max(len(name) for name in ("class", *shown))
    echo_line(f"{'class':{width}}  {'train':>7}  {'val':>7}  {'test':>7}  {'all':>7}  share")
    for name, counts in (*shown.items(), ("all", about["splits"])):
        row = [counts[split] for split in ("train", "val", "test")]
        cells = "  ".join(f"{count:7}" for count in (*row, sum(row)))
        echo_line(f"{name:{width}}  {cells}  {sum(row) / survey.total:5.1%}")
    if len(shown) < len(about["classes"]):
        echo_line(f"... and {len(about['classes']) - len(shown)} classes more; --json names all")
    table = survey.settings.source == "csv"
    says = f"as {survey.settings.path} says" if table else "as its folders say"
    cut = says if about["test_folder"] else "test cut from all, by class"
    if table:
        columns = f"{survey.settings.path_column!r} and {survey.settings.label_column!r}"
        echo_line(f"labels   {survey.settings.path}, columns {columns}")
    echo_line(f"splits   {cut}")
    for side in ("width", "height"):
        echo_line("{0:8} {min} to {max} pixels, median {median}".format(side, **about[side]))
    for key, reason in survey.unreadable:
        echo_line(f"unreadable: {key}: {reason}")
    for warning in about["warnings"]:
        echo_line(f"warning: {warning}")
