"""``inspect``: what a file or folder is; ``inspecting.py`` looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.options import echo_line, json_option, print_document, trusted_key_option

__all__ = ["inspect"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@trusted_key_option
@json_option
def inspect(path: Path, trusted_keys: Sequence[Path], as_json: bool) -> None:
    """Say what a file or bundle is, and of an engine whether it would load here.

    It knows bundles (folders and .zip), ONNX files, checkpoints and engines; nothing is run. Of an ONNX file it also
    tells whether INT8 weights may overflow on ARM cores without dot product.

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
            if not value:
                continue
            echo_line(f"{key}:")
            for item in value:
                echo_line(f"  {item if isinstance(item, str) else _one_line(item)}")
        else:
            echo_line(f"{key}: {value}")


def _one_line(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in item.items())
