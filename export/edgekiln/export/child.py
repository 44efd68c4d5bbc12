"""A child process that calls functions one after the other: what crashes, is killed or hangs there is an error here.

``Child`` is the parent's side. ``python -m edgekiln.export.child DESCRIPTOR`` is the other one: it takes pickled calls
from a socket that only the two have, and imports what they name. How a process is started, stopped and spoken of is
shared with the processes that build engines (``engines/worker_process.py``). Knows no library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any, ParamSpec, TypeVar

from edgekiln.runtime.errors import BuildError, ResourceError
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["Child", "describe_end", "start_module", "stop_process"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_ANSWER_SECONDS = 1800.0
"""After which a call counts as hanging: many times what the largest network takes to load on a small board."""
_STOP_SECONDS = 10.0
_COMPLAINTS = 4000  # characters of stderr that are looked at


# --------------------------------------------------------------------------------------------------------------
# Any process of this project


def start_module(module: str, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
    """Start a module in a process of its own, with this one's import path and nothing on its stdin."""
    return subprocess.Popen(
        module_command(module, *arguments), stdin=subprocess.DEVNULL, env=child_environment(), **popen
    )


def stop_process(process: subprocess.Popen[bytes], seconds: float = _STOP_SECONDS) -> None:
    """Ask it to end, and end it after so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where a second Ctrl-C ends the waiting
        process.kill()
        process.wait()


def describe_end(code: int, complaints: str) -> str:
    """How a process ended, and its last words: "was ended by SIGSEGV: ...". What comes after the name of the process.

    Args:
        code: its exit code, negative for a signal.
        complaints: the end of what it wrote to stderr.
    """
    last = last_line(complaints)
    how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {last}" if last else how


def signal_name(number: int) -> str:
    """``SIGSEGV`` of 11; a number without a name is told as it is."""
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"


def last_line(complaints: str) -> str:
    """The last line with something in it, or nothing."""
    return complaints.strip().splitlines()[-1] if complaints.strip() else ""


# --------------------------------------------------------------------------------------------------------------
# One that is called


class Child:
    """A process that is started by the first call, serves all later ones, and is started anew after it has died.

    Not for several threads. What it wrote to stderr comes to this process's when it ends.

    Attributes:
        library: what is loaded there, for messages.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._complaints: IO[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What ``function`` returns there, or raises; function, arguments and result are pickled.

        Raises:
            BuildError: the library crashed, or ended the process.
            ResourceError: the process was killed, which is what the system does when memory runs out; or it hung; or
                could not be started.
        """
        connection = self._start()
        try:
            connection.send((function, args, kwargs))
            if not connection.poll(_ANSWER_SECONDS):
                raise self._stopped()
            kind, value, trace = connection.recv()
        except (EOFError, OSError) as error:  # OSError: in the middle of an answer
            raise self._dead() from error
        except BaseException:  # Ctrl-C above all: nobody will listen to the answer
            self._end(kill=True)
            raise
        if kind == "raised":
            raise value from _ChildTraceback(trace)
        result: _T = value
        return result

    @property
    def is_running(self) -> bool:
        """Whether there is a process that no call has found dead."""
        return self._process is not None

    def close(self) -> None:
        """End the process, if there is one."""
        self._end(kill=False)

    def _start(self) -> Connection:
        if self._connection is not None:
            return self._connection
        self._connection, theirs = Pipe()
        with theirs:
            try:
                self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
                self._process = start_module(
                    __name__,
                    str(theirs.fileno()),
                    str(logging.getLogger().getEffectiveLevel()),
                    stdout=self._complaints,  # a result may be written to this process's own stdout
                    stderr=self._complaints,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                self._end(kill=False)
                raise ResourceError(
                    f"No process could be started for {self.library}: {error.strerror}.",
                    hint="Free memory or disk space, and run again.",
                ) from error
        return self._connection

    def _dead(self) -> BuildError | ResourceError:
        """The error for a process that ended in the middle of a call."""
        code, complaints = self._end(kill=False)
        end = f"the process that runs {self.library} {describe_end(code, complaints)}"
        if code == -signal.SIGKILL:
            return ResourceError(
                f"the library was killed (signal 9), which is what the system does when memory runs out: {end}.",
                hint="Close other programs, or take a machine with more memory.",
            )
        crashed = (
            f"the library crashed (signal {-code})" if code < 0 else "the library ended without an answer"
        )
        return BuildError(
            f"{crashed}: {end}.",
            hint="Another version of the library may take the graph; else leave the variant out.",
        )

    def _stopped(self) -> ResourceError:
        """The error for a process that hangs."""
        self._end(kill=True)
        return ResourceError(
            f"the library hangs: {self.library} gave no answer within {_ANSWER_SECONDS:g} s.",
            hint="Run again on a machine that does less else; another version of the library may not hang.",
        )

    def _end(self, *, kill: bool) -> tuple[int, str]:
        """End the process and forget it; returns its exit code and the end of what it wrote, which is passed on."""
        process, connection, complaints = self._process, self._connection, self._complaints
        self._process = self._connection = self._complaints = None
        if connection is not None:
            connection.close()  # the process ends when it notices
        if process is not None:
            if kill:
                process.kill()
                process.wait()
            else:
                _wait_or_stop(process)
        with complaints or contextlib.nullcontext():
            written = _read(complaints)
        if written and sys.stderr is not None:
            sys.stderr.write(written)
        return 0 if process is None else process.returncode, written[-_COMPLAINTS:]


def _wait_or_stop(process: subprocess.Popen[bytes]) -> None:
    """Let it end by itself, since it was told; one that does not is ended."""
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def _read(file: IO[bytes] | None) -> str:
    if file is None:
        return ""
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


class _ChildTraceback(Exception):
    """Cause of an error that was raised in the child: where, as text. ``--debug`` shows it."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# --------------------------------------------------------------------------------------------------------------
# The child


def _serve(connection: Connection) -> None:
    """Answer calls until the parent is gone."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(_answer(connection))


def _answer(connection: Connection) -> tuple[str, Any, str]:
    try:
        function, args, kwargs = connection.recv()
        return "returned", function(*args, **kwargs), ""
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # the parent decides what it means
        return "raised", error, traceback.format_exc()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent ends this one
    logging.basicConfig(level=int(sys.argv[2]), format="%(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    _serve(Connection(int(sys.argv[1])))
    # Not by the interpreter's way out: there libraries' objects die in any order, and some crash.
    os._exit(0)
