"""The line to a device, over a real sshd: what goes wrong on the way, and what a hostile other end gets from it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sshd_support import Relay, is_alive, running_sshd, wait_until, write_hostile

from edgekiln.pipeline.device.remote import agent
from edgekiln.pipeline.device.remote import line as line_module
from edgekiln.pipeline.device.remote.line import open_line
from edgekiln.pipeline.device.remote.registry import HERE, Device
from edgekiln.pipeline.device.remote.sending import Sent, send
from edgekiln.runtime.errors import EnvironmentProblem, ExitCode, ResourceError, UntrustedError


@pytest.fixture
def device(sshd, tmp_path):
    return Device(
        "my orin", "device", python=sys.executable, folder=str(tmp_path / "put there"), ssh_config=sshd.config
    )


@pytest.fixture
def quick_silence(monkeypatch):
    monkeypatch.setattr(line_module, "SILENCE_S", 2.0)


def quiet(text):
    raise AssertionError(f"nothing was to be told: {text}")


def start_sleeper(line, pid_file):
    """A process on the device with a session of its own, below the agent; returns its number."""
    code = (
        f"import os,pathlib,subprocess,sys; p=subprocess.Popen(['sleep','600'],start_new_session=True);"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(p.pid)); p.wait()"
    )
    request = {"argv": [sys.executable, "-c", code], "cwd": ["/"], "environment": {}, "most_seconds": 600}
    ended = []

    def run():
        with pytest.raises(EnvironmentProblem) as told:
            line.ask("run", **request)
        ended.append(told.value)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    return int(pid_file.read_text()), thread, ended


# --------------------------------------------------------------------------------------------------------------
# Getting there


def test_the_agent_tells_of_the_machine_and_leaves_with_the_line(device):
    with open_line(device, quiet) as line:
        assert line.machine["python"] == list(sys.version_info[:3])
        assert line.machine["machine"] == os.uname().machine
        assert line.machine["emulated"] is False
        pid = line.ask("run", argv=["sh", "-c", "echo $PPID"], cwd=["/"], environment={}, most_seconds=60)
    wait_until(lambda: not is_alive(int(pid["stdout"])))


def test_what_a_login_shell_prints_is_passed_over(device, tmp_path):
    noisy = tmp_path / "python"
    noisy.write_text(
        f'#!/bin/sh\necho "Welcome to the board"\necho edgekiln-agent >&2\nexec {sys.executable} "$@"\n'
    )
    noisy.chmod(0o755)
    with open_line(replace(device, python=str(noisy)), quiet) as line:
        assert line.ask("exists", place=["/"]) == {"exists": True}


def test_a_changed_host_key_is_refused_and_an_unknown_one_too(sshd, device, tmp_path):
    text = sshd.config.read_text()
    config, known = tmp_path / "config", tmp_path / "known"
    config.write_text(text.replace(str(sshd.folder / "known_hosts"), str(known)))
    other = replace(device, ssh_config=config)
    with pytest.raises(UntrustedError, match="does not know the host key") as told, open_line(other, quiet):
        pass
    assert f"ssh -F {config} device" in told.value.hint
    assert not known.exists()  # nobody took the key meanwhile
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    known.write_text("device " + (tmp_path / "key.pub").read_text())
    with (
        pytest.raises(UntrustedError, match="is not the one that ssh knows") as told,
        open_line(other, quiet),
    ):
        pass
    assert told.value.exit_code == ExitCode.UNTRUSTED
    assert known.read_text() == "device " + (tmp_path / "key.pub").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"python": "/there is none/python3"}, "has no Python"),
        ({"python": "/bin/false"}, "did not start"),
        ({"host": "nobody@device"}, "refuses this user's key"),
        ({"host": "host.invalid"}, "cannot be reached"),
    ],
)
def test_what_cannot_be_reached_is_told_with_a_remedy(device, change, says):
    with pytest.raises(EnvironmentProblem, match=says) as told, open_line(replace(device, **change), quiet):
        pass
    assert told.value.hint
    assert "\n" not in told.value.message


def test_without_ssh_or_with_a_broken_configuration_that_is_said(device, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("NoSuchOption yes\n")
    with (
        pytest.raises(EnvironmentProblem, match="cannot use its configuration"),
        open_line(replace(device, ssh_config=broken), quiet),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="no program ssh here"), open_line(device, quiet):
        pass


# --------------------------------------------------------------------------------------------------------------
# Ways to lose it


@pytest.mark.parametrize("how", ["sshd", "caller", "agent", "keeper", "silence"])
def test_however_the_line_is_lost_what_runs_there_ends(sshd, device, tmp_path, how, quick_silence):
    relay = Relay(sshd.port)
    config = sshd.write_config(tmp_path / "config", relay.port)
    with open_line(replace(device, ssh_config=config), quiet) as line:
        line.lock()
        pid, thread, ended = start_sleeper(line, tmp_path / "pid")
        agent = _parent(_parent(pid))
        if how == "sshd":
            sshd.kill_sessions()
        elif how == "caller":
            line._process.kill()
        elif how == "silence":
            relay.frozen.set()
        else:
            os.kill(agent if how == "agent" else _parent(agent), signal.SIGKILL)
        thread.join(60)
        assert "was cut" in ended[0].message
        assert "same command again" in ended[0].hint
        wait_until(lambda: not is_alive(pid))
    relay.frozen.clear()
    relay.close()
    with open_line(device, quiet) as line:
        line.lock()  # free again, though its last holder never said so


def _parent(pid):
    with Path(f"/proc/{pid}/stat").open() as file:
        return int(file.read().rpartition(") ")[2].split()[1])


@pytest.mark.slow
def test_a_slow_line_is_not_taken_for_a_cut_one(sshd, device, tmp_path, quick_silence):
    relay = Relay(sshd.port, bytes_per_s=200_000)
    config = sshd.write_config(tmp_path / "config", relay.port)
    (tmp_path / "large").write_bytes(os.urandom(600_000))
    one = Sent.of_file(tmp_path / "large", ("large",))
    with open_line(replace(device, ssh_config=config), lambda text: None) as line:
        line.lock()
        line.ask("open", folder=device.folder, make=True)
        began = time.monotonic()
        send(line, [one], lambda text: None)
        assert time.monotonic() - began > 2.5  # longer than the silence that cuts
        line.ask("lay", place=["jobs", "x"], files=[[one.sha256, ["a b", "large"]]])
        found = b"".join(line.get(["jobs", "x", "a b", "large"], one.size))
    assert found == (tmp_path / "large").read_bytes()
    relay.close()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
def test_between_network_namespaces_a_link_that_goes_down_is_noticed_at_both_ends(
    tmp_path, device, quick_silence
):
    space, near, far = f"ek{os.getpid()}", f"eka{os.getpid()}", f"ekb{os.getpid()}"
    address = f"10.{os.getpid() % 200 + 20}.7."
    if (
        shutil.which("ip") is None
        or subprocess.run(["ip", "netns", "add", space], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system makes no network namespaces (ip netns add)")
    try:
        for words in (
            ["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space],
            ["ip", "address", "add", f"{address}1/24", "dev", near],
            ["ip", "link", "set", near, "up"],
            ["ip", "-n", space, "address", "add", f"{address}2/24", "dev", far],
            ["ip", "-n", space, "link", "set", far, "up"],
        ):
            subprocess.run(words, check=True)
        settings = {"address": f"{address}2", "prefix": ("ip", "netns", "exec", space)}
        with running_sshd(tmp_path / "server", **settings) as server:
            there = replace(device, ssh_config=server.config)
            with open_line(there, quiet) as line:
                pid, thread, ended = start_sleeper(line, tmp_path / "pid")
                subprocess.run(["ip", "link", "set", near, "down"], check=True)
                thread.join(60)
                assert "nothing was heard for too long" in ended[0].message
                wait_until(lambda: not is_alive(pid))
            subprocess.run(["ip", "link", "set", near, "up"], check=True)
            with open_line(there, quiet) as line:
                line.lock()
    finally:
        subprocess.run(["ip", "link", "delete", near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


# --------------------------------------------------------------------------------------------------------------
# One command at a time


def test_a_device_is_held_by_one_command_and_tells_the_next_by_whom(device, tmp_path):
    with open_line(device, quiet) as first, open_line(device, quiet) as second:
        first.lock()
        second_run = {"who": "berta@desk", "run": "another"}
        with pytest.raises(ResourceError, match=r"in use by .+@.+ since \d\d:\d\d"):
            second.ask("lock", **second_run)
        first.close()
        second.ask("lock", **second_run)
        with open_line(device, quiet) as third, pytest.raises(ResourceError, match="berta@desk"):
            third.lock()


def test_who_waits_its_turn_for_long_still_waits_while_the_other_ends(device, monkeypatch):
    answers = iter([{"who": "me", "run": "this", "since": 0.0}] * 100 + [{}])
    waited = []
    monkeypatch.setattr(agent, "ask_holder", lambda: next(answers))
    monkeypatch.setattr(agent, "LOCK", f"\0edgekiln-test-{os.getpid()}")
    taken = agent.socket.socket(agent.socket.AF_UNIX)
    taken.bind(agent.LOCK)
    near, far = agent.socket.socketpair()
    served = agent.Agent.__new__(agent.Agent)
    served._wire, served._watch = SimpleNamespace(send=lambda values: None), near
    monkeypatch.setattr(
        agent.time, "sleep", lambda s: waited.append(s) or (len(waited) > 100 and taken.close())
    )
    assert served.do_lock("me", "this") == {}
    assert len(waited) == 101
    for one in (near, far):
        one.close()


# --------------------------------------------------------------------------------------------------------------
# A hostile other end

SAY = "def do_exists(self, place):\n    {body}\n    return {{}}\nagent.Agent.do_exists = do_exists"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("while True: os.write(1, b'x' * 65536)", "prints more than a login shell"),
        (SAY.format(body="[self._wire.send({'say': 'x'}) for _ in range(10**6)]"), "more than 20000 lines"),
        (SAY.format(body="self._wire.write(b'J', b'[' * 100000)"), "what is no message"),
        (SAY.format(body="self._wire.write(b'J', b'[1]')"), "what is no message"),
        (SAY.format(body="self._wire.write(b'D', b'x')"), "a file that nobody asked for"),
        (SAY.format(body="os.write(self._wire._out, b'J' + b'\\xff' * 2**20)"), "what is no frame"),
    ],
)
def test_a_flood_or_nonsense_ends_the_line_in_bounded_memory(device, tmp_path, code, says):
    hostile = replace(device, python=write_hostile(tmp_path / "hostile", code))
    with (
        pytest.raises((UntrustedError, EnvironmentProblem), match=says),
        open_line(hostile, lambda text: None) as line,
    ):
        line.ask("exists", place=["/"])


def test_text_from_there_cannot_command_a_terminal(device, tmp_path):
    code = (
        "def refuse(self, place):\n"
        "    self._wire.send({'say': '\\x1b]0;owned\\x07\\x1b[2J\\u202eevil' + 'x' * 10**5})\n"
        "    raise agent.Refusal('os', '\\x1b[31mred\\nnext line')\n"
        "agent.Agent.do_exists = refuse"
    )
    told = []
    hostile = replace(device, python=write_hostile(tmp_path / "hostile", code))
    with open_line(hostile, told.append) as line, pytest.raises(ResourceError) as error:
        line.ask("exists", place=["/"])
    shown = told[0] + str(error.value)
    assert shown.isprintable()
    assert "\\x1b" in shown
    assert len(told[0]) < 2000


def test_more_of_a_file_than_was_asked_for_is_refused(device, tmp_path):
    code = (
        "def get(self, place, limit):\n"
        "    while True: self._wire.write(b'D', b'x' * 65536)\n"
        "agent.Agent.do_get = get"
    )
    hostile = replace(device, python=write_hostile(tmp_path / "hostile", code))
    with open_line(hostile, quiet) as line, pytest.raises(UntrustedError, match="more of a file"):
        assert sum(map(len, line.get(["x"], 10**6))) <= 10**6


def test_links_and_places_outside_are_not_read_or_written_there(device, tmp_path):
    (tmp_path / "put there").mkdir()
    with open_line(device, quiet) as line:
        line.lock()
        (tmp_path / "put there" / ".edgekiln-device").touch()
        line.ask("open", folder=device.folder, make=True)
        (tmp_path / "put there" / "link").symlink_to("/etc/passwd")
        os.mkfifo(tmp_path / "put there" / "pipe")
        for name in ("link", "pipe", "absent"):
            with pytest.raises(ResourceError):
                list(line.get([name], 100))
        for names in (["..", "x"], ["a/b"], [""], ["."]):
            with pytest.raises(ResourceError, match="unsafe name"):
                line.ask("lay", place=["jobs", "y"], files=[["0" * 64, names]])


# --------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small file system (mount -t tmpfs)")
def test_a_full_disk_there_is_told_before_and_while_it_is_filled(device, tmp_path):
    small = tmp_path / "put there"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        files = []
        for name in "abcd":
            (tmp_path / name).write_bytes(os.urandom(900_000))
            files.append(Sent.of_file(tmp_path / name, (name,)))
        boasting = (
            "true = agent.Agent.do_missing\n"
            "agent.Agent.do_missing = lambda self, files: dict(true(self, files), free=1 << 60)"
        )
        liar = replace(device, python=write_hostile(tmp_path / "liar", boasting))
        for one, says in ((device, "free and lacks"), (liar, "No space is left on the device")):
            with open_line(one, lambda text: None) as line:
                line.lock()
                line.ask("open", folder=device.folder, make=True)
                with pytest.raises(ResourceError, match=says) as told:
                    send(line, files, lambda text: None)
                assert told.value.exit_code == ExitCode.RESOURCES
                if one is liar:  # the same line goes on
                    assert line.ask("exists", place=["blobs"]) == {"exists": True}
        kept = sorted(entry.name for entry in (small / "blobs").iterdir())
        assert all(len(name) == 64 for name in kept)  # whole files alone
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        told = []
        with open_line(device, told.append) as line:
            line.lock()
            line.ask("open", folder=device.folder, make=True)
            send(line, files, told.append)
        assert f"sends {4 - len(kept)} of 4 files" in told[0]
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_this_machine_needs_no_ssh(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_line(Device(HERE, "", folder=str(tmp_path / "here")), quiet) as line:
        assert line.ask("open", folder=str(tmp_path / "here"), make=True)["there"] is True
