"""``bench``: a recipe's engines, a bundle's on the machine that will run them, the runtime itself, or MLPerf's view."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.bench_on import measure_on
from edgekiln.pipeline.cli.mlperf import run_and_print
from edgekiln.pipeline.cli.options import device_file_option, print_document
from edgekiln.pipeline.cli.running import RunWish, execute, print_report, print_run, run_options
from edgekiln.pipeline.cli.tables import wide_option
from edgekiln.runtime.errors import UsageError

__all__ = ["bench"]


@dataclass(frozen=True, slots=True)
class _OfBundle:
    """The options of the bench of a bundle."""

    data: Path | None
    out: Path | None
    checkpoint: Path | None
    no_bench: bool
    on: str | None
    devices: Path

    def check(self, *, plain: bool) -> None:
        """That those that were given mean something here; raises UsageError."""
        names = ("data", "out", "checkpoint", "no_bench", "on")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if given and not plain:
            raise UsageError(
                f"{', '.join(given)} belong to the bench of a bundle without --mlperf and --runtime.",
                hint="edgekiln bench BUNDLE --data PICTURES --out DERIVED",
            )


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
@click.option(
    "--data", type=click.Path(path_type=Path),
    help="Of a bundle: folder with its test pictures, to judge every variant on.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Of a bundle: folder of the derived bundle.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path),
    help="Of a bundle: the run's checkpoint.safetensors, to time PyTorch too.",
)  # fmt: skip
@click.option("--no-bench", is_flag=True, help="Of a bundle: build and judge, and time nothing.")
@click.option(
    "--on", metavar="DEVICE,...",
    help="Of a bundle: on these devices of yours (`edgekiln device`), and `here`; --out gets a folder for each.",
)  # fmt: skip
@device_file_option
@wide_option
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
    **of_bundle: Any,
) -> None:
    """Judge and time every variant of a bundle here, or time a recipe's.

    Of a recipe: its engines next to PyTorch. Of a bundle: engines are built where they have to be, and every variant is
    judged on those of its test pictures that are found below --data (by content), and timed. The result is a bundle
    with its report. It needs the runtime alone. Exits 3 when a required variant does not pass here. With --on the same
    is done on devices of yours, over ssh, and --out gets a bundle for each. Or of a bundle: what the runtime costs
    (--runtime). Of either: engines as MLPerf's load generator sees them (--mlperf).

    \b
    edgekiln bench runs/traffic-lights/bundle --data test-pictures --out bundle-here
    edgekiln bench runs/traffic-lights/bundle --data test-pictures --on orin,pi,here --out fleet
    edgekiln bench recipes/traffic-lights-224.toml --again
    edgekiln bench runs/traffic-lights/bundle --runtime
    edgekiln bench recipes/traffic-lights-224.toml --mlperf --seconds 60
    """
    if mlperf and runtime:
        raise UsageError("--mlperf and --runtime are two measurements: give one of them.")
    is_bundle = target.is_dir() or target.suffix.lower() == ".zip"
    how = _OfBundle(**of_bundle)
    how.check(plain=is_bundle and not (mlperf or runtime))
    _check_options_of_mlperf(target, mlperf, given=bool(images or variant or threads))
    if mlperf and target.is_file() and not is_bundle:
        _measure_recipe(target, again, _with_loadgen(wish, seconds))
        return
    _check_dry_run(wish, mlperf or runtime)
    if mlperf:
        run_and_print(target, images, variant=variant, threads=threads, seconds=seconds, as_json=wish.as_json)
    elif runtime:
        _measure_runtime(target, wish.as_json)
    elif is_bundle:
        _measure_bundle(target, again, wish, how)
    else:
        _measure_recipe(target, again, wish)


def _check_dry_run(wish: RunWish, of_bundle: bool) -> None:
    if of_bundle and wish.dry_run:
        raise UsageError(
            "--dry-run belongs to a recipe.", hint="--runtime and --mlperf of a bundle keep nothing on disk."
        )


def _check_options_of_mlperf(target: Path, mlperf: bool, *, given: bool) -> None:
    """That --images, --variant or --threads, if one was given, mean something here."""
    if not given:
        return
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


def _measure_bundle(bundle: Path, again: bool, wish: RunWish, how: _OfBundle) -> None:
    """Judge and time the variants here, and print the table; exit code 3 where a required one does not pass."""
    from edgekiln.pipeline.device.bench import BenchRequest, bench_on_device
    from edgekiln.pipeline.proof.device_baseline import find_baseline
    from edgekiln.pipeline.workspace.progress import make_progress

    if again or wish.overrides or wish.force or wish.dry_run:
        raise UsageError(
            f"--again, --set, --force and --dry-run belong to a recipe; {bundle} is a bundle.",
            hint="It is measured anew each time; only what was interrupted goes on.",
        )
    if how.data is None or how.out is None:
        raise UsageError(
            f"Missing option '{'--data' if how.data is None else '--out'}'.",
            hint="edgekiln bench BUNDLE --data PICTURES --out DERIVED; or --runtime, or --mlperf.",
        )
    if how.checkpoint is not None and not how.checkpoint.is_file():
        raise UsageError(f"There is no checkpoint {how.checkpoint}.", path=how.checkpoint)
    request = BenchRequest(
        bundle,
        how.out,
        how.data,
        timed=not how.no_bench,
        find_baseline=functools.partial(find_baseline, checkpoint=how.checkpoint),
    )
    if how.on is not None:
        measure_on(request, how.on, how.devices, how.checkpoint, wish)
        return
    print_report(bench_on_device(request, make_progress(wish.quiet)), how.out, wish)


def _measure_recipe(recipe: Path, again: bool, wish: RunWish) -> None:
    force = (*wish.force, "benchmark") if again else wish.force
    done = execute(recipe, replace(wish, force=force))
    if done is not None:
        print_run(done[1], wish, recipe)
