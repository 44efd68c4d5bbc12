"""What all commands share: the group that suggests what was meant, the options, and the one JSON document."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from edgekiln.runtime.errors import EdgekilnError, ExitCode, ImageError, as_printable

__all__ = [
    "JSON_SCHEMA",
    "SuggestingGroup",
    "as_printable",
    "describe_error",
    "device_file_option",
    "device_option",
    "echo_line",
    "fail",
    "json_option",
    "print_document",
    "program_name",
    "quiet_option",
    "trusted_key_option",
]

JSON_SCHEMA = "1.0"


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Whether the option stands here or before the command's name: nested contexts share ``meta``."""
    key = f"edgekiln.{parameter.name}"
    context.meta[key] = context.meta.get(key, False) or value
    return bool(context.meta[key])


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not _remember(context, parameter, value):
        return
    wanted = logging.DEBUG if parameter.name == "debug" else logging.INFO
    root = logging.getLogger()
    root.setLevel(min(root.level, wanted))


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember, help="Print one JSON document."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, callback=_remember, help="No progress on stderr.")
device_option = click.option(  # `load` refuses any other
    "--device",
    metavar="cpu|cuda|cuda:N",
    help="Only engines for this device; cuda:1 is the second GPU seen here.",
)
device_file_option = click.option(
    "--devices", type=click.Path(path_type=Path), default=Path("devices.toml"), show_default=True,
    envvar="EDGEKILN_DEVICES", show_envvar=True, metavar="FILE", help="The file that lists your devices.",
)  # fmt: skip
trusted_key_option = click.option(
    "--trusted-key", "trusted_keys", multiple=True, type=click.Path(path_type=Path), metavar="KEY.pub",
    help="Refuse the bundle unless one of these keys signed it.",
)  # fmt: skip


def _silent_options() -> tuple[click.Option, ...]:
    """The options of every command that change how it tells, and never what it does."""
    return (
        click.Option(
            ["-q", "--quiet"],
            is_flag=True, expose_value=False, callback=_remember, help="No progress on stderr.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True, expose_value=False, callback=_set_verbosity, help="Logs and warnings of libraries on stderr.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True, expose_value=False, callback=_set_verbosity, help="All logs, and tracebacks.",
        ),
    )  # fmt: skip


class SuggestingGroup(click.Group):
    """A group whose commands all take the shared options, and that suggests the command that was meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend([_early_json_option(), *_missing_options(self)])

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with the shared options that it does not define itself."""
        if not isinstance(cmd, SuggestingGroup):
            cmd.params.extend(_missing_options(cmd))
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without any argument, show the help, and exit 2: nothing was done."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(int(ExitCode.USAGE))
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name; an unknown one is an error that names the nearest."""
        unknown = not args[0].startswith("-") and self.get_command(ctx, args[0]) is None
        if unknown and not ctx.resilient_parsing:  # which is completion, of half a name
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.5)
            advice = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(self.commands)}."
            raise click.UsageError(f"No such command {args[0]!r}. {advice}", ctx)
        return super().resolve_command(ctx, args)


def _early_json_option() -> click.Option:
    """``--json`` before a command's name; after it, it is the command's own."""
    return click.Option(
        ["--json", "as_json"],
        is_flag=True, expose_value=False, callback=_remember, help="Print one JSON document.",
    )  # fmt: skip


def _missing_options(command: click.Command) -> list[click.Option]:
    there = {name for parameter in command.params for name in parameter.opts}
    return [option for option in _silent_options() if there.isdisjoint(option.opts)]


def program_name() -> str:
    """How a person types this program here: by name where that finds it, else by its path."""
    invoked = Path(sys.argv[0])
    on_path = shutil.which("edgekiln")
    if invoked.name != "edgekiln" or (on_path and Path(on_path).resolve() == invoked.resolve()):
        return "edgekiln"
    with contextlib.suppress(ValueError):
        return str(invoked.absolute().relative_to(Path.cwd()))
    return str(invoked)


def echo_line(text: str) -> None:
    """One line for a person on stdout: a class, a file or what a bundle says may hold what a terminal would obey."""
    click.echo(as_printable(text))


def describe_error(error: EdgekilnError) -> dict[str, Any]:
    """The ``error`` of a JSON document; of a picture's also the reason."""
    values = {"code": error.code, "message": error.message, "hint": error.hint, "path": error.path}
    return values | ({"reason": error.reason} if isinstance(error, ImageError) else {})


def print_document(values: Mapping[str, Any], *, ok: bool = True) -> None:
    """Print the result of a command as its one document on stdout."""
    click.echo(json.dumps({"schema_version": JSON_SCHEMA, "ok": ok, **values}, sort_keys=True))


def fail(error: EdgekilnError, values: Mapping[str, Any], as_json: bool) -> NoReturn:
    """End a command that has a result and failed all the same: both stand in the one document.

    Raises:
        EdgekilnError: ``error`` itself without ``--json``: the result was printed already.
        click.exceptions.Exit: with it, after the document.
    """
    if not as_json:
        raise error
    print_document({**values, "error": describe_error(error)}, ok=False)
    raise click.exceptions.Exit(int(error.exit_code)) from error
