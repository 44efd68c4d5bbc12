"""A real sshd on a free port, with keys and configuration of its own; ~/.ssh is neither read nor written."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
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
        environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **self.environment}
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
        (self.folder / "known_hosts").write_text(f"[{self.address}]:{self.port} {kind} {key}\n")

    def start(self):
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
        self.process = subprocess.Popen(
            [*self.prefix, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stderr=(self.folder / "sshd.log").open("a"), start_new_session=True,
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
