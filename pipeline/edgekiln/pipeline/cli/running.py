"""What the commands that run a recipe share: their arguments, the dry run, and telling what came of it."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import (
    as_printable,
    echo_line,
    fail,
    json_option,
    print_document,
    program_name,
    quiet_option,
)
from edgekiln.pipeline.cli.tables import Repeat, add_ways, print_judgement
from edgekiln.runtime.errors import GateError

if TYPE_CHECKING:
    from edgekiln.pipeline.recipe import Recipe
    from edgekiln.pipeline.run import PlannedStage, RunResult

__all__ = [
    "RunWish",
    "execute",
    "print_report",
    "print_stages",
    "recipe_argument",
    "repeat_command",
    "run_options",
    "set_option",
    "variant_option",
]

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the recipe: finetune.epochs=2"
)
variant_option = click.option(
    "--variant", "variants", multiple=True, metavar="NAME", help="Only this variant; may be repeated."
)
_RUNS = Path("runs")
_OPTIONS = (
    set_option,
    click.option(
        "--runs", type=click.Path(path_type=Path, file_okay=False), default=_RUNS, show_default=True,
        help="Folder in which NAME/ is made, with all stages and the bundle.",
    ),
    click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again; may be repeated."),
    click.option("--dry-run", is_flag=True, help="Say what would be done and what is cached; change nothing."),
    quiet_option,
    json_option,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunWish:
    """The options of every command that runs a recipe; ``wide`` of those that print the table."""

    overrides: tuple[str, ...]
    runs: Path
    force: tuple[str, ...]
    dry_run: bool
    quiet: bool
    as_json: bool
    wide: bool = False


def run_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command those options; it takes them as its first argument, a RunWish."""

    @functools.wraps(function)
    def collected(*context: click.Context, **values: Any) -> None:
        wish = RunWish(**{name: values.pop(name) for name in RunWish.__slots__ if name in values})
        function(*context, wish, **values)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), collected)


def execute(
    recipe_path: Path, wish: RunWish, *, until: str | None = None, variants: Sequence[str] = ()
) -> tuple[Recipe, RunResult] | None:
    """Run the stages, or with --dry-run print the plan and give ``None``."""
    from edgekiln.runtime.extras import import_extra

    for module in ("pydantic", "torch", "torchvision", "timm", "onnx", "jinja2"):
        import_extra(module, "build")
    import_extra("onnxruntime", "onnx")
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import plan_run, run_recipe
    from edgekiln.pipeline.workspace.progress import make_progress

    recipe = load_recipe(recipe_path, wish.overrides)
    for notice in recipe.notices:
        click.echo(as_printable(notice), err=True)
    if wish.dry_run:
        plan = plan_run(recipe, wish.runs, until=until, force=wish.force, variants=variants)
        _print_plan(plan, wish.runs / recipe.name, wish.as_json)
        return None
    progress = make_progress(wish.quiet)
    return recipe, run_recipe(recipe, wish.runs, progress, until=until, force=wish.force, variants=variants)


_WORDS = {"cached": "cached", "run": "runs", "depends": "may run"}


def _print_plan(plan: Sequence[PlannedStage], folder: Path, as_json: bool) -> None:
    waiting = [stage for stage in plan if stage.action != "cached"]
    known = sum(stage.seconds or 0.0 for stage in waiting)
    unknown = sum(stage.seconds is None for stage in waiting)
    if as_json:
        stages = [
            {
                "name": s.name, "action": s.action, "reason": s.reason, "last_seconds": s.seconds,
                "folder": None if s.folder is None else str(s.folder),
                "purpose": s.purpose, "makes": list(s.makes), "notices": list(s.notices),
            }
            for s in plan
        ]  # fmt: skip
        print_document(
            {
                "dry_run": True,
                "folder": str(folder),
                "stages": stages,
                "to_run": len(waiting),
                "last_seconds": known if unknown < len(waiting) else None,
            }
        )
        return
    width = max(len(stage.name) for stage in plan)
    for stage in plan:
        took = "" if stage.seconds is None else f"{stage.seconds:.1f} s"
        click.echo(f"{stage.name:{width}}  {_WORDS[stage.action]:7}  {took:>10}  {stage.reason}")
        if stage.action != "cached":
            click.echo(f"{'':{width}}  {stage.purpose}: {', '.join(stage.makes)}")
        for notice in stage.notices:
            click.echo(as_printable(f"{'':{width}}  {notice}"))
    click.echo("")
    if not waiting:
        click.echo(f"Nothing to do: all {len(plan)} stages are done, in {folder}.")
        return
    never = f"; {unknown} never ran, so that is not all" if unknown else ""
    took = f"they last took {known:.1f} s{never}" if unknown < len(waiting) else "none of them ever ran"
    click.echo(f"{len(waiting)} of {len(plan)} stages to run in {folder}; {took}. Nothing was changed.")


def print_stages(result: RunResult, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """What each stage made, where, and in which time."""
    if as_json:
        print_document({"stages": describe_stages(result), **(more or {})})
        return
    width = max(map(len, result.stages))
    for name, record in result.stages.items():
        state = "cached" if record.cached else "made"
        click.echo(f"{name:{width}}  {state:6}  {record.seconds:8.1f} s  {record.folder}")


def describe_stages(result: RunResult) -> dict[str, Any]:
    """JSON values about the stages of a run."""
    return {
        name: {"seconds": r.seconds, "cached": r.cached, "folder": str(r.folder)}
        for name, r in result.stages.items()
    }


def print_run(result: RunResult, wish: RunWish, recipe: Path | None) -> None:
    """The table of a finished run, or its stages where it stopped before; raises where the gate did not pass.

    ``recipe`` is as it was given; ``None`` of the demo, which has its own.
    """
    if result.report is None or result.bundle is None:
        print_stages(result, wish.as_json)
        return
    more = {"stages": describe_stages(result)}
    print_report(result.report, result.bundle, wish, functools.partial(repeat_command, wish, recipe), more)


def repeat_command(wish: RunWish, recipe: Path | None, setting: str | None = None) -> str:
    """What runs the same again, as one types it here; with ``setting`` in the place of what its key was before."""
    words = ["demo"] if recipe is None else ["run", str(recipe)]
    key = (setting or "").partition("=")[0]
    kept = [override for override in wish.overrides if override.partition("=")[0] != key]
    words += [word for override in (*kept, *([setting] if setting else [])) for word in ("--set", override)]
    if wish.runs != _RUNS:
        words += ["--runs", str(wish.runs)]
    return f"{program_name()} {shlex.join(words)}"


def print_report(
    report: Mapping[str, Any],
    bundle: Path,
    wish: RunWish,
    repeat: Repeat | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """The table of a report that lies in ``bundle``, or its JSON with ``more``; raises where the gate did not pass.

    ``repeat`` gives what judges anew, for the ways out of an undecided verdict.
    """
    from edgekiln.benchmarks.judging.required import check_gate

    parts = ("name", "baseline", "peers", "variants", "data", "machine", "mlperf")
    document = {**{key: report[key] for key in parts}, **(more or {}), "bundle": str(bundle)}
    document["variants"] = add_ways(report)
    if "parent" in report:
        document |= {"parent": report["parent"], "benchmark": _without_times(report["benchmark"])}
    if not wish.as_json:
        _print_report(report, bundle, repeat, wide=wish.wide)
    try:
        check_gate(report)
    except GateError as error:
        fail(error, document, wish.as_json)
    if wish.as_json:
        print_document(document)


def _without_times(benchmark: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A benchmark without its single calls, which the report in the bundle has."""
    if benchmark is None:
        return None
    figures = {
        part: [{key: value for key, value in m.items() if key != "blocks"} for m in benchmark[part]]
        for part in ("measurements", "sides")
    }
    return {**benchmark, **figures}


def _print_report(report: Mapping[str, Any], bundle: Path, repeat: Repeat | None, *, wide: bool) -> None:
    from edgekiln.benchmarks.report import (
        cell_headings,
        cell_rows,
        describe_mlperf,
        describe_peers,
        format_text,
        mlperf_headings,
        mlperf_rows,
    )

    for notice in report["notices"]:
        echo_line(notice)
    print_judgement(report, wide=wide, repeat=repeat)
    if report["benchmark"]:
        _print_timings(report)
    for rows, headings in (
        (cell_rows(report), cell_headings(report)),
        (mlperf_rows(report), mlperf_headings()),
    ):
        if rows:
            click.echo("")
            click.echo(format_text(rows, headings))
    for line in describe_mlperf(report):
        click.echo(f"LoadGen  {line}")
    _print_places(report, bundle)
    for line in describe_peers(report):
        echo_line(line)


def _print_timings(report: Mapping[str, Any]) -> None:
    """What the table does not say of the timings."""
    from edgekiln.benchmarks.report import (
        describe_best_pytorch,
        describe_config,
        describe_floor,
        describe_phases,
        describe_throughput,
    )

    benchmark = report["benchmark"]
    validity = benchmark["validity"]
    reasons = f" ({'; '.join(validity['reasons'])})" if validity["reasons"] else ""
    configs = "; ".join(f"{m['name']} {describe_config(m['config'])}" for m in benchmark["measurements"])
    click.echo(f"latency  {validity['state']}{reasons}")
    told = [describe_best_pytorch(report), describe_floor(report), *describe_phases(report)]
    told += describe_throughput(report)
    for line in (f"batch 1; {configs}", *filter(None, told)):
        click.echo(f"         {line}")


def _print_places(report: Mapping[str, Any], bundle: Path) -> None:
    """On how many images it was judged, where the bundle and the page are, and what comes next."""
    on_device = "parent" in report
    where, name = "found here" if on_device else "in the test split", shlex.quote(str(bundle))
    click.echo(f"images   {report['data']['counts']['test']} {where}")
    click.echo(f"bundle   {bundle}")
    page = f"{program_name()} report {name} --out report.html (where the extra build is installed)"
    click.echo(f"report   {page if on_device else bundle / 'report.html'}")
    if any(variant["verdict"] == "pass" for variant in report["variants"]):
        click.echo(f"next     {program_name()} predict {name} PICTURE")
