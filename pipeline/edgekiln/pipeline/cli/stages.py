"""``train``, ``export``, ``quantize`` and ``evaluate``: ``run`` up to one stage, with the same cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import fail, print_document
from edgekiln.pipeline.cli.running import (
    RunWish,
    describe_stages,
    execute,
    print_stages,
    recipe_argument,
    repeat_command,
    run_options,
    variant_option,
)
from edgekiln.pipeline.cli.tables import add_ways, print_judgement, wide_option
from edgekiln.runtime.errors import GateError

if TYPE_CHECKING:
    from edgekiln.pipeline.recipe import Recipe
    from edgekiln.pipeline.run import RunResult

__all__ = ["STAGE_COMMANDS"]


def _run_until(recipe: Path, wish: RunWish, until: str, variants: Sequence[str] = ()) -> None:
    done = execute(recipe, wish, until=until, variants=variants)
    if done is not None:
        print_stages(done[1], wish.as_json)


@click.command()
@recipe_argument
@run_options
def train(wish: RunWish, recipe: Path) -> None:
    """Prepare the pictures and fine-tune. A run up to the stage finetune.

    \b
    edgekiln train recipes/traffic-lights.toml
    edgekiln train recipes/traffic-lights.toml --set finetune.epochs=8 --dry-run
    """
    _run_until(recipe, wish, "finetune")


@click.command()
@recipe_argument
@run_options
def export(wish: RunWish, recipe: Path) -> None:
    """Export to ONNX and check it against PyTorch. A run up to the stage export.

    \b
    edgekiln export recipes/traffic-lights.toml
    """
    _run_until(recipe, wish, "export")


@click.command()
@recipe_argument
@variant_option
@run_options
def quantize(wish: RunWish, recipe: Path, variants: Sequence[str]) -> None:
    """Make the graphs of all variants, or of one. A run up to the stages variant.NAME.

    \b
    edgekiln quantize recipes/traffic-lights.toml
    edgekiln quantize recipes/traffic-lights.toml --variant int8
    """
    _run_until(recipe, wish, "variant", variants)


@click.command()
@recipe_argument
@variant_option
@wide_option
@run_options
def evaluate(wish: RunWish, recipe: Path, variants: Sequence[str]) -> None:
    """Judge every engine against PyTorch on the test pictures.

    A run up to the stages evaluate.NAME. Exits 3 when a required variant does not pass.

    \b
    edgekiln evaluate recipes/traffic-lights.toml
    edgekiln evaluate recipes/traffic-lights.toml --variant int8
    """
    done = execute(recipe, wish, until="evaluate", variants=variants)
    if done is not None:
        _judge_and_print(*done, variants, (wish, recipe))


def _judge_and_print(
    recipe: Recipe, result: RunResult, variants: Sequence[str], asked: tuple[RunWish, Path]
) -> None:
    from edgekiln.benchmarks.judging.required import advise, check_gate
    from edgekiln.pipeline.proof.public_recipe import public_recipe
    from edgekiln.pipeline.proof.variant_rows import judge_evaluated
    from edgekiln.pipeline.workspace.progress import SilentProgress
    from edgekiln.pipeline.workspace.stage_files import StageContext

    wish, path = asked
    folders = {name: record.folder for name, record in result.stages.items()}
    chosen = [v for v in recipe.variants if not variants or v.name in variants]
    rows = judge_evaluated(StageContext(recipe, Path(), folders, SilentProgress()), chosen)
    report = {**rows, "recipe": public_recipe(recipe)}
    if not wish.as_json:
        for notice in rows["notices"]:
            click.echo(notice)
        print_judgement(report, wide=wish.wide, repeat=partial(repeat_command, wish, path))
        print_stages(result, wish.as_json)
    without_flips = [{k: v for k, v in row.items() if k != "flips"} for row in add_ways(report)]
    document: dict[str, Any] = {
        "baseline": rows["baseline"],
        "variants": without_flips,
        "stages": describe_stages(result),
    }
    try:
        check_gate(report)
    except GateError as error:
        hints = ["`edgekiln pack` puts everything into a bundle, for a look.", *advise(report)]
        known = GateError(error.message, hint=" ".join(hints))
        fail(known, document, wish.as_json)
    if wish.as_json:
        print_document(document)


STAGE_COMMANDS = (train, export, quantize, evaluate)
