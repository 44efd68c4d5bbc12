"""``run``: a recipe from its pictures to the judged bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgekiln.pipeline.cli.running import RunWish, execute, print_run, recipe_argument, run_options
from edgekiln.pipeline.cli.tables import wide_option

__all__ = ["run"]


@click.command()
@recipe_argument
@click.option("--until", metavar="STAGE", help="Stop after this stage, for example export.")
@wide_option
@run_options
def run(wish: RunWish, recipe: Path, until: str | None) -> None:
    """Run a recipe: fine-tune, export, quantize, judge, bundle.

    Finished stages are not run again. Exits 3 when a required variant does not pass its gate.

    \b
    edgekiln run recipes/traffic-lights.toml
    edgekiln run recipes/traffic-lights.toml --dry-run
    edgekiln run recipes/traffic-lights.toml --set finetune.epochs=2 --force finetune
    """
    done = execute(recipe, wish, until=until)
    if done is not None:
        print_run(done[1], wish, recipe)
