"""A recipe with nothing left out: every key with its value, and where the value came from. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from edgekiln.pipeline.recipe import Recipe, read_values

__all__ = ["Origin", "render_recipe", "toml_string", "trace_origins"]

Origin = Literal["flag", "file", "default"]
_COLUMN = 48  # at which origins stand, where a line is shorter


def trace_origins(recipe: Recipe, path: Path, overrides: Iterable[str] = ()) -> dict[str, Origin]:
    """Where each value of a loaded recipe came from, by its key as ``--set`` takes it.

    Args:
        recipe: what ``load_recipe`` made of the other two.
        path: the recipe's file.
        overrides: of the command line.
    """
    overrides = tuple(overrides)
    said = dict(_leaves(read_values(path, overrides)))
    flags = tuple(override.partition("=")[0] for override in overrides)

    def origin(key: str) -> Origin:
        if key not in said:
            return "default"
        return "flag" if any(key == flag or key.startswith(f"{flag}.") for flag in flags) else "file"

    return {key: origin(key) for key, _ in _leaves(recipe.model_dump(mode="json"))}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that is no section; a variant's name stands for its place in the list."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif _is_tables(value):
            for item in value:
                yield from _leaves(item, f"{prefix}{key}.{item['name']}.")
        else:
            yield f"{prefix}{key}", value


def render_recipe(recipe: Recipe, origins: Mapping[str, Origin] | None = None) -> str:
    """TOML that loads to the same recipe; keys without a value stand in comments, since TOML has no such value.

    Args:
        recipe: any.
        origins: of ``trace_origins``; written behind each value.
    """
    return "\n".join(_section(recipe.model_dump(mode="json"), "", "", origins)) + "\n"


def _section(
    values: Mapping[str, Any], title: str, key: str, origins: Mapping[str, Origin] | None
) -> Iterator[str]:
    """One table and those below it. ``title`` is its TOML name, ``key`` the prefix of its keys in ``origins``."""
    for name, value in values.items():
        if not isinstance(value, Mapping) and not _is_tables(value):
            line = f"# {name} = " if value is None else f"{name} = {_value(value)}"
            yield line if origins is None else f"{line:{_COLUMN}} # {origins[f'{key}{name}']}"
    for name, value in values.items():
        below = f"{title}.{name}" if title else name
        if isinstance(value, Mapping):
            yield from ("", f"[{below}]", *_section(value, below, f"{key}{name}.", origins))
        elif _is_tables(value):
            for item in value:
                yield from (
                    "", f"[[{below}]]", *_section(item, below, f"{key}{name}.{item['name']}.", origins)
                )  # fmt: skip


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return toml_string(value) if isinstance(value, str) else json.dumps(value)


def toml_string(text: str) -> str:
    """A basic string of TOML: JSON's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
