"""``pack``: a recipe's bundle; of a bundle, a model for Triton (``shipping``) or test vectors (``device``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import echo_line, print_document, trusted_key_option
from edgekiln.pipeline.cli.running import RunWish, execute, print_run, run_options
from edgekiln.pipeline.cli.tables import wide_option
from edgekiln.runtime.errors import UsageError

if TYPE_CHECKING:
    from edgekiln.pipeline.shipping.triton.repository import PackedModel

__all__ = ["pack"]

_EVERY = ("recipe", "triton", "vectors")
_USES = {
    **dict.fromkeys(("source", "quiet", "as_json", "verbose", "debug"), _EVERY),
    **dict.fromkeys(("overrides", "runs", "force", "dry_run", "wide"), ("recipe",)),
    **dict.fromkeys(("variant", "allow_unverified", "trusted_keys"), ("triton", "vectors")),
    "vectors": ("vectors",),
}
"""What an option goes with; all others are Triton's alone."""


@click.command()
@click.argument("source", metavar="RECIPE|BUNDLE", type=click.Path(path_type=Path))
@wide_option
@run_options
@click.option(
    "--triton",
    "repository",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write BUNDLE's engine as a model into this Triton model repository; the options below go with it.",
)
@click.option(
    "--vectors",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write test vectors for products in other languages: pictures, input and answers. --variant goes with it.",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="Default: the first that passed, that Triton serves and that runs here; for --vectors all that passed.",
)
@click.option("--name", metavar="NAME", help="Of the model. Default: the bundle's.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Largest batch that Triton may make. Default: what an engine was built for, 8 for ONNX files.",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="US",
    help="How long a request waits for others to fill a batch.",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Copies of the model that run at a time.",
)
@click.option(
    "--warmup",
    type=click.Choice(["auto", "real", "random", "none"]),
    default="auto",
    show_default=True,
    help="What the model sees when it is loaded; auto takes real pictures where there are any and may be.",
)
@click.option(
    "--picture",
    "pictures",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture to warm up with; may be repeated. Default: the val split of the run that the bundle lies in.",
)
@click.option("--allow-unverified", is_flag=True, help="With --variant: also one whose gate did not pass.")
@trusted_key_option
@click.pass_context
def pack(
    context: click.Context,
    /,
    run: RunWish,
    source: Path,
    repository: Path | None,
    vectors: Path | None,
    trusted_keys: Sequence[Path],
    **wish: Any,
) -> None:
    """Judge and put the bundle together; or write a bundle's engine for a model server, or test vectors of it.

    Of a recipe: a run of all that is not done yet, with a bundle at its end. Of a bundle: with --triton a model of
    NVIDIA Triton Inference Server, as ONNX file or TensorRT plan; with --vectors made pictures, the arrays that engines
    get of them, and their logits with tolerances, for products that embed an engine in C++, Java or Rust.

    \b
    edgekiln pack recipes/traffic-lights.toml
    edgekiln pack runs/traffic-lights/bundle --triton models
    edgekiln pack runs/traffic-lights/bundle --vectors vectors
    """
    if repository is not None and vectors is not None:
        raise UsageError("--triton and --vectors are two uses.", hint="Give one after the other.")
    _refuse_foreign_options(context, "triton" if repository else "vectors" if vectors else "recipe")
    if vectors is not None:
        _write_vectors(source, vectors, trusted_keys, wish, run.as_json)
        return
    if repository is not None:
        _pack_for_triton(source, repository, trusted_keys, wish, run.as_json)
        return
    done = execute(source, run)
    if done is not None:
        print_run(done[1], run, source)


def _refuse_foreign_options(context: click.Context, use: str) -> None:
    """An option that would have no effect was meant for another use."""
    given = [
        parameter
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
    ]
    for parameter in given:
        uses = _USES.get(parameter.name or "", ("triton",))
        if use in uses:
            continue
        why = (
            "is for recipes" if "recipe" in uses else f"goes with {' or '.join(f'--{name}' for name in uses)}"
        )
        raise UsageError(f"{parameter.opts[0]} {why}.", hint="`edgekiln pack --help` tells the uses apart.")


def _write_vectors(
    bundle: Path, folder: Path, trusted_keys: Sequence[Path], wish: Mapping[str, Any], as_json: bool
) -> None:
    from edgekiln.pipeline.device.vectors import INDEX_NAME, write_vectors
    from edgekiln.runtime.bundles.bundle import open_bundle

    opened = open_bundle(bundle, trusted_keys=trusted_keys or None)
    written = write_vectors(
        opened, folder, variant=wish["variant"], allow_unverified=wish["allow_unverified"]
    )
    if as_json:
        print_document({"folder": str(folder), **written.index})
        return
    click.echo(f"{folder / INDEX_NAME}  {written.rows} frames")
    for name, rows in written.answered.items():
        click.echo(f"{name}: answers to {rows} of {written.rows} frames")
    for name, why in written.left_out.items():
        echo_line(f"{name} is left out: {why}")


def _pack_for_triton(
    bundle: Path, repository: Path, trusted_keys: Sequence[Path], wish: Mapping[str, Any], as_json: bool
) -> None:
    from edgekiln.pipeline.shipping.triton.repository import TritonWish, pack_for_triton
    from edgekiln.runtime.bundles.bundle import open_bundle

    opened = open_bundle(bundle, trusted_keys=trusted_keys or None)
    models, notices = pack_for_triton(opened, repository, TritonWish(**wish))
    if as_json:
        print_document({"models": [_describe(model) for model in models], "notices": notices})
        return
    for model in models:
        config = model.config
        batch = (
            f"batches of up to {config.max_batch}" if config.max_batch else f"batches of {config.fixed_batch}"
        )
        click.echo(f"{model.folder}  {model.file}, {config.platform}, {config.kind[5:]}, {batch}")
    for notice in notices:
        echo_line(notice)


def _describe(model: PackedModel) -> dict[str, Any]:
    config = model.config
    return {
        "name": model.name,
        "folder": str(model.folder),
        "file": model.file,
        "platform": config.platform,
        "kind": config.kind,
        "max_batch_size": config.max_batch,
        "fixed_batch": config.fixed_batch,
        "warmup": [{"batch_size": sample.batch_size, "file": sample.file} for sample in config.warmup],
    }
