"""The Python page, from the docstrings of a package's public names."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

__all__ = ["describe_package"]

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_ITEM = re.compile(r"^    ([\w, .]+): (.*)$")


def describe_package(name: str) -> str:
    """The public names of a package, in alphabetical order, functions and classes with their public methods."""
    package = importlib.import_module(name)
    names = sorted(name for name in package.__all__ if not name.startswith("_"))
    return "\n\n".join(part for public in names for part in _describe(package, public))


def _describe(package: Any, name: str) -> Iterator[str]:
    value = getattr(package, name)
    yield f"## {name}"
    yield f"```text\n{_signature(name, value)}\n```"
    yield from _docstring(value)
    if inspect.isclass(value):
        yield from _constructor(name, value)
        for method, member in vars(value).items():
            yield from _describe_member(name, method, member)


def _constructor(name: str, value: type) -> Iterator[str]:
    """How an object is made, of a class whose ``__init__`` says so; the call of a dataclass stands on top."""
    make = vars(value).get("__init__")
    if make is not None and make.__doc__ and not is_dataclass(value):
        parameters, _ = _call(make)
        yield f"### `{name}({', '.join(parameters)})`"
        yield from _docstring(make)


def _describe_member(owner: str, name: str, member: Any) -> Iterator[str]:
    wrapped = getattr(member, "__func__", member)
    function = wrapped.fget if isinstance(wrapped, property) else wrapped
    if name.startswith("_") or not inspect.isfunction(function):
        return
    parameters, returns = _call(function)
    call = f"({', '.join(parameters)}){returns}"
    if isinstance(wrapped, property):
        call = returns.replace(" -> ", ": ")
    summary, *rest = list(_docstring(function)) or [""]
    yield f"### `{owner}.{name}{call}`"
    yield summary
    yield from rest


def _signature(name: str, value: Any) -> str:
    """The call as one would write it, one parameter a line where it is long."""
    if inspect.isclass(value) and not is_dataclass(value):
        return f"class {name}"
    parameters, returns = _call(value)
    text = f"{name}({', '.join(parameters)}){returns}"
    if len(text) <= 100:
        return text
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{lines}){returns}"


def _call(function: Any) -> tuple[list[str], str]:
    """Parameters and result as the source has them; ``inspect`` would put quotes around postponed annotations."""
    signature = inspect.signature(function)
    written: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        written.append(_parameter(parameter))
    nothing = signature.return_annotation in {None, "None", signature.empty}
    return written, "" if nothing else f" -> {signature.return_annotation}"


def _parameter(parameter: inspect.Parameter) -> str:
    annotation = str(parameter.annotation).strip('"')
    default = parameter.default
    if default is parameter.empty:
        return f"{parameter.name}: {annotation}"
    return f"{parameter.name}: {annotation} = {'...' if 'factory' in repr(default) else repr(default)}"


def _docstring(value: Any) -> Iterator[str]:
    """Paragraphs and lists: sections like ``Args:`` become a bold word and one item for each name."""
    text = inspect.cleandoc(value.__doc__ or "").replace("``", "`")
    for paragraph in filter(None, text.split("\n\n")):
        head, _, body = paragraph.partition("\n")
        found = _SECTION.match(head)
        yield f"**{found[1]}**\n\n{_items(body)}" if found else " ".join(paragraph.split())


def _items(body: str) -> str:
    lines: list[str] = []
    for line in body.splitlines():
        if item := _ITEM.match(line):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(f"  {line.strip()}" if lines else f"- {line.strip()}")
    return "\n".join(lines)
