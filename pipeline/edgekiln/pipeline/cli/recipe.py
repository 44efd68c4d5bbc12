"""``recipe``: what a recipe says, whether it is valid, and what may stand in one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from edgekiln.pipeline.cli.options import SuggestingGroup, json_option, print_document
from edgekiln.pipeline.cli.running import recipe_argument, set_option

__all__ = ["recipe"]


@click.group(cls=SuggestingGroup)
def recipe() -> None:
    """Look at recipes without running them.

    \b
    edgekiln recipe validate recipes/traffic-lights.toml
    edgekiln recipe show recipes/traffic-lights.toml --origin
    """


@recipe.command()
@recipe_argument
@set_option
@click.option(
    "--origin", is_flag=True, help="Say of every value whether it comes from a flag, the file or a default."
)
@json_option
def show(recipe: Path, overrides: Sequence[str], origin: bool, as_json: bool) -> None:
    """Print the whole recipe as TOML, with every default filled in.

    \b
    edgekiln recipe show recipes/traffic-lights.toml
    edgekiln recipe show recipes/traffic-lights.toml --set finetune.epochs=2 --origin
    """
    _require_pydantic()
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.recipe.show import render_recipe, trace_origins

    loaded = load_recipe(recipe, overrides)
    origins = trace_origins(loaded, recipe, overrides)
    if as_json:
        more = {"origins": origins} if origin else {}
        print_document({"recipe": loaded.model_dump(mode="json"), **more})
    else:
        click.echo(render_recipe(loaded, origins, tell_origins=origin), nl=False)


@recipe.command()
@recipe_argument
@set_option
@json_option
def validate(recipe: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Check a recipe's keys and values. Its pictures and weights are not looked at.

    \b
    edgekiln recipe validate recipes/traffic-lights.toml
    """
    _require_pydantic()
    from edgekiln.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    variants = [variant.name for variant in loaded.variants]
    if as_json:
        print_document({"recipe": str(recipe), "name": loaded.name, "variants": variants})
    else:
        click.echo(f"{recipe} is valid: {loaded.name}, variants {', '.join(variants)}.")


@recipe.command()
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON schema of recipes, for editors and programs that write them.

    \b
    edgekiln recipe schema > recipe.schema.json
    """
    _require_pydantic()
    from edgekiln.pipeline.recipe import Recipe

    values = Recipe.model_json_schema()
    if as_json:
        print_document({"schema": values})
    else:
        click.echo(json.dumps(values, indent=2))


def _require_pydantic() -> None:
    from edgekiln.runtime.extras import import_extra

    import_extra("pydantic", "build")
