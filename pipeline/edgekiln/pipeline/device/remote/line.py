"""The line to a device: the system's ssh with the agent at its other end, or the agent as a child of this process.

Nothing that arrives is believed: sizes are bounded, text is made printable, silence and floods end the line. Host keys,
keys, jump hosts and names are ssh's matter, with the user's own configuration; no check of ssh is weakened here.
"""

from __future__ import annotations

import contextlib
import getpass
import inspect
import json
import os
import queue
import secrets
import select
import shlex
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from edgekiln.pipeline.device.remote import agent, agent_machine
from edgekiln.pipeline.device.remote.line_errors import explain_end, explain_refusal
from edgekiln.pipeline.device.remote.registry import Device
from edgekiln.runtime.errors import EnvironmentProblem, UntrustedError, as_printable
from edgekiln.runtime.processes import child_environment, code_command

__all__ = ["SILENCE_S", "Line", "open_line"]

SILENCE_S = 30.0
"""Without a byte for so long, each side takes the line for cut. Both send one every few seconds."""
_FIRST_WORD_S = 90.0  # to connect, through jump hosts and on a slow board
_MOST_NOISE_BYTES = 2**16  # before the greeting: what a login shell prints
_MOST_FRAME_BYTES = 2**22
_TOO_LARGE = b"!"
_MOST_TOLD = 20_000  # lines: a bench of a day tells some thousand
_MOST_LINE = 500
_STDERR_KEPT = 8192
_RUN = secrets.token_hex(8)
"""Tells this command from others: its devices on one host take turns."""

# One line without a quote, so that any login shell passes it on. The agent follows on stdin, and is run as modules of
# the names that it has here; nothing else is sent before it has greeted.
_BOOT = "\n".join([
    "import sys,json,types",
    "i=sys.stdin.buffer",
    "p=json.loads(i.read(int(i.readline())).decode())",
    "for n,s in p[0]:",
    " m=sys.modules[n]=types.ModuleType(n)",
    " exec(s,m.__dict__)",
    "m.start(p)",
])  # fmt: skip
_BOOT_LINE = 'exec("{}")'.format(_BOOT.replace("\n", "\\n"))
_AGENT = [[module.__name__, inspect.getsource(module)] for module in (agent_machine, agent)]
_SSH_OPTIONS = ("-T", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ControlMaster=no")


@contextlib.contextmanager
def open_line(device: Device, tell: Callable[[str], None], *, ask: bool = False) -> Iterator[Line]:
    """Connect to a device and start the agent there; ends it, and all that it started, when the block is left.

    Args:
        device: where to.
        tell: gets lines for a person, printable.
        ask: let ssh ask on the terminal: for a passphrase, or whether a new host's key is right.

    Raises:
        EnvironmentProblem: it cannot be reached, refuses this user, or has no Python.
        UntrustedError: its host key is not the known one; or it does not answer as the agent does.
    """
    command = _local_command() if device.is_here else _ssh_command(device, ask)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env=child_environment() if device.is_here else None,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            "There is no program ssh here.",
            hint="Install OpenSSH's client (Debian: apt install openssh-client).",
        ) from error
    line = Line(device, process, tell)
    try:
        line.greet(None if ask else _FIRST_WORD_S)
        yield line
    finally:
        line.close()


def _local_command() -> list[str]:
    return code_command(_BOOT)


def _ssh_command(device: Device, ask: bool) -> list[str]:
    config = ("-F", str(device.ssh_config)) if device.ssh_config else ()
    batch = () if ask else ("-o", "BatchMode=yes")
    home, python = ('"$HOME"/', device.python[2:]) if device.python.startswith("~/") else ("", device.python)
    command = f"exec {home}{shlex.quote(python)} -c {shlex.quote(_BOOT_LINE)}"
    return ["ssh", *config, *_SSH_OPTIONS, *batch, "--", device.host, command]


class Line:
    """An open line. Requests are answered in their order; one thread may use it."""

    def __init__(self, device: Device, process: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
        self.device = device
        self.machine: Mapping[str, Any] = {}
        self._process, self._tell, self._silence_s = process, tell, SILENCE_S
        self._frames: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(8)
        self._silent_s, self._told = 0.0, 0
        self._stderr = self._early = b""
        self._greeted = False
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._threads: list[threading.Thread] = []

    def greet(self, patience_s: float | None) -> None:
        """Send the agent's source and wait until it runs; sets ``machine``."""
        self._start(self._keep_stderr)
        parcel = json.dumps([_AGENT, {"silence_s": self._silence_s, "boot": _BOOT}]).encode()
        self._send(b"%d\n%s" % (len(parcel), parcel))
        self._find_greeting(patience_s)
        self._start(self._read_frames)
        self._start(self._ping)
        self.machine = _mapping(self._answer().get("ready"))

    def ask(self, request: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises the typed error of a refusal."""
        self._request(request, values)
        return _mapping(self._answer().get("done"))

    def lock(self) -> None:
        """Take the device for this command, until the line closes; raises ResourceError where another has it."""
        self.ask("lock", who=f"{_user_name()}@{socket.gethostname()}", run=_RUN)

    @contextlib.contextmanager
    def listening(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Lines for a person go to ``tell`` inside."""
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before

    def put(
        self, files: Iterable[tuple[str, int]], pieces: Iterator[bytes], advance: Callable[[int], None]
    ) -> None:
        """Send files of (sha256, bytes), whose contents are ``pieces``, one after the other.

        ``advance`` gets the number of bytes that were sent.
        """
        self._request("put", {"files": list(files)})
        for piece in pieces:
            if not self._frames.empty():  # refused already: the disk there is full
                break
            self._write(b"D", piece)
            advance(len(piece))
        self._answer()

    def get(self, place: Sequence[str], limit: int) -> Iterator[bytes]:
        """The content of a file in pieces, no more than ``limit`` bytes of it."""
        self._request("get", {"place": list(place), "limit": limit})
        while True:
            kind, content = self._next()
            if kind == b"D":
                limit -= len(content)
                if limit < 0:
                    self._distrust("it sends more of a file than was asked for")
                yield content
            elif self._read_message(content) is not None:
                return

    def close(self) -> None:
        """End the agent, by closing its stdin, and ssh."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        while not self._frames.empty():  # who waits to put one in
            self._frames.get_nowait()
        for thread in self._threads:
            thread.join(2.0)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    # ----------------------------------------------------------------------------------------------------------
    # Outwards

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _request(self, request: str, values: Mapping[str, Any]) -> None:
        self._write(b"J", json.dumps({"do": request, **values}).encode())

    def _write(self, kind: bytes, content: bytes) -> None:
        with self._writing:
            self._send(struct.pack(">cI", kind, len(content)) + content)

    def _send(self, data: bytes) -> None:
        """All of it, unless the line is cut meanwhile."""
        left, number = memoryview(data), self._stdin.fileno()
        os.set_blocking(number, False)
        while left:
            if select.select([], [number], [], 1.0)[1]:
                try:
                    left = left[os.write(number, left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    self._fail()
            else:
                self._count_silence(1.0)

    def _ping(self) -> None:
        while not self._closing.wait(min(agent.PING_S, self._silence_s / 4)):
            if self._writing.acquire(blocking=False):  # else a frame is under way, which is as good
                try:
                    self._send(struct.pack(">cI", b"P", 0))
                except Exception:  # told by whoever waits for an answer
                    return
                finally:
                    self._writing.release()

    # ----------------------------------------------------------------------------------------------------------
    # Inwards

    def _answer(self) -> dict[str, Any]:
        """The next message that is no line for a person."""
        while True:
            kind, content = self._next()
            if kind != b"J":
                self._distrust("it sends a file that nobody asked for")
            message = self._read_message(content)
            if message is not None:
                return message

    def _read_message(self, content: bytes) -> dict[str, Any] | None:
        """A message; ``None`` of a line for a person, which is told."""
        try:
            message = json.loads(content)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._distrust("it sends what is no message")
        if "say" in message:
            self._told += 1
            if self._told > _MOST_TOLD:
                self._distrust(f"it sends more than {_MOST_TOLD} lines")
            self._tell(as_printable(str(message["say"])[:_MOST_LINE]))
            return None
        if "refused" in message:
            raise explain_refusal(self.device, _mapping(message["refused"]))
        return message

    def _next(self) -> tuple[bytes, bytes]:
        while True:
            try:
                frame = self._frames.get(timeout=1.0)
            except queue.Empty:
                self._count_silence(1.0)
                continue
            if frame is None:
                self._fail()
            if frame[0] not in (b"J", b"D"):
                self._distrust("it sends what is no frame")
            return frame

    def _count_silence(self, seconds: float) -> None:
        """Waited so long, once more, and heard nothing. Counted, not read from a clock: a process that was stopped, or
        slept with its machine, has not listened meanwhile.
        """
        self._silent_s += seconds
        if self._greeted and self._silent_s > self._silence_s:
            self._fail(silent=True)

    def _find_greeting(self, patience_s: float | None) -> None:
        """Read until the agent greets; what a login shell prints before is passed over."""
        seen, began = b"", time.monotonic()
        while b"\n" + agent.GREETING not in seen:
            if patience_s is not None and time.monotonic() - began > patience_s:
                self._fail(silent=True)
            if not select.select([self._stdout], [], [], 1.0)[0]:
                continue
            piece = os.read(self._stdout, 2**16)
            if not piece:
                self._fail(noise=seen)
            seen += piece
            if len(seen) > _MOST_NOISE_BYTES and b"\n" + agent.GREETING not in seen:
                self._distrust("it prints more than a login shell would")
        self._early = seen.partition(b"\n" + agent.GREETING)[2]
        self._greeted = True

    @property
    def _stdout(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _read_frames(self) -> None:
        """Take frames until the end, which is ``None``, or until nobody wants them."""
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                kind, size = struct.unpack(">cI", self._exactly(5))
                content = self._exactly(size) if size <= _MOST_FRAME_BYTES else b""
                kind = kind if size <= _MOST_FRAME_BYTES else _TOO_LARGE
                if kind != b"P":
                    self._hand_over((kind, content))
        self._hand_over(None)

    def _hand_over(self, frame: tuple[bytes, bytes] | None) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._frames.put(frame, timeout=0.2)
                return

    def _exactly(self, size: int) -> bytes:
        while len(self._early) < size:
            piece = os.read(self._stdout, 2**18)
            if not piece:
                raise EOFError
            self._silent_s = 0.0
            self._early += piece
        found, self._early = self._early[:size], self._early[size:]
        return found

    def _keep_stderr(self) -> None:
        """The last of what ssh and the shell there say, for the error that may come of it."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._process.stderr.fileno(), 2**14):
                self._stderr = (self._stderr + piece)[-_STDERR_KEPT:]

    # ----------------------------------------------------------------------------------------------------------
    # Failing

    def _fail(self, *, silent: bool = False, noise: bytes = b"") -> NoReturn:
        """Raise what the end of the line means."""
        code = None
        if not silent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(5.0)
                self._threads[0].join(1.0)  # the last words of stderr
        said = (noise + b"\n" + self._stderr).decode("utf-8", "replace")
        raise explain_end(self.device, code, said, greeted=self._greeted)

    def _distrust(self, what: str) -> NoReturn:
        raise UntrustedError(
            f"The device {self.device.name!r} does not speak as edgekiln's agent does: {what}.",
            hint="Look at what answers there: `ssh` to it by hand.",
        )

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="device line", daemon=True)
        thread.start()
        self._threads.append(thread)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        return str(os.getuid())


def _mapping(values: object) -> dict[str, Any]:
    """A JSON object; empty for anything else, whose missing keys are then told."""
    return values if isinstance(values, dict) else {}
