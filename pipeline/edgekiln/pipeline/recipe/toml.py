"""Writes a recipe's values as TOML, so that a report shows a file that can be run. Knows what recipes hold, no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_tables", "toml_value", "write_toml"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_toml(values: Mapping[str, Any]) -> str:
    """TOML of JSON values: sections one deep, lists of tables as ``[[name]]``, deeper tables inline.

    ``None`` is left out: TOML has no such value, and a recipe's key without one is a key that is not there.
    """
    return "\n".join(_lines(values)) + "\n"


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if not isinstance(value, Mapping) and not is_tables(value) and value is not None:
            yield f"{_key(key)} = {toml_value(value)}"
    for key, value in values.items():
        tables = [value] if isinstance(value, Mapping) else value if is_tables(value) else []
        for table in tables:
            yield f"[{_key(key)}]" if isinstance(value, Mapping) else f"[[{_key(key)}]]"
            yield from (f"{_key(k)} = {toml_value(v)}" for k, v in table.items() if v is not None)


def is_tables(value: Any) -> bool:
    """Whether a value is written as an array of tables."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)


def toml_value(value: Any) -> str:
    """A value as it stands behind ``KEY =``; tables are written inline."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    # JSON's strings, numbers and truth values are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
