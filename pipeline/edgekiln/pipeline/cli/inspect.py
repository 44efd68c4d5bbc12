"""``inspect``: what a file or folder is, which ``inspecting.py`` looks at, or what an engine's layers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.layer_sources import LayerWish, read_profiles
from edgekiln.pipeline.cli.options import echo_line, json_option, print_document, trusted_key_option
from edgekiln.pipeline.cli.running import variant_option
from edgekiln.runtime.errors import UsageError

__all__ = ["inspect"]

_OPTIONS = {"timed": "time", "graph": "onnx", "variants": "variant"}
"""Options whose values have another name."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="List the layers of an engine; its library loads it for that.")
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="With --layers: how long each takes here, by the library's profiler.",
)
@click.option(
    "--backend", type=click.Choice(["onnxruntime-cpu", "openvino"]), help="With --layers of an ONNX file."
)
@click.option(
    "--onnx",
    "graph",
    type=click.Path(path_type=Path),
    help="With --layers of an engine: its ONNX file, for the MACs.",
)
@click.option("--threads", type=click.IntRange(min=1), help="With --layers: CPU threads.")
@variant_option
@trusted_key_option
@json_option
def inspect(path: Path, layers: bool, trusted_keys: Sequence[Path], as_json: bool, **of_layers: Any) -> None:
    """Say what a file or bundle is, and of an engine whether it would load here.

    It knows bundles (folders and .zip), ONNX files, checkpoints and engines; nothing is run. Of an ONNX file it also
    tells whether INT8 weights may overflow on ARM cores without dot product.

    With --layers it tells what an engine computes, layer by layer: ONNX nodes, precision, share of the MACs, and with
    --time share of the time, the slowest first. For that the engine is loaded and run, in a process of its own: an
    engine is code, so give one that you trust.

    \b
    edgekiln inspect runs/traffic-lights/bundle
    edgekiln inspect runs/traffic-lights/bundle --layers --time --variant int8
    """
    if layers:
        _print_layers(path, LayerWish(**of_layers, trusted_keys=trusted_keys or None), as_json)
        return
    if meant := [f"--{_OPTIONS.get(name, name)}" for name, value in of_layers.items() if value]:
        raise UsageError(
            f"Only --layers takes {', '.join(meant)}.", hint="edgekiln inspect ENGINE --layers --time"
        )
    from edgekiln.pipeline.cli.inspecting import describe

    values = describe(path, trusted_keys or None)
    if as_json:
        print_document(values)
        return
    for key, value in values.items():
        if isinstance(value, list):
            if not value:
                continue
            echo_line(f"{key}:")
            for item in value:
                echo_line(f"  {item if isinstance(item, str) else _one_line(item)}")
        else:
            echo_line(f"{key}: {value}")


def _print_layers(path: Path, wish: LayerWish, as_json: bool) -> None:
    from edgekiln.pipeline.cli.layers import tell_layers

    profiles = read_profiles(path, wish)
    if as_json:
        print_document({"profiles": [profile.to_dict() for profile in profiles]})
        return
    for number, profile in enumerate(profiles):
        if number:
            click.echo()
        for line in tell_layers(profile):
            echo_line(line)


def _one_line(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in item.items())
