"""What several commands share: options, and the one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

__all__ = ["json_option", "print_document", "quiet_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")


def print_document(values: Mapping[str, Any], *, ok: bool = True) -> None:
    """Print the result of a command as its one document on stdout."""
    click.echo(json.dumps({"schema_version": "1.0", "ok": ok, **values}, sort_keys=True))
