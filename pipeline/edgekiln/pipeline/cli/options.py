"""What several commands share: options, and the one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

__all__ = ["json_option", "print_document", "quiet_option", "trusted_key_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
trusted_key_option = click.option(
    "--trusted-key", "trusted_keys", multiple=True, type=click.Path(path_type=Path), metavar="KEY.pub",
    help="Refuse the bundle unless one of these keys signed it.",
)  # fmt: skip


def print_document(values: Mapping[str, Any], *, ok: bool = True) -> None:
    """Print the result of a command as its one document on stdout."""
    click.echo(json.dumps({"schema_version": "1.0", "ok": ok, **values}, sort_keys=True))
