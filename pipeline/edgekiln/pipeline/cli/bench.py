"""``bench``: latency of a recipe's engines, of the runtime itself, or as MLPerf's load generator sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from edgekiln.pipeline.cli.options import print_document
from edgekiln.pipeline.cli.running import RunWish, execute, print_run, run_options
from edgekiln.runtime.errors import UsageError

__all__ = ["bench"]


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--runtime", is_flag=True, help="What the runtime itself costs; TARGET is a bundle.")
@click.option("--again", is_flag=True, help="Measure again although it was measured before.")
@click.option(
    "--mlperf", is_flag=True,
    help="Let MLPerf LoadGen drive an engine of a bundle, or each CPU engine of a recipe that passed.",
)  # fmt: skip
@click.option(
    "--images", type=click.Path(path_type=Path),
    help="With --mlperf of a bundle: folder of 64 pictures or more.",
)  # fmt: skip
@click.option("--variant", help="With --mlperf of a bundle: this engine instead of the preferred one.")
@click.option("--threads", type=click.IntRange(min=1), help="With --mlperf of a bundle: CPU threads.")
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=10, show_default=True,
    help="With --mlperf: for each scenario, at least; its own rules ask for 600.",
)  # fmt: skip
@run_options
def bench(  # noqa: PLR0913 # one argument for each option
    wish: RunWish,
    target: Path,
    runtime: bool,
    again: bool,
    mlperf: bool,
    images: Path | None,
    variant: str | None,
    threads: int | None,
    seconds: float,
) -> None:
    """Measure latency, of engines or of the runtime itself.

    Of a recipe: its engines next to PyTorch. Of a bundle: what the runtime costs (--runtime). Of either: engines as
    MLPerf's load generator sees them (--mlperf).

    \b
    edgekiln bench recipes/traffic-lights-224.toml --again
    edgekiln bench runs/traffic-lights/bundle --runtime
    edgekiln bench runs/traffic-lights/bundle --mlperf --images photos
    edgekiln bench recipes/traffic-lights-224.toml --mlperf --seconds 60
    """
    if mlperf and runtime:
        raise UsageError("--mlperf and --runtime are two measurements: give one of them.")
    if images or variant or threads:
        _check_options_of_mlperf(target, mlperf)
    if mlperf and target.is_file():
        _measure_recipe(target, again, _with_loadgen(wish, seconds))
        return
    if (mlperf or runtime) and wish.dry_run:
        raise UsageError(
            "--dry-run belongs to a recipe.", hint="--runtime and --mlperf of a bundle keep nothing on disk."
        )
    if mlperf:
        from edgekiln.pipeline.cli.mlperf import run_and_print

        run_and_print(target, images, variant=variant, threads=threads, seconds=seconds, as_json=wish.as_json)
    elif runtime:
        _measure_runtime(target, wish.as_json)
    else:
        _measure_recipe(target, again, wish)


def _check_options_of_mlperf(target: Path, mlperf: bool) -> None:
    """That --images, --variant or --threads, of which one was given, mean something here."""
    if not mlperf:
        raise UsageError("--images, --variant and --threads belong to --mlperf.")
    if target.is_file():
        raise UsageError(
            "--images, --variant and --threads belong to --mlperf of a bundle.",
            hint="Of a recipe, LoadGen drives every engine on the CPU that passed, on the run's test images.",
        )


def _with_loadgen(wish: RunWish, seconds: float) -> RunWish:
    """The same run with the stage in which LoadGen drives its engines."""
    keys = ("benchmark.mlperf=true", f"benchmark.mlperf_seconds={seconds}")
    return replace(wish, overrides=(*wish.overrides, *keys))


def _measure_runtime(bundle: Path, as_json: bool) -> None:
    from edgekiln.benchmarks.costs.runtime_cost import measure_runtime_cost

    values = measure_runtime_cost(bundle)
    if as_json:
        print_document(values)
        return
    goals = values.pop("goals")
    for key, value in values.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        goal = f"   (goal: {goals[key]})" if key in goals else ""
        click.echo(f"{key:32} {shown}{goal}")


def _measure_recipe(recipe: Path, again: bool, wish: RunWish) -> None:
    if recipe.is_dir():
        raise UsageError(
            f"{recipe} is a folder; bench takes a recipe.",
            hint="--runtime and --mlperf measure with a bundle.",
        )
    force = (*wish.force, "benchmark") if again else wish.force
    done = execute(recipe, replace(wish, force=force))
    if done is not None:
        print_run(done[1], wish.as_json)
