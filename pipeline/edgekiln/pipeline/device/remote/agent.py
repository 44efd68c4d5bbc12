"""What runs on a device while a command is connected to it. Its source is sent over the line each time.

The standard library alone, and nothing that Python 3.6 cannot read: it must be able to say that a Python is too old.
It is executed there after ``agent_machine.py``, and imports that alone. It speaks in frames on stdin and stdout: one
byte of kind, four of length, big-endian, and the content. ``J`` is a JSON object, ``D`` a piece of a file, ``P`` says
that the other side is there.

Two processes: the agent answers requests, and its keeper, its parent, ends all that the agent left when the agent is
gone, however it went. So nothing goes on once the caller's line is closed, silent, or cut. The device's lock is a
socket that both hold: it is free when the last process of a job has ended.
"""

import array
import errno
import glob
import hashlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Tuple

from edgekiln.pipeline.device.remote.agent_machine import (
    LOCK,
    PIECE_BYTES,
    Values,
    adopt_orphans,
    ask_environment,
    ask_holder,
    collect,
    describe_edgekiln,
    describe_machine,
    end_descendants,
    explain,
    first_line,
    follow,
    hash_file,
    keep,
    remove,
    tell_callers,
)

GREETING = b"edgekiln-agent 1\n"
MARK = ".edgekiln-device"
MOST_FRAME_BYTES = 64 * 2**20
PING_S = 5.0
MOST_TRIES = 40
KEPT_S = 30 * 86400.0


class Refusal(Exception):
    """A request that cannot be fulfilled: ``kind`` is for the program at the other end, the text for a person."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.values = {"kind": kind, "text": text}


# --------------------------------------------------------------------------------------------------------------
# The line


class Wire:
    """Frames in both directions. Ends the process where the other side is gone or silent."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._in, self._out = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # no child reads requests
        os.dup2(2, 1)  # nothing that prints breaks a frame
        self._lock = threading.Lock()
        self.requests = queue.Queue(16)  # type: queue.Queue[Tuple[bytes, bytes]]
        os.write(self._out, b"\n" + GREETING)
        for work in (self._read, self._ping):
            threading.Thread(target=work, daemon=True).start()

    def send(self, values: Values) -> None:
        """A JSON object; what is no text of its own becomes an escape."""
        self.write(b"J", json.dumps(values).encode())

    def write(self, kind: bytes, content: bytes) -> None:
        """One frame, whole."""
        data = memoryview(struct.pack(">cI", kind, len(content)) + content)
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._out, data) :]
                except OSError:
                    end_descendants()
                    os._exit(1)

    def leave(self) -> None:
        """End all that runs, and this process: the keeper does the same, but it may have been killed itself."""
        self._lock.acquire(timeout=1.0)  # no answer tells of what is ended here
        end_descendants()
        os._exit(1)

    def _read(self) -> None:
        while True:
            kind, size = struct.unpack(">cI", self._exactly(5))
            if size > MOST_FRAME_BYTES:
                self.leave()
            content = self._exactly(size)
            if kind != b"P":
                self.requests.put((kind, content))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            if not self._comes():
                self.leave()  # the line is cut, and nobody told
            part = os.read(self._in, min(size, 2**20))
            if not part:
                self.leave()  # the caller is gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _comes(self) -> bool:
        """Whether something comes before the silence is too long. Time in which this process was stopped is none."""
        step = self._silence_s / 30
        return any(select.select([self._in], [], [], step)[0] for _ in range(30))

    def _ping(self) -> None:
        while True:
            time.sleep(min(PING_S, self._silence_s / 4))
            self.write(b"P", b"")


# --------------------------------------------------------------------------------------------------------------
# Requests


class Agent:
    """Answers requests, one after the other."""

    def __init__(self, wire: Wire, watch: socket.socket, parcel: List[Any]) -> None:
        self._wire, self._watch, self._parcel = wire, watch, parcel
        self._folder = ""

    def serve(self) -> None:
        """Until the line closes, which ends the process."""
        self._wire.send({"ready": describe_machine()})
        while True:
            kind, content = self._wire.requests.get()
            if kind != b"J":
                continue  # the rest of a file that was refused
            request = json.loads(content.decode())
            try:
                answer = getattr(self, "do_" + request.pop("do"))(**request)
                self._wire.send({"done": answer})
            except Refusal as error:
                self._wire.send({"refused": error.values})
            except OSError as error:
                self._wire.send({"refused": explain(error)})

    def do_lock(self, who: str, run: str) -> Values:
        """Take the device. Waits where the same command holds it, for a device on the same host."""
        told, tries = False, 0
        while True:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                lock.bind(LOCK)
                break
            except OSError:
                lock.close()
            holder = ask_holder()
            tries = 0 if holder else tries + 1  # nobody answers while a job is ending
            if holder and holder["run"] != run:
                since = time.strftime("%H:%M", time.localtime(holder["since"]))
                raise Refusal("busy", "in use by {} since {} (its clock)".format(holder["who"], since))
            if not holder and tries > MOST_TRIES:
                raise Refusal("busy", "in use by a job that does not say whose it is")
            if holder and not told:
                self._wire.send({"say": "waits: another device of this command is on the same host"})
                told = True
            time.sleep(0.3)
        lock.listen(8)
        rights = array.array("i", [lock.fileno()])
        self._watch.sendmsg([b"L"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        about = json.dumps({"who": who, "run": run, "since": time.time()}).encode()
        threading.Thread(target=tell_callers, args=(lock, about), daemon=True).start()
        return {}

    def do_open(self, folder: str, make: bool) -> Values:
        """Enter the folder in which everything lies; make it where it is absent."""
        self._folder = os.path.abspath(os.path.expanduser(folder))
        if make:
            os.makedirs(self._folder, exist_ok=True)
            mark = os.path.join(self._folder, MARK)
            if not os.path.exists(mark):
                others = set(os.listdir(self._folder))
                if others:
                    raise Refusal("foreign", "{} holds files that are not edgekiln's".format(self._folder))
                with open(mark, "w") as file:
                    file.write("edgekiln device remove NAME removes this folder\n")
            for name in ("blobs", "jobs"):
                os.makedirs(self._path(name), exist_ok=True)
            self._forget_old()
        return {"folder": self._folder, "there": os.path.exists(os.path.join(self._folder, MARK))}

    def _path(self, *names: str) -> str:
        return os.path.join(self._folder, *names)

    def _forget_old(self) -> None:
        """Remove what was not used for a month, and halves of files; needs the lock."""
        for kind in ("blobs", "jobs"):
            for name in os.listdir(self._path(kind)):
                path = self._path(kind, name)
                if name.startswith(".part-") or time.time() - os.lstat(path).st_mtime > KEPT_S:
                    remove(path)

    def do_missing(self, files: List[Tuple[str, int]]) -> Values:
        """Numbers of those of [sha256, bytes] that are not here. What is here is read and hashed."""
        missing = []
        for number, (digest, size) in enumerate(files):
            path = self._path("blobs", digest)
            try:
                right = os.path.getsize(path) == size and hash_file(path) == digest
            except OSError:
                right = False
            if right:
                os.utime(path)
            else:
                missing.append(number)
        return {"missing": missing, "free": shutil.disk_usage(self._folder).free}

    def do_put(self, files: List[Tuple[str, int]]) -> Values:
        """Take files of [sha256, bytes], whose content follows in this order."""
        for digest, whole in files:
            size, part = whole, self._path("blobs", ".part-" + digest)
            seen = hashlib.sha256()
            try:
                with open(part, "wb") as file:
                    while size > 0:
                        kind, piece = self._wire.requests.get()
                        if kind != b"D":
                            raise Refusal("broken", "a file was not sent to its end")
                        file.write(piece)
                        seen.update(piece)
                        size -= len(piece)
                if seen.hexdigest() != digest:
                    raise Refusal("broken", "a file arrived altered")
                os.rename(part, self._path("blobs", digest))
            except (OSError, Refusal):
                remove(part)
                raise
        return {}

    def do_lay(self, place: List[str], files: List[Tuple[str, List[str]]]) -> Values:
        """Make the folder ``place`` anew, of [sha256, names of folders and file]."""
        root = self._path(*place)
        remove(root)
        os.makedirs(root)
        for digest, names in files:
            if any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names):
                raise Refusal("broken", "unsafe name {!r}".format(names))
            target = os.path.join(root, *names)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            blob = self._path("blobs", digest)
            try:
                os.link(blob, target)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                shutil.copyfile(blob, target)  # a file system without links
        return {}

    def do_run(
        self, argv: List[str], cwd: List[str], environment: Dict[str, str], most_seconds: float
    ) -> Values:
        """Run a program; lines that it writes to stderr are told at once, the end of stdout at its end."""
        values = dict(os.environ, **environment)
        argv = [os.path.expanduser(word) if word.startswith("~/") else word for word in argv]
        try:
            child = subprocess.Popen(
                argv, cwd=self._path(*cwd), env=values, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise Refusal("no-program", "{} cannot be started: {}".format(argv[0], error.strerror)) from error
        kept = collect(child, lambda line: self._wire.send({"say": line}), most_seconds)
        code = child.wait()
        end_descendants()
        return {"code": code, "stdout": kept}

    def do_get(self, place: List[str], limit: int) -> Values:
        """Send one regular file in pieces; at most ``limit`` bytes of it."""
        path = self._path(*place)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refusal("broken", "{} is no regular file".format(path))
            left = limit
            while left > 0:
                piece = file.read(min(PIECE_BYTES, left))
                if not piece:
                    break
                left -= len(piece)
                self._wire.write(b"D", piece)
        return {}

    def do_exists(self, place: List[str]) -> Values:
        """Whether something lies there."""
        return {"exists": os.path.lexists(self._path(*place))}

    def do_discard(self, place: List[str]) -> Values:
        """Remove a folder or file below the device's own folder; without names, that folder itself."""
        if not os.path.exists(self._path(MARK)):
            raise Refusal("foreign", "{} was not made by edgekiln".format(self._folder))
        remove(self._path(*place))
        if os.path.lexists(self._path(*place)):
            raise Refusal("os", "{} could not be removed".format(self._path(*place)))
        return {}

    def do_facts(self, environment: str) -> Values:
        """What this machine and its Python are like, and which edgekiln an environment has."""
        above = self._folder
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        return {
            "free": shutil.disk_usage(above).free,
            "venv": subprocess.call(
                [sys.executable, "-I", "-c", "import venv, ensurepip"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ) == 0,
            "jetpack": first_line("/etc/nv_tegra_release"),
            "tensorrt": sorted(glob.glob("/usr/lib/python3*/dist-packages/tensorrt")),
            "cuda": first_line("/usr/local/cuda/version.json", b'"version"')
            or first_line("/usr/local/cuda/version.txt"),
            "governors": sorted({
                first_line(path)
                for path in glob.glob("/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
            } - {""}),
            "environment": ask_environment(os.path.expanduser(environment), self._parcel),
        }  # fmt: skip


def start(parcel: List[Any]) -> None:
    """What the line that runs this source calls, with all that was sent: fork into keeper and agent, and serve.

    ``parcel`` is [[module, its source], ...] and a JSON object of settings.
    """
    if parcel[1].get("ask") == "edgekiln":  # in the Python of an environment
        print(json.dumps(describe_edgekiln()))
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, whose line then closes
    keeper_end, agent_end = socket.socketpair()
    adopt_orphans()
    if os.fork():
        agent_end.close()
        for number in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        keep(keeper_end)
    keeper_end.close()
    adopt_orphans()
    wire = Wire(parcel[1]["silence_s"])
    threading.Thread(target=follow, args=(agent_end, wire.leave), daemon=True).start()
    Agent(wire, agent_end, parcel).serve()
