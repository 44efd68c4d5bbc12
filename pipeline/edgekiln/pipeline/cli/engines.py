"""The commands about engines: ``build`` on the machine that will run them, and the ``cache`` of built ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.options import SuggestingGroup, echo_line, fail, json_option, print_document
from edgekiln.pipeline.cli.running import RunWish, execute, print_stages, run_options, variant_option
from edgekiln.runtime.errors import GateError, UsageError

__all__ = ["build", "cache"]


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Of a bundle: folder of the derived bundle.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Of a bundle: folder with its test pictures, to judge the engines on.",
)
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Of a bundle: instead of the variant's own.",
)
@click.option("--sm", metavar="86,89", help="tensorrt-rtx: compute capabilities to build for; 86 is 8.6.")
@click.option(
    "--batch",
    "batches",
    metavar="MIN,OPT,MAX",
    multiple=True,
    help="Batch sizes that the engine takes, for example 1,8,32; given again: a further profile in the same engine.",
)
@click.option(
    "--workspace", type=click.IntRange(1, 2**20), metavar="MIB", help="Most memory that a kernel may use."
)
@click.option(
    "--level", type=click.IntRange(0, 5), help="Builder optimization level; more is slower to build."
)
@variant_option
@run_options
def build(wish: RunWish, target: Path, variants: tuple[str, ...], **of_bundle: Any) -> None:
    """Build TensorRT engines here, of a bundle or of a recipe.

    A bundle's engines are judged against the PyTorch answers that it recorded, on those of its test pictures that are
    found below --data (by content). Without --data they are unverified. Exits 3 when one does not pass. A recipe
    (a file) is run up to its engine stages; its own build sections say how.

    \b
    edgekiln build bundle --data test-pictures --out bundle-here
    edgekiln build bundle --out bundle-turing --backend tensorrt-rtx --sm 75
    edgekiln build recipes/traffic-lights.toml --variant rtx-fp16
    """
    if not target.exists():
        raise UsageError(f"There is no bundle or recipe {target}.", path=target)
    if target.is_file() and target.suffix != ".zip":
        _build_recipe(wish, target, variants, of_bundle)
    else:
        _build_bundle(wish, target, variants, **of_bundle)


def _build_recipe(wish: RunWish, recipe: Path, variants: Sequence[str], of_bundle: Mapping[str, Any]) -> None:
    given = [f"--{'batch' if name == 'batches' else name}" for name, value in of_bundle.items() if value]
    if given:
        raise UsageError(
            f"{', '.join(given)} belong to a bundle; {recipe} is a recipe.",
            hint="A recipe says how in its variants: build = {batch = {max = 8}}; --set overrides it.",
        )
    done = execute(recipe, wish, until="engine", variants=variants)
    if done is not None:
        print_stages(done[1], wish.as_json)


def _build_bundle(
    wish: RunWish, bundle: Path, variants: tuple[str, ...], out: Path | None, data: Path | None, **how: Any
) -> None:
    from edgekiln.pipeline.device.request import TargetRequest
    from edgekiln.pipeline.device.target import build_on_target
    from edgekiln.pipeline.workspace.progress import make_progress

    if wish.overrides or wish.force or wish.dry_run:
        raise UsageError(
            f"--set, --force and --dry-run belong to a recipe; {bundle} is a bundle.",
            hint="What it was made from is fixed; --batch, --sm, --workspace and --level say how to build.",
        )
    if out is None:
        raise UsageError("Missing option '--out'.", hint="It names the folder of the new bundle.")
    settings: dict[str, Any] = {
        "capabilities": _numbers("--sm", how["sm"]),
        "batch": _read_batches(how["batches"]),
        "workspace_mib": how["workspace"],
        "optimization_level": how["level"],
    }
    request = TargetRequest(
        bundle,
        out,
        data,
        variants,
        how["backend"],
        {key: value for key, value in settings.items() if value is not None},
    )
    content = build_on_target(request, make_progress(wish.quiet))
    built = [v for v in content["variants"] if v.get("source")]
    if not wish.as_json:
        for variant in built:
            echo_line(f"{variant['name']}: {variant['verdict']}. {variant['reason']}")
            for notice in variant["figures"].get("build", {}).get("notices", ()):
                echo_line(notice)
        click.echo(f"bundle   {out}")
    document = {"bundle": str(out), "parent": content["parent"]["digest"], "variants": built}
    if failure := _judge(content, built):
        fail(failure, document, wish.as_json)
    if wish.as_json:
        print_document(document)


def _judge(content: Mapping[str, Any], built: Sequence[Mapping[str, Any]]) -> GateError | None:
    """The error of required engines that were built and may not ship; ``None`` where there are none."""
    undecided_fails = (content.get("gate") or {}).get("inconclusive", "fail") == "fail"
    bad = {"fail", "not-run", *(["inconclusive"] if undecided_fails else [])}
    failed = [f"{v['name']}: {v['verdict']}" for v in built if v["verdict"] in bad and v["required"]]
    if not failed:
        return None
    return GateError(f"{len(failed)} of {len(built)} engines did not pass: {', '.join(failed)}.")


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text}: wanted whole numbers with commas between.") from error


def _read_batches(texts: Sequence[str]) -> list[dict[str, int]] | dict[str, int] | None:
    """As a recipe's key ``batch`` has it: one table, or a list of them."""
    profiles = [_read_batch(text) for text in texts]
    return profiles if len(profiles) > 1 else next(iter(profiles), None)


def _read_batch(text: str) -> dict[str, int]:
    numbers = _numbers("--batch", text) or []
    if len(numbers) != 3:
        raise UsageError(f"--batch {text}: wanted three numbers, as in 1,8,32.")
    return dict(zip(("min", "opt", "max"), numbers, strict=True))


@click.group(cls=SuggestingGroup)
def cache() -> None:
    """List or remove engines that were built on this machine.

    They stand in $EDGEKILN_CACHE, else in ~/.cache/edgekiln/engines.

    \b
    edgekiln cache ls
    edgekiln cache prune --older-than 30
    """


@cache.command(name="ls")
@json_option
def list_cache(as_json: bool) -> None:
    """List cached engines, the last used first.

    \b
    edgekiln cache ls
    """
    from edgekiln.export.engines.cache import EngineCache

    engines = EngineCache()
    rows = [_describe_entry(entry) for entry in engines.entries()]
    if as_json:
        print_document({"folder": str(engines.root), "engines": rows})
        return
    for row in rows:
        capabilities = f" SM {','.join(map(str, row['capabilities']))}" if row["capabilities"] else ""
        click.echo(
            f"{row['key'][:12]}  {row['bytes'] / 1e6:8.2f} MB  {row['library']} {row['version']}  {row['precision']}"
            f"  batch {row['batch']}  {row['gpu'] or 'any GPU'}{capabilities}  used {row['used_hours_ago']:.1f} h ago"
        )
    click.echo(f"{_count(len(rows))} in {engines.root}")


@cache.command()
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only those not used for so long."
)
@click.option("--all", "everything", is_flag=True, help="All that no build is using.")
@json_option
def prune(older_than: float | None, everything: bool, as_json: bool) -> None:
    """Remove cached engines. They are built again when they are needed.

    \b
    edgekiln cache prune --older-than 30
    edgekiln cache prune --all
    """
    from edgekiln.export.engines.cache import EngineCache

    if (older_than is None) == (not everything):
        raise UsageError(
            "prune was not told which engines to remove."
            if older_than is None
            else "--older-than and --all exclude each other.",
            hint="Say which: --older-than DAYS, or --all.",
        )
    removed = EngineCache().prune(older_than_seconds=(older_than or 0.0) * 86400)
    size = sum(entry.size for entry in removed)
    if as_json:
        print_document({"removed": [entry.key for entry in removed], "bytes": size})
        return
    click.echo(f"{_count(len(removed))} removed, {size / 1e6:.2f} MB freed")


def _count(engines: int) -> str:
    return f"{engines} engine{'' if engines == 1 else 's'}"


def _describe_entry(entry: Any) -> dict[str, Any]:
    about = entry.about
    options = about["options"]
    batch = options["batch"]
    profiles = batch if isinstance(batch, list) else [batch]
    return {
        "key": entry.key,
        "bytes": entry.size,
        "library": about["library"][0],
        "version": about["version"],
        "precision": options["precision"],
        "batch": ",".join(
            f"{p['min']}-{p['max']}" if p["min"] != p["max"] else str(p["min"]) for p in profiles
        ),
        "gpu": about["gpu"][0] if about["gpu"] else None,
        "capabilities": options["capabilities"],
        "used_hours_ago": max(0.0, (time.time() - entry.used) / 3600),
    }
