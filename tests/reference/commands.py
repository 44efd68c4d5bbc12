"""The commands' page, from click: what each does, its arguments, its options and the examples of its help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from reference.markdown import code, table

__all__ = ["describe_commands"]

_NO_REWRAP = "\b"  # click keeps the lines of a paragraph that begins with it: here, the examples


def describe_commands(group: click.Group) -> str:
    """Every command of the group, groups within it included, each with its own heading."""
    parts = [
        f"Options before a command's name; all but `--version` may also stand after it:\n\n{_options(group)}"
    ]
    parts += [_describe(path, command) for path, command in _walk(group, ("edgekiln",))]
    return "\n\n".join(parts)


def _walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _walk(command, (*path, name))


def _describe(path: tuple[str, ...], command: click.Command) -> str:
    prose, examples = _split_help(command)
    usage = " ".join([*path, *command.collect_usage_pieces(click.Context(command))])
    parts = [f"## {' '.join(path)}", code(usage), *prose]
    if isinstance(command, click.Group):
        parts.append(table(("command", "what it does"), _subcommands(path, command)))
    if options := _options(command):
        parts.append(options)
    if examples:
        lines = "\n".join(examples)
        parts.append(f"<!-- not executed: the examples of --help, which are parsed -->\n```sh\n{lines}\n```")
    return "\n\n".join(parts)


def _split_help(command: click.Command) -> tuple[list[str], list[str]]:
    """The paragraphs of a help text, each on one line, and the lines of its examples."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    prose = [_one_line(p) for p in paragraphs if not p.startswith(_NO_REWRAP)]
    kept = [p.removeprefix(_NO_REWRAP).strip("\n") for p in paragraphs if p.startswith(_NO_REWRAP)]
    return prose, [line.strip() for paragraph in kept for line in paragraph.splitlines()]


def _one_line(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _subcommands(path: tuple[str, ...], group: click.Group) -> list[tuple[str, str]]:
    rows = []
    for name, command in sorted(group.commands.items()):
        anchor = "-".join([*path, name])
        rows.append((f"[{name}](#{anchor})", _split_help(command)[0][0]))
    return rows


def _options(command: click.Command) -> str:
    """A table of the options; empty where there are none."""
    context = click.Context(command)
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    rows = [(_spelling(o, context), _default(o, context), _one_line(o.help or "")) for o in options]
    return table(("option", "default", "meaning"), rows) if rows else ""


def _spelling(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag or option.count else f" {option.make_metavar(context)}"
    return code(names + value) + (", repeatable" if option.multiple else "")


def _default(option: click.Option, context: click.Context) -> str:
    if option.required:
        return "must be given"
    default: Any = option.get_default(context)
    if option.is_flag or option.count or _is_unset(default):
        return ""
    return code(str(default))


def _is_unset(default: Any) -> bool:
    # click 8.3 has a sentinel where earlier versions have None; neither is of a type that a default may have.
    return default is None or default == () or type(default).__name__ == "Sentinel"
