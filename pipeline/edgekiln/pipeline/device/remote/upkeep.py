"""What a device holds and lacks: looking at it, setting up its environment, and removing all that was put there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.pipeline.capacity import describe_bytes
from edgekiln.pipeline.device.remote.agent_machine import describe_edgekiln
from edgekiln.pipeline.device.remote.line import Line
from edgekiln.pipeline.device.remote.sending import Sent, send
from edgekiln.pipeline.device.remote.wheel import download_wheels, make_wheel
from edgekiln.runtime.errors import EnvironmentProblem, UsageError, as_printable
from edgekiln.runtime.processes import module_command

__all__ = [
    "SetupWish", "check_same_edgekiln", "edgekiln_command", "inspect_device", "remove_from_device", "set_up",
]  # fmt: skip

Row = dict[str, Any]
"""``name``, ``state`` (OK, WARN or FAIL), ``found`` and ``fix``, as a row of ``edgekiln doctor``."""

_OLDEST_PYTHON = (3, 10)
_ROOM_BYTES = 2 * 2**30
_DOCTOR_S, _INSTALL_S = 300, 7200
_SETUP = "Run: edgekiln device setup"
_STATES = ("OK", "WARN", "FAIL")
_MOST_ROWS = 200


# --------------------------------------------------------------------------------------------------------------
# Looking at it


def inspect_device(line: Line) -> list[Row]:
    """What the machine is, what it lacks and how to mend it; with ``edgekiln doctor``'s rows where it has edgekiln."""
    device, machine = line.device, line.machine
    line.ask("open", folder=device.folder, make=False)
    facts = line.ask("facts", environment=device.environment)
    rows = [_row("machine", _name_machine(machine)), _check_python(machine), _check_room(facts)]
    if jetpack := facts.get("jetpack"):
        rows.append(_row("l4t", str(jetpack)))
    if cuda := facts.get("cuda"):
        rows.append(_row("cuda", str(cuda).strip('",')))
    rows.append(_check_tensorrt(facts))
    if isinstance(governors := facts.get("governors"), list) and governors:
        rows.append(_row("cpu governor", ", ".join(map(str, governors))))
    own = _check_edgekiln(line, facts)
    rows.append(own)
    if own["state"] == "OK":
        rows += _ask_doctor(line)
    elif not facts.get("venv") and not facts.get("environment"):
        rows.append(_row(
            "venv", "this Python cannot make environments", "FAIL", "Run there: sudo apt install python3-venv"
        ))  # fmt: skip
    return rows


def _row(name: str, found: str, state: str = "OK", fix: str | None = None) -> Row:
    return {"name": name, "state": state, "found": as_printable(found[:1000]), "fix": fix}


def _name_machine(machine: Mapping[str, Any]) -> str:
    libc = machine.get("libc")
    libc = " ".join(map(str, libc)) if isinstance(libc, list) else "unknown C library"
    return f"{machine.get('machine')}{', emulated' if machine.get('emulated') else ''}, {libc}"


def _python_of(machine: Mapping[str, Any]) -> tuple[int, ...]:
    version = machine.get("python")
    return tuple(version) if isinstance(version, list) and all(type(n) is int for n in version) else ()


def _check_python(machine: Mapping[str, Any]) -> Row:
    version = _python_of(machine)
    found = f"{'.'.join(map(str, version))} ({machine.get('executable')})"
    if version >= _OLDEST_PYTHON:
        return _row("python there", found)
    return _row(
        "python there", f"{found}: edgekiln needs 3.10 or newer", "FAIL",
        "Install a newer one there, and name it in devices.toml: python = \"/usr/bin/python3.10\"",
    )  # fmt: skip


def _check_room(facts: Mapping[str, Any]) -> Row:
    free = facts.get("free")
    room = free if isinstance(free, int) else 0
    if room >= _ROOM_BYTES:
        return _row("disk there", f"{describe_bytes(room)} free")
    return _row(
        "disk there", f"{describe_bytes(room)} free; {describe_bytes(_ROOM_BYTES)} are wanted there", "WARN",
        "Free some there, or choose another place in devices.toml: folder = \"...\"",
    )  # fmt: skip


def _check_tensorrt(facts: Mapping[str, Any]) -> Row:
    found = facts.get("tensorrt")
    if isinstance(found, list) and found:
        return _row("system tensorrt", f"{found[0]}: `device setup` makes an environment that sees it")
    if facts.get("jetpack"):
        return _row(
            "system tensorrt", "JetPack's TensorRT is not installed", "FAIL",
            "Run there: sudo apt install nvidia-jetpack",
        )  # fmt: skip
    return _row("system tensorrt", "none; engines for CPUs need none")


def _check_edgekiln(line: Line, facts: Mapping[str, Any]) -> Row:
    try:
        version = check_same_edgekiln(line, facts)
    except EnvironmentProblem as problem:
        return _row("environment", problem.message, "FAIL", problem.hint)
    return _row("environment", f"edgekiln {version}, the same as here, in {line.device.environment}")


def check_same_edgekiln(line: Line, facts: Mapping[str, Any]) -> str:
    """The version of the edgekiln there.

    Raises:
        EnvironmentProblem: there is none, or its source is not that of the edgekiln that asks.
    """
    device, there, own = line.device, facts.get("environment"), describe_edgekiln()
    if device.is_here:
        return str(own["version"])
    fix = f"{_SETUP} {device.quoted}"
    if not isinstance(there, dict) or there.get("version") is None:
        why = "has no Python" if not isinstance(there, dict) else "has no edgekiln"
        raise EnvironmentProblem(
            f"The device {device.name!r} is not set up: {device.environment} {why} there.", hint=fix
        )
    if there.get("digest") != own["digest"]:
        version = as_printable(str(there.get("version"))[:40])
        other = f"has edgekiln {version}, here is {own['version']}"
        if version == own["version"]:
            other += ", and their source differs"
        raise EnvironmentProblem(
            f"The device {device.name!r} {other}: results of two versions cannot stand side by side.",
            hint=fix,
        )
    return str(own["version"])


def edgekiln_command(line: Line) -> list[str]:
    """What runs ``edgekiln`` on the device."""
    if line.device.is_here:
        return module_command("edgekiln.pipeline")
    return [f"{line.device.environment}/bin/python", "-m", "edgekiln.pipeline"]


def _ask_doctor(line: Line) -> list[Row]:
    line.ask("open", folder=line.device.folder, make=False)
    done = line.ask(
        "run",
        argv=[*edgekiln_command(line), "doctor", "--json"],
        cwd=["/"],
        environment={},
        most_seconds=_DOCTOR_S,
    )
    try:
        told = json.loads(str(done.get("stdout")))["rows"][:_MOST_ROWS]
        rows = [
            _row(
                str(row["name"]),
                str(row["found"]),
                str(row["state"]),
                row["fix"] and as_printable(str(row["fix"])),
            )
            for row in told
        ]
        if any(row["state"] not in _STATES for row in rows):
            raise ValueError("a state that no doctor knows")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [_row("doctor", f"it did not answer: {error!r}", "FAIL", f"{_SETUP} {line.device.quoted}")]
    return rows


# --------------------------------------------------------------------------------------------------------------
# Setting it up


@dataclass(frozen=True, slots=True)
class SetupWish:
    """How to set up a device.

    Attributes:
        extras: of edgekiln, to install there.
        offline: fetch the wheels here, for a device without a network.
    """

    extras: tuple[str, ...] = ("onnx",)
    offline: bool = False


def set_up(line: Line, wish: SetupWish, tell: Callable[[str], None]) -> str:
    """Make the device's environment and install this edgekiln into it; returns its version.

    Raises:
        EnvironmentProblem: Python is too old, cannot make environments, or pip fails there; no wheel for its platform.
        ResourceError: another job runs there; its disk is full.
        UsageError: its environment is not edgekiln's own; the device is this machine.
    """
    device, python = line.device, _python_of(line.machine)
    _check_wanted(line, python)
    line.lock()
    line.ask("open", folder=device.folder, make=True)
    facts = line.ask("facts", environment=device.environment)
    if not facts.get("venv"):
        raise EnvironmentProblem(
            f"The Python of the device {device.name!r} cannot make environments: it lacks venv or ensurepip.",
            hint="Run there: sudo apt install python3-venv",
        )
    with tempfile.TemporaryDirectory(prefix="edgekiln-wheels-") as place:
        wheels = _gather_wheels(line, wish, python, Path(place), tell)
        sent = [Sent.of_file(path, (path.name,)) for path in wheels]
        send(line, sent, tell)
        line.ask("lay", place=["wheels"], files=[[one.sha256, list(one.names)] for one in sent])
    tell("makes the environment")
    system = ["--system-site-packages"] if facts.get("tensorrt") else []
    _run(line, [str(line.machine["executable"]), "-m", "venv", "--clear", *system, device.environment])
    own = f"wheels/{next(path.name for path in wheels if path.name.startswith('edgekiln-'))}"
    wanted = f"{own}[{','.join(wish.extras)}]" if wish.extras else own
    index = ["--no-index", "--find-links", "wheels"] if wish.offline else []
    tell("installs edgekiln and what it needs")
    pip = [
        f"{device.environment}/bin/python",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
    ]
    _run(line, [*pip, "--quiet", *index, wanted])
    line.ask("discard", place=["wheels"])
    return check_same_edgekiln(line, line.ask("facts", environment=device.environment))


def _check_wanted(line: Line, python: tuple[int, ...]) -> None:
    """That an environment can be made there, and is edgekiln's to make."""
    device = line.device
    if device.is_here:
        raise UsageError(f"{device.name!r} is this machine, which has edgekiln.", hint="It needs no set-up.")
    if python < _OLDEST_PYTHON:
        row = _check_python(line.machine)
        raise EnvironmentProblem(f"The device {device.name!r}: {row['found']}.", hint=row["fix"])
    if not device.has_own_environment:
        raise UsageError(
            f"The environment of the device {device.name!r} is your own: {device.environment}.",
            hint="Install edgekiln there yourself, or take `environment` out of devices.toml.",
        )


def _gather_wheels(
    line: Line, wish: SetupWish, python: Sequence[int], place: Path, tell: Callable[[str], None]
) -> list[Path]:
    name, content = make_wheel()
    own = place / name
    own.write_bytes(content)
    if not wish.offline:
        return [own]
    tell("fetches wheels for its platform, here")
    folder = place / "fetched"
    folder.mkdir()
    fetched = download_wheels(own, wish.extras, line.machine, python, folder)
    return [own, *(path for path in fetched if path.name != name)]


def _run(line: Line, argv: Sequence[str]) -> None:
    """Run a program there, in the device's folder; its last words stand in the error."""
    said: list[str] = []
    with line.listening(said.append):
        done = line.ask("run", argv=list(argv), cwd=[], environment={}, most_seconds=_INSTALL_S)
    if done.get("code") != 0:
        told = [text for text in said if "ERROR" in text] or said[-3:] or [str(done.get("stdout", ""))[-500:]]
        what = "pip" if "pip" in argv else "venv"
        raise EnvironmentProblem(
            f"{what} failed on the device {line.device.name!r}: {as_printable(' '.join(told)[:1000])}",
            hint="Without a network there, use --offline: the wheels for it are then fetched here. "
            "A package without a wheel for its platform cannot be installed so.",
        )


# --------------------------------------------------------------------------------------------------------------
# Removing


def remove_from_device(line: Line) -> str | None:
    """Remove all that edgekiln put there; returns the folder, or ``None`` where there was none.

    Raises:
        ResourceError: another job runs there, or something cannot be removed.
    """
    line.lock()
    found = line.ask("open", folder=line.device.folder, make=False)
    if found.get("there") is not True:
        return None
    line.ask("discard", place=[])
    return as_printable(str(found.get("folder"))[:1000])
