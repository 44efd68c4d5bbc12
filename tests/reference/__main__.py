"""``PYTHONPATH=tests python -m reference SUBJECT [--into PAGE]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import click

from reference.markdown import replace_between_marks

__all__ = ["SUBJECTS", "describe", "write_reference"]

Subject = Literal["commands", "recipe", "python", "stages"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)


def describe(subject: Subject) -> str:
    """The generated part of a page."""
    match subject:
        case "commands":
            from edgekiln.pipeline.cli import cli
            from reference.commands import describe_commands

            return describe_commands(cli)
        case "recipe":
            from edgekiln.pipeline.recipe import Recipe
            from reference.recipe import describe_recipe

            return describe_recipe(Recipe)
        case "python":
            from reference.python import describe_package

            return describe_package("edgekiln.runtime")
        case "stages":
            from edgekiln.pipeline.stages.kinds import KINDS
            from reference.stages import describe_stages

            return describe_stages(KINDS)


@click.command()
@click.argument("subject", type=click.Choice(SUBJECTS))
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Page whose generated part is replaced.",
)
def write_reference(subject: Subject, into: Path | None) -> None:
    """Print one subject's reference as Markdown, or put it into a page."""
    text = describe(subject)
    if into is None:
        click.echo(text)
    else:
        into.write_text(replace_between_marks(into.read_text("utf-8"), text), "utf-8")


if __name__ == "__main__":
    write_reference()
