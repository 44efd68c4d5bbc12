"""The command line. Each command imports what it needs when it runs, so that ``--help`` is immediate.

stdout carries the result, stderr everything else; ``--json`` gives one document, also on failure.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from typing import Any

import click

from edgekiln.pipeline.cli.commands import COMMANDS
from edgekiln.runtime.errors import EdgekilnError, ExitCode, ResourceError

__all__ = ["cli", "main"]

JSON_SCHEMA = "1.0"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgekiln")
@click.option("--debug", is_flag=True, help="Show tracebacks and library logs.")
def cli(debug: bool) -> None:
    """From a folder of labelled images to an engine you can ship, with proof.

    \b
    edgekiln run recipes/traffic-lights.toml
    edgekiln predict runs/traffic-lights/bundle photo.jpg
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, stream=sys.stderr)


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that ``errors.ExitCode`` defines."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Waiting OpenMP threads that spin make two torch threads collapse beside any other load. Set before torch is
    # imported; a person's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    as_json = "--json" in arguments
    try:
        result = cli.main(args=arguments, prog_name="edgekiln", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else ExitCode.OK)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        _tell("usage", _as_sentence(error.format_message()), _help_line(error), as_json, None)
        sys.exit(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted", "Interrupted.", "Run the same command again to go on.", as_json, None)
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # the one place where everything ends
        sys.exit(_report(error, as_json=as_json, debug="--debug" in arguments))


def _help_line(error: click.ClickException) -> str:
    """Where the right spelling stands."""
    context = getattr(error, "ctx", None)
    return f"See: {context.command_path if context else 'edgekiln'} --help"


def _as_sentence(text: str) -> str:
    """click's messages on one line, like all others."""
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."


def _report(error: Exception, *, as_json: bool, debug: bool) -> ExitCode:
    """Tell of a failure in one line, and give its exit code."""
    if debug:
        traceback.print_exception(error)
    known = _as_edgekiln_error(error)
    if known is not None:
        _tell(known.code, known.message, known.hint, as_json, known.path)
        return known.exit_code
    text = f"This is a bug in edgekiln: {type(error).__name__}: {error}"
    _tell(
        "internal", text, "Please report it with the output of the same command with --debug.", as_json, None
    )
    return ExitCode.BUG


def _as_edgekiln_error(error: Exception) -> EdgekilnError | None:
    if isinstance(error, EdgekilnError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("Out of memory.", hint="Lower the batch size or the number of images.")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResourceError(
            f"No space is left for {error.filename or 'a file'}.",
            hint="Free some, and run the same command again.",
            path=error.filename,
        )
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return ResourceError(
            f"{error.filename or 'A file'} cannot be written or read: {error.strerror}.",
            hint="Check who owns it and its permissions, or choose another place.",
            path=error.filename,
        )
    return None


def _tell(code: str, message: str, hint: str | None, as_json: bool, path: str | None) -> None:
    if as_json:
        _print_json_error(code, message, hint, path)
    else:
        click.echo(f"edgekiln: {message}{f' {hint}' if hint else ''}", err=True)


def _print_json_error(code: str, message: str, hint: str | None, path: str | None) -> None:
    error: dict[str, Any] = {"code": code, "message": message, "hint": hint, "path": path}
    click.echo(json.dumps({"schema_version": JSON_SCHEMA, "ok": False, "error": error}))
