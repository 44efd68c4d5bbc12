"""The recipe's page, from its pydantic models: each section's keys with type, default, limits and meaning."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reference.markdown import code, table

__all__ = ["describe_recipe", "sections"]

Section = tuple[str, type[BaseModel]]
_HEADER = ("key", "type", "default", "limits", "meaning")
_TYPES = {str: "text", bool: "true or false", int: "whole number", float: "number", Path: "path"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def describe_recipe(model: type[BaseModel]) -> str:
    """Every section below the model, the top level first, in the order in which the models name them."""
    first: dict[type[BaseModel], str] = {}
    parts = []
    for title, section in sections(model):
        parts.append(_refer(title, first[section]) if section in first else _describe(title, section))
        first.setdefault(section, title)
    return "\n\n".join(parts)


def sections(model: type[BaseModel], path: str = "") -> Iterator[Section]:
    """The model and the models inside it, each with its TOML heading; the top level's is empty."""
    yield path, model
    for name, field in model.model_fields.items():
        inner, repeated = _inner_model(field.annotation)
        if inner is not None:
            inside = f"{path.strip('[]')}.{name}".lstrip(".")
            yield from sections(inner, f"[[{inside}]]" if repeated else f"[{inside}]")


def _describe(title: str, model: type[BaseModel]) -> str:
    heading = f"## {code(title)}" if title else "## Top level"
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    return f"{heading}\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{table(_HEADER, rows)}"


def _refer(title: str, same: str) -> str:
    return f"## {code(title)}\n\nThe keys of {code(same)}."


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str, str]:
    inner, repeated = _inner_model(field.annotation)
    if inner is not None:
        kind = "sections" if repeated else "section"
        default = "must be given" if field.is_required() else "its own defaults"
        default = "unset" if field.default is None else default
        limits = "one or more" if repeated else ""
        return code(name), kind, default, limits, field.description or _one_line(inner.__doc__ or "")
    default = "must be given" if field.is_required() else _toml(field.default)
    limits = "; ".join(_limits(field))
    return code(name), _type(field.annotation), default, limits, field.description or ""


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model that a field holds, if any, and whether it may hold several."""
    annotation = _without_none(annotation)
    if hasattr(
        annotation, "__metadata__"
    ):  # Annotated: one of several forms of a value, the first is the usual one
        annotation = annotation.__origin__
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is tuple and isinstance(get_args(annotation)[0], type):
        first = get_args(annotation)[0]
        return (first, True) if issubclass(first, BaseModel) else (None, False)
    return None, False


def _without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``; anything else as it is."""
    if get_origin(annotation) not in {Union, types.UnionType}:
        return annotation
    return next(a for a in get_args(annotation) if a is not type(None))


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(annotation.__origin__)
    if origin in {Union, types.UnionType}:
        return _type(_without_none(annotation))
    if origin is Literal:
        return ", ".join(code(_quoted(a)) for a in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(code(_quoted(member.value)) for member in annotation)
    return _TYPES[annotation]


def _limits(field: FieldInfo) -> Iterator[str]:
    metadata = list(field.metadata)
    for argument in get_args(field.annotation):  # the limits of a list's items
        metadata += [
            m for part in getattr(argument, "__metadata__", ()) for m in getattr(part, "metadata", [part])
        ]
    for limit in metadata:
        for name, sign in _SIGNS.items():
            if getattr(limit, name, None) is not None:
                yield f"{sign} {getattr(limit, name)}"
        if getattr(limit, "pattern", None):
            yield code(limit.pattern)


def _toml(value: Any) -> str:
    """A default as it would be written in the recipe."""
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return code(f"[{', '.join(map(_quoted, value))}]")
    return code(_quoted(value.value if isinstance(value, Enum) else value))


def _quoted(value: Any) -> str:
    return json.dumps(value)  # TOML writes strings, numbers and truth values as JSON does


def _one_line(text: str) -> str:
    return " ".join(text.split())
