"""The command line. Each command imports what it needs when it runs, so that ``--help`` is immediate.

stdout carries the result, stderr everything else; ``--json`` gives one document, also on failure. A command stands in
the module of its name or of its family; ``commands.py`` lists them.

May import: ``runtime*``, ``export*``, ``benchmarks*``, ``pipeline/recipe``, ``pipeline/workspace``,
``pipeline/shipping``, ``pipeline/data``, ``pipeline/training``, ``pipeline/device``, ``pipeline/proof``,
``pipeline/run``, ``pipeline/study``, ``pipeline/doctor``.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.commands import COMMANDS
from edgekiln.pipeline.cli.options import SuggestingGroup, as_printable, print_document
from edgekiln.pipeline.training.parallel import dismiss_followers, follow_trainings, is_follower
from edgekiln.pipeline.workspace.interrupts import notice_interrupts, was_interrupted
from edgekiln.runtime.errors import EdgekilnError, ExitCode, ResourceError, join_hint

__all__ = ["cli", "main"]

_PIPE_CLOSED = 141  # 128 + SIGPIPE: what a shell tells of a program whose reader went away


class _Root(SuggestingGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would end with 1, which stands for a bug
            raise click.exceptions.Exit(_leave_pipe()) from error


def _leave_pipe() -> int:
    """The reader of stdout went away: what is still buffered goes nowhere. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _PIPE_CLOSED


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgekiln")
def cli() -> None:
    """From a folder of labelled images to an engine you can ship, with proof.

    \b
    edgekiln demo
    edgekiln init my-photos
    edgekiln run recipe.toml
    edgekiln predict runs/my-photos/bundle photo.jpg
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that ``errors.ExitCode`` defines.

    Args:
        arguments: ``None`` takes the process's own; then the process is this command's, and ends with it.
    """
    ending = _Ending()
    if arguments is None:
        atexit.register(ending)  # before any library's: called after them
    arguments = sys.argv[1:] if arguments is None else arguments
    # Waiting OpenMP threads that spin make two torch threads collapse beside any other load. Set before torch is
    # imported; a person's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    as_json = _asks_for(arguments, "--json")
    _replace_closed_streams()
    try:
        with notice_interrupts(), _logs_on_stderr(), _leading():
            if is_follower():
                follow_trainings()
                sys.exit(ExitCode.OK)
            result = cli.main(args=arguments, prog_name="edgekiln", standalone_mode=False)
        sys.stdout.flush()  # a reader that went away is noticed here, not when the interpreter ends
        sys.exit(result if isinstance(result, int) else ExitCode.OK)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        _tell("usage", _as_sentence(error.format_message()), _help_line(error), as_json, None)
        sys.exit(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_report_interrupt(ending, as_json=as_json))
    except BrokenPipeError:
        sys.exit(_leave_pipe())
    except Exception as error:  # the one place where everything ends
        if was_interrupted():  # a library made an error of its own of it
            sys.exit(_report_interrupt(ending, as_json=as_json))
        sys.exit(_report(error, as_json=as_json, debug=_asks_for(arguments, "--debug")))


@contextlib.contextmanager
def _leading() -> Iterator[None]:
    """What torchrun started beside this process goes when the command is done, however it ends."""
    try:
        yield
    finally:
        dismiss_followers()


class _Ending:
    """The last thing that the interpreter calls. After Ctrl-C it ends the process there.

    Otherwise the interpreter would look through all objects for cycles, and take modules apart: with torch loaded that
    are seconds of a busy machine, for memory that the system frees at once. Threads were waited for, and the libraries'
    own callbacks were run.
    """

    at_once = False

    def __call__(self) -> None:
        if not self.at_once:
            return
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a reader that went away
                stream.flush()
        os._exit(ExitCode.INTERRUPTED)


def _replace_closed_streams() -> None:
    """Where the caller closed a stream (``>&-``), Python has ``None``: then nothing is read or written.

    In this order: each takes the lowest number that is free, its own, which no other file shall have.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 # open to the end
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 # open to the end
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 # open to the end


def _asks_for(arguments: Sequence[str], option: str) -> bool:
    """Whether an option was given; asked of the raw words, since they may be what cannot be parsed."""
    words = list(arguments)
    return option in (words[: words.index("--")] if "--" in words else words)


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Errors that libraries log go to stderr, and with -v and --debug more; Python's warnings count as logs."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)


def _help_line(error: click.ClickException) -> str:
    """Where the right spelling stands."""
    context = getattr(error, "ctx", None)
    return f"See: {context.command_path if context else 'edgekiln'} --help"


def _as_sentence(text: str) -> str:
    """click's messages on one line, like all others."""
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."


def _report_interrupt(ending: _Ending, *, as_json: bool) -> ExitCode:
    """Tell of Ctrl-C, see to it that the process ends at once, and give its exit code."""
    _tell("interrupted", "Interrupted.", "Run the same command again to go on.", as_json, None)
    ending.at_once = True
    return ExitCode.INTERRUPTED


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
    # torch's, by name: asking torch would import it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
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
            hint="Check who owns it and its permissions, or choose another place (TMPDIR for temporary files).",
            path=error.filename,
        )
    if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):  # of `tempfile`
        return ResourceError(f"{error.strerror}.", hint="Set TMPDIR to a folder that can be written.")
    return None


def _tell(code: str, message: str, hint: str | None, as_json: bool, path: str | None) -> None:
    if as_json:
        error = {"code": code, "message": message, "hint": hint, "path": path}
        print_document({"error": error}, ok=False)
    else:
        click.echo(f"edgekiln: {as_printable(join_hint(message, hint))}", err=True)
