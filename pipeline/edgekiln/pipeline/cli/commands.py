"""The commands: each reads its arguments, calls one function of the library, and prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.comparing import compare
from edgekiln.pipeline.cli.doctor import doctor
from edgekiln.pipeline.cli.engines import build, cache
from edgekiln.pipeline.cli.options import json_option, print_document, quiet_option, trusted_key_option
from edgekiln.pipeline.cli.reporting import report
from edgekiln.pipeline.cli.signing import SIGNING_COMMANDS
from edgekiln.runtime.errors import UsageError

__all__ = ["COMMANDS"]

_runs_option = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
    help="Folder in which NAME/ is made, with all stages and the bundle.",
)  # fmt: skip
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the recipe: finetune.epochs=2"
)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--until", metavar="STAGE", help="Stop after this stage, for example export.")
@click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again.")
@_set_option
@_runs_option
@quiet_option
@json_option
def run(
    recipe: Path,
    until: str | None,
    force: Sequence[str],
    overrides: Sequence[str],
    runs: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a recipe: fine-tune, export, quantize, judge, bundle.

    Finished stages are not run again. Exits 3 when a required variant does not pass its gate.

    \b
    edgekiln run recipes/traffic-lights.toml
    edgekiln run recipes/traffic-lights.toml --set finetune.epochs=2 --force finetune
    """
    _run_and_print(recipe, overrides, runs, quiet, as_json, until=until, force=force)


def _run_and_print(
    recipe_path: Path,
    overrides: Sequence[str],
    runs: Path,
    quiet: bool,
    as_json: bool,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
) -> None:
    from edgekiln.runtime.extras import import_extra

    for module in ("pydantic", "torch", "torchvision", "timm", "onnx", "jinja2", "matplotlib"):
        import_extra(module, "build")
    import_extra("onnxruntime", "onnx")
    from edgekiln.pipeline.progress import make_progress
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import check_gate, run_recipe
    from edgekiln.runtime.errors import GateError

    recipe = load_recipe(recipe_path, overrides)
    result = run_recipe(recipe, runs, make_progress(quiet), until=until, force=force)
    stages = {name: {"seconds": r.seconds, "cached": r.cached} for name, r in result.stages.items()}
    if result.report is None or result.bundle is None:
        if as_json:
            print_document({"stages": stages})
        else:
            click.echo(f"Stopped after {list(stages)[-1]}.")
        return
    if not as_json:
        _print_report(result.report, result.bundle)
        check_gate(result.report)
        return
    document = {
        key: result.report[key] for key in ("name", "baseline", "variants", "data", "machine", "mlperf")
    }
    document |= {"stages": stages, "bundle": str(result.bundle)}
    try:
        check_gate(result.report)
    except GateError as error:
        # One document also on failure: this one holds what was found beside what failed.
        failure = {"code": error.code, "message": error.message, "hint": error.hint, "path": None}
        click.echo(json.dumps({"schema_version": "1.0", "ok": False, "error": failure, **document}))
        raise click.exceptions.Exit(int(error.exit_code)) from error
    print_document(document)


def _print_report(report: Mapping[str, Any], bundle: Path) -> None:
    from edgekiln.benchmarks.report import (
        describe_config,
        describe_floor,
        describe_mlperf,
        describe_simulation,
        format_text,
        mlperf_headings,
        mlperf_rows,
        table_headings,
        table_rows,
    )

    for notice in report["notices"]:
        click.echo(notice)
    click.echo(format_text(table_rows(report), table_headings(report)))
    click.echo("")
    for variant in report["variants"]:
        if variant["verdict"] == "not-run":
            click.echo(f"{variant['name']}: {variant['reason']}{describe_simulation(variant)}")
    benchmark = report["benchmark"]
    if benchmark:
        validity = benchmark["validity"]
        reasons = f" ({'; '.join(validity['reasons'])})" if validity["reasons"] else ""
        configs = "; ".join(f"{m['name']} {describe_config(m['config'])}" for m in benchmark["measurements"])
        click.echo(f"latency  {validity['state']}{reasons}")
        click.echo(f"         batch 1; {configs}")
        if floor := describe_floor(report):
            click.echo(f"         {floor}")
    if rows := mlperf_rows(report):
        click.echo("")
        click.echo(format_text(rows, mlperf_headings()))
    for line in describe_mlperf(report):
        click.echo(f"LoadGen  {line}")
    click.echo(f"images   {report['data']['counts']['test']} in the test split")
    click.echo(f"bundle   {bundle}")
    click.echo(f"report   {bundle / 'report.html'}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--variant", help="Take this engine instead of the preferred one.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only engines for this device.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--allow-unverified", is_flag=True, help="With --variant: also one whose gate did not pass.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes to print.")
@trusted_key_option
@json_option
def predict(  # noqa: PLR0913 # one argument for each option
    bundle: Path,
    images: Sequence[Path],
    variant: str | None,
    device: Any,
    threads: int | None,
    allow_unverified: bool,
    top: int,
    trusted_keys: Sequence[Path],
    as_json: bool,
) -> None:
    """Classify pictures with a bundle. Exits 2 when a picture could not be read; the others are answered.

    \b
    edgekiln predict runs/traffic-lights/bundle photo.jpg --top 3
    """
    from edgekiln.runtime import load
    from edgekiln.runtime.errors import ImageError

    answers: list[dict[str, Any]] = []
    failures: list[ImageError] = []
    with load(
        bundle,
        variant=variant,
        device=device,
        threads=threads,
        allow_unverified=allow_unverified,
        trusted_keys=trusted_keys or None,
    ) as classifier:
        selection = classifier.variant
        for path in images:
            try:
                candidates = classifier.predict(path).top(top)
            except ImageError as error:
                failures.append(error)
                continue
            answers.append(
                {
                    "path": str(path),
                    "top": [{"label": c.label, "score": round(c.score, 6)} for c in candidates],
                }
            )
            if not as_json:
                click.echo(f"{path}  " + "  ".join(f"{c.label} {c.score:.4f}" for c in candidates))
    if as_json:
        _print_predictions(answers, failures, selection)
    else:
        click.echo(f"variant {selection.name} ({selection.backend}): {selection.reason}", err=True)
        for failure in failures:
            click.echo(f"unreadable: {failure}", err=True)
        if failures:
            click.echo(f"{len(failures)} of {len(images)} pictures could not be read.", err=True)
    if failures:
        raise click.exceptions.Exit(2)


def _print_predictions(answers: Sequence[Mapping[str, Any]], failures: Sequence[Any], selection: Any) -> None:
    click.echo(
        json.dumps(
            {
                "schema_version": "1.0",
                "ok": not failures,
                "variant": {"name": selection.name, "backend": selection.backend, "reason": selection.reason},
                "predictions": list(answers),
                "failures": [{"path": f.path, "reason": f.reason, "message": f.message} for f in failures],
            }
        )
    )


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@trusted_key_option
@json_option
def inspect(path: Path, trusted_keys: Sequence[Path], as_json: bool) -> None:
    """Say what a bundle, folder or zip, an ONNX file, a checkpoint or an engine is, and whether it would load here.

    \b
    edgekiln inspect runs/traffic-lights/bundle
    """
    from edgekiln.pipeline.cli.inspecting import describe

    values = describe(path, trusted_keys or None)
    if as_json:
        print_document(values)
        return
    for key, value in values.items():
        if isinstance(value, list):
            click.echo(f"{key}:")
            for item in value:
                click.echo(f"  {item if isinstance(item, str) else _one_line(item)}")
        else:
            click.echo(f"{key}: {value}")


def _one_line(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in item.items())


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
@_set_option
@_runs_option
@quiet_option
@json_option
def bench(  # noqa: PLR0913 # one argument for each option
    target: Path,
    runtime: bool,
    again: bool,
    mlperf: bool,
    images: Path | None,
    variant: str | None,
    threads: int | None,
    seconds: float,
    overrides: Sequence[str],
    runs: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure latency: of a recipe's engines next to PyTorch, or (--runtime) what the runtime itself costs.

    \b
    edgekiln bench recipes/traffic-lights-224.toml --again
    edgekiln bench runs/traffic-lights/bundle --runtime
    edgekiln bench runs/traffic-lights/bundle --mlperf --images photos
    edgekiln bench recipes/traffic-lights-224.toml --mlperf --seconds 60
    """
    if mlperf and runtime:
        raise UsageError("--mlperf and --runtime are two measurements: give one of them.")
    if not mlperf and (images or variant or threads):
        raise UsageError("--images, --variant and --threads belong to --mlperf.")
    if mlperf and target.is_file():
        if images or variant or threads:
            raise UsageError(
                "--images, --variant and --threads belong to --mlperf of a bundle.",
                hint="Of a recipe, LoadGen drives every engine on the CPU that passed, on the run's test images.",
            )
        overrides = [*overrides, "benchmark.mlperf=true", f"benchmark.mlperf_seconds={seconds}"]
    elif mlperf:
        from edgekiln.pipeline.cli.mlperf import run_and_print

        run_and_print(target, images, variant=variant, threads=threads, seconds=seconds, as_json=as_json)
        return
    if not runtime:
        if target.is_dir():
            raise UsageError(
                f"{target} is a folder; bench takes a recipe.",
                hint="--runtime and --mlperf measure with a bundle.",
            )
        _run_and_print(target, overrides, runs, quiet, as_json, force=["benchmark"] if again else [])
        return
    from edgekiln.benchmarks.runtime_cost import measure_runtime_cost

    values = measure_runtime_cost(target)
    if as_json:
        print_document(values)
        return
    for key, value in values.items():
        click.echo(f"{key:32} {value}")


COMMANDS = (run, predict, inspect, bench, build, compare, report, cache, doctor, *SIGNING_COMMANDS)
