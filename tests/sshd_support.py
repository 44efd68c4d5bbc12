"""A real sshd on a free port, with keys and configuration of its own; ~/.ssh is neither read nor written."""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
WITHOUT_SSHD = "openssh-server is not installed (Debian: apt install openssh-server)"

_SERVER = """
Port {port}
ListenAddress {address}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
PidFile "{folder}/sshd.pid"
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv {environment}
"""
_CLIENT = """
Host device
  HostName {address}
  Port {port}
  User {user}
  IdentityFile "{folder}/key"
  IdentitiesOnly yes
  HostKeyAlias device
  UserKnownHostsFile "{folder}/known_hosts"
  GlobalKnownHostsFile /dev/null
"""


def quote(text):
    """A value of sshd's SetEnv, which may hold spaces."""
    return '"' + text.replace('"', '\\"') + '"'


@dataclass
class Sshd:
    """A running server. ``config`` is what ``ssh -F`` takes; the host in it is called ``device``."""

    folder: Path
    address: str = "127.0.0.1"
    environment: dict = field(default_factory=dict)
    prefix: tuple = ()
    port: int = 0
    process: subprocess.Popen | None = None

    @property
    def config(self):
        return self.folder / "ssh_config"

    def make(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "key"):
            self.make_key(name)
        shutil.copyfile(self.folder / "key.pub", self.folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Code of this checkout, and no cores for libraries that would take all: as the tests' own processes have it.
        paths = [str(Path(path).absolute()) for path in sys.path if path]
        environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "EDGEKILN_DEVICE_LOCK": str(self.folder)[-60:],
            **self.environment,
        }
        values = {
            "port": self.port, "address": self.address, "folder": self.folder, "user": getpass.getuser(),
            "environment": " ".join(quote(f"{key}={value}") for key, value in environment.items()),
        }  # fmt: skip
        (self.folder / "sshd_config").write_text(_SERVER.format(**values))
        self.config.write_text(_CLIENT.format(**values))
        self.know_host()
        return self

    def make_key(self, name):
        path = self.folder / name
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)

    def know_host(self):
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"device {kind} {key}\n")

    def start(self):
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
        with (self.folder / "sshd.log").open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stderr=log, start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + 60
        while "Server listening" not in (self.folder / "sshd.log").read_text():
            assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)

    def sessions(self):
        """Processes of the server that hold a connection."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        return [int(pid) for pid in found]

    def kill_sessions(self):
        """As a crash of sshd, or a board that is switched off, ends them."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def write_config(self, path, port):
        """A client's configuration that leads through another port of this machine."""
        path.write_text(re.sub(r"Port \d+", f"Port {port}", self.config.read_text()))
        return path

    def stop(self):
        if self.process is not None:
            self.kill_sessions()
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running_sshd(folder, **settings):
    """A server with keys and a user's configuration in ``folder``; skips where there is no sshd."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip(WITHOUT_SSHD)
    server = Sshd(Path(folder), **settings).make()
    server.start()
    try:
        yield server
    finally:
        server.stop()


# --------------------------------------------------------------------------------------------------------------
# A line that can be slow, or fall silent without a word


class Relay:
    """Passes bytes between a client and a server: as fast as ``bytes_per_s`` allows, and none while ``frozen``."""

    def __init__(self, target, bytes_per_s=None):
        self._target, self._bytes_per_s = target, bytes_per_s
        self.frozen = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(2**14):
                while self.frozen.is_set():
                    time.sleep(0.05)
                other.sendall(data)
                if self._bytes_per_s:
                    time.sleep(len(data) / self._bytes_per_s)
            other.shutdown(socket.SHUT_WR)

    def close(self):
        for one in self._sockets:
            one.close()


# --------------------------------------------------------------------------------------------------------------
# What runs on the device instead of a whole bench

_STUB = """#!/bin/sh
case "$*" in
  *"-m edgekiln.pipeline bench"*) exec {python} {stub} "$@" ;;
esac
exec {python} "$@"
"""
_BENCH = """
import os, pathlib, shutil, sys, time
place = pathlib.Path(__file__).parent
with (place / "log").open("a") as log:
    log.write(f"begin {{os.getpid()}} {{time.time()}} {{os.getcwd()}}\\n")
print("stub: at work", file=sys.stderr, flush=True)
while (place / "wait").exists():
    time.sleep(0.02)
shutil.copytree({derived!r}, "here")
with (place / "log").open("a") as log:
    log.write(f"end {{os.getpid()}} {{time.time()}} {{os.getcwd()}}\\n")
print("{{}}")
"""


@dataclass
class StubEnvironment:
    """An environment with this edgekiln, whose ``bench`` copies a derived bundle, and waits while it is told to."""

    folder: Path
    derived: Path

    def make(self):
        (self.folder / "bin").mkdir(parents=True)
        stub = self.folder / "bench.py"
        stub.write_text(_BENCH.format(derived=str(self.derived)))
        script = self.folder / "bin" / "python"
        script.write_text(_STUB.format(python=shlex.quote(sys.executable), stub=shlex.quote(str(stub))))
        script.chmod(0o755)
        return self

    def wait(self, waits=True):
        if waits:
            (self.folder / "wait").touch()
        else:
            (self.folder / "wait").unlink(missing_ok=True)

    def entries(self, word):
        """[(process, seconds)] of the benches that began or ended."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[1]), float(line.split()[2])) for line in lines if line.startswith(word)]

    def began(self, number=1):
        """The process of the bench of that number, once it runs."""
        wait_until(lambda: len(self.entries("begin")) >= number)
        return self.entries("begin")[number - 1][0]


def wait_until(fulfilled, seconds=60):
    """Poll; a machine under load is waited for."""
    ends = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < ends
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


_HOSTILE = """#!{python}
import json, os, struct, sys, time, types
p = json.loads(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode())
for name, source in p[0]:
    agent = sys.modules[name] = types.ModuleType(name)
    exec(source, agent.__dict__)
{code}
agent.start(p)
"""


def write_hostile(path, code):
    """A program in the place of Python that runs the agent with ``code`` before it: what a device may make of it."""
    path.write_text(_HOSTILE.format(python=sys.executable, code=code))
    path.chmod(0o755)
    return str(path)
