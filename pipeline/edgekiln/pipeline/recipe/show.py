"""A recipe with nothing left out: every key with its value, and where the value came from. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from edgekiln.pipeline.recipe.recipe import Recipe, read_values
from edgekiln.pipeline.recipe.toml import is_tables, toml_value

__all__ = ["Origin", "render_recipe", "trace_origins"]

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
        elif _is_sections(value):
            for item in value:
                yield from _leaves(item, f"{prefix}{key}.{item['name']}.")
        else:
            yield f"{prefix}{key}", value


def render_recipe(recipe: Recipe, origins: Mapping[str, Origin], *, tell_origins: bool = False) -> str:
    """TOML that loads to the same recipe.

    In comments stand keys without a value, since TOML has no such value, and the defaults of a variant's own sections,
    since a backend refuses even the default of what it would not use.

    Args:
        recipe: any.
        origins: of ``trace_origins``.
        tell_origins: whether they are written behind each value.
    """
    rows = _rows(recipe.model_dump(mode="json"), "", "", origins)
    return "".join(
        f"{text:{_COLUMN}} # {origin}\n" if origin and tell_origins else f"{text}\n" for text, origin in rows
    )


def _rows(
    values: Mapping[str, Any], title: str, key: str, origins: Mapping[str, Origin]
) -> Iterator[tuple[str, Origin | None]]:
    """(line, origin) of one section and those below it; ``title`` is its name in TOML, ``key`` that in origins."""
    of_variants = title.partition(".")[0] == "variants"
    for name, value in values.items():
        if not isinstance(value, Mapping) and not _is_sections(value):
            origin = origins[f"{key}{name}"]
            mark = "# " if value is None or (title.startswith("variants.") and origin == "default") else ""
            yield f"{mark}{name} = {'' if value is None else toml_value(value)}".rstrip(), origin
    for name, value in values.items():
        below = f"{title}.{name}" if title else name
        if isinstance(value, Mapping):
            unsaid = all(origins[leaf] == "default" for leaf, _ in _leaves(value, f"{key}{name}."))
            yield from (("", None), (f"{'# ' if unsaid and of_variants else ''}[{below}]", None))
            yield from _rows(value, below, f"{key}{name}.", origins)
        elif _is_sections(value):
            for item in value:
                yield from (("", None), (f"[[{below}]]", None))
                yield from _rows(item, below, f"{key}{name}.{item['name']}.", origins)


def _is_sections(value: Any) -> bool:
    """Whether a value is a list of sections: of tables with a name, as ``[[variants]]``. Others are written inline."""
    return is_tables(value) and all("name" in item for item in value)
