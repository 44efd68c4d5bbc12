"""The agent's half that needs no line: processes that end, what the machine is, which edgekiln it has, and files.

Sent to a device with ``agent.py``, under the same rules: the standard library, and nothing that Python 3.6 cannot read.
"""

import ctypes
import errno
import glob
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional

Values = Dict[str, Any]

# An abstract socket: no file, no owner, gone with its process. Tests that share a machine have one each.
LOCK = "\0edgekiln-device" + os.environ.get("EDGEKILN_DEVICE_LOCK", "")
MOST_OUTPUT_BYTES = 2**20
MOST_LINE = 500
PIECE_BYTES = 2**16
FAMILIES = {"x86_64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm", "armv8l": "arm", "armv7l": "arm"}


# --------------------------------------------------------------------------------------------------------------
# Processes that end


def keep(watch: socket.socket) -> None:
    """Wait until the agent is gone, and end what it left. Holds what the agent hands over: the lock."""
    held = []  # type: List[bytes]
    while True:
        message, ancillary, _, _ = watch.recvmsg(1, socket.CMSG_SPACE(4))
        if not message:
            break
        held.extend(data for _, _, data in ancillary)  # a descriptor stays open, whoever knows its number
    end_descendants()
    os._exit(0)


def adopt_orphans() -> None:
    """From now on a grandchild whose parent died is this process's child (prctl 36, PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kill all processes below this one, those with sessions of their own too, and wait for them."""
    for _ in range(500):
        left = kill_descendants()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except OSError:
            if not left:
                return
        time.sleep(0.01)


def kill_descendants() -> List[int]:
    """Kill all processes below this one; returns their numbers."""
    found = descendants()
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    return found


def descendants() -> List[int]:
    """Numbers of all processes below this one."""
    parents = {}  # type: Dict[int, int]
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, "rb") as file:
                pid, _, rest = file.read().partition(b" (")
            parents[int(pid)] = int(rest.rpartition(b") ")[2].split()[1])
        except (OSError, ValueError, IndexError):
            pass
    found = []  # type: List[int]
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found.extend(level)
    return found


def follow(watch: socket.socket, leave: Callable[[], None]) -> None:
    """In the agent: leave where the keeper was killed."""
    watch.recv(1)
    leave()


# --------------------------------------------------------------------------------------------------------------
# What is here


def ask_environment(environment: str, parcel: List[Any]) -> Optional[Values]:
    """Which edgekiln the Python of an environment imports; ``None`` where there is no such environment."""
    python = os.path.join(environment, "bin", "python")
    if not os.path.exists(python):
        return None
    asked = subprocess.Popen(
        [python, "-c", parcel[1]["boot"]], cwd="/",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sent = json.dumps([parcel[0], {"ask": "edgekiln"}]).encode()
    try:
        return dict(json.loads(asked.communicate(b"%d\n%s" % (len(sent), sent))[0].decode()))
    except ValueError:
        return {"version": None, "digest": None, "python": None}


def describe_edgekiln() -> Values:
    """Version of the edgekiln that this Python imports, and sha256 over its source; ``None`` where it has none."""
    try:
        import edgekiln
        from edgekiln.runtime.version import __version__
    except ImportError:
        return {"version": None, "digest": None, "python": sys.version.split()[0]}
    files = {}  # type: Dict[str, str]
    for root in edgekiln.__path__:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith(".py"):
                    files.setdefault(os.path.relpath(path, root), path)
    seen = hashlib.sha256()
    for name in sorted(files):
        seen.update("{}\0{}\n".format(name, hash_file(files[name])).encode())
    return {"version": __version__, "digest": seen.hexdigest(), "python": sys.version.split()[0]}


def describe_machine() -> Values:
    """Of the Python that runs this, and of the machine."""
    machine = os.uname().machine
    kernel = first_line("/proc/sys/kernel/arch") or machine  # Linux 6.1 or newer; an emulator cannot hide it
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "machine": machine,
        "libc": list(platform.libc_ver()),
        "emulated": FAMILIES.get(kernel, kernel) != FAMILIES.get(machine, machine),
        "home": os.path.expanduser("~"),
    }


# --------------------------------------------------------------------------------------------------------------
# Small things


def tell_callers(lock: socket.socket, about: bytes) -> None:
    """Say who holds the device to whoever connects to its lock."""
    while True:
        caller, _ = lock.accept()
        try:
            caller.sendall(about)
        except OSError:
            pass
        caller.close()


def ask_holder() -> Values:
    """Who holds the device; empty where nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(1.0)
            caller.connect(LOCK)
            told = json.loads(caller.recv(4096).decode())
            return {"who": str(told["who"]), "run": str(told["run"]), "since": float(told["since"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # it is ending, and its keeper still has the lock


def collect(child: Any, tell: Callable[[str], None], most_seconds: float) -> str:
    """Read both streams of a child to their ends; lines of stderr are told, the end of stdout is returned."""
    ends = time.time() + most_seconds
    kept, line = b"", b""
    streams = [child.stdout.fileno(), child.stderr.fileno()]
    while streams:
        if time.time() > ends:
            kill_descendants()
        for stream in select.select(streams, [], [], 1.0)[0]:
            piece = os.read(stream, PIECE_BYTES)
            if not piece:
                streams.remove(stream)
            elif stream == child.stdout.fileno():
                kept = (kept + piece)[-MOST_OUTPUT_BYTES:]
            else:
                *whole, line = (line + piece).replace(b"\r", b"\n").split(b"\n")
                for text in filter(None, whole):
                    tell(text[:MOST_LINE].decode("utf-8", "replace"))
                line = line[-MOST_LINE:]
    if line:
        tell(line.decode("utf-8", "replace"))
    return kept.decode("utf-8", "replace")


def hash_file(path: str) -> str:
    """sha256 of a file's bytes."""
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            seen.update(piece)
    return seen.hexdigest()


def first_line(path: str, having: bytes = b"") -> str:
    """The first line of a file that holds ``having``; empty where there is none."""
    try:
        with open(path, "rb") as file:
            lines = [line for line in file.read(2**16).splitlines() if having in line]
    except OSError:
        return ""
    return lines[0].decode("utf-8", "replace").strip()[:200] if lines else ""


def remove(path: str) -> None:
    """A file, a link or a folder; what cannot be removed stays."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def explain(error: OSError) -> Values:
    """A failed call of the system as JSON values."""
    kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "os"
    text = "{}: {}".format(error.filename or "a file", error.strerror or error)
    return {"kind": kind, "text": text}
