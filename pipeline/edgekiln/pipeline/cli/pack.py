"""``pack``: a bundle's engine in the form that a model server loads; ``pipeline.triton`` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import json_option, print_document, trusted_key_option

if TYPE_CHECKING:
    from edgekiln.pipeline.triton.repository import PackedModel

__all__ = ["pack"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--triton",
    "repository",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Model repository of NVIDIA Triton Inference Server to add the model to.",
)
@click.option(
    "--variant", metavar="NAME", help="Default: the first that passed, that Triton serves and that runs here."
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
@json_option
def pack(bundle: Path, repository: Path, trusted_keys: Sequence[Path], as_json: bool, **wish: Any) -> None:
    """Write a bundle's engine as a model of NVIDIA Triton Inference Server: ONNX file or TensorRT plan.

    \b
    edgekiln pack runs/traffic-lights/bundle --triton models
    """  # fmt: skip
    from edgekiln.pipeline.triton.repository import TritonWish, pack_for_triton
    from edgekiln.runtime.bundle import open_bundle

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
        click.echo(notice)


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
