"""``devices.toml``: a person's own machines, by name. A small file that is edited by hand as well as by commands.

Commands add and remove a device's table as text, so that comments and order stay as they were written.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.errors import UsageError, as_printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["HERE", "Device", "add_device", "choose_devices", "drop_device", "keep_device", "read_devices"]

HERE = "here"
"""The name of this machine itself, which needs no entry and no ssh."""
_FOLDER = "~/.edgekiln-device"
_TEXTS = ("host", "python", "folder", "environment", "ssh_config")
_FLAGS = ("required", "emulated")
_MOST_NAME = 64
_HEADER = re.compile(r"\s*\[")


@dataclass(frozen=True, slots=True)
class Device:
    """One machine.

    Attributes:
        name: in ``devices.toml``, on the command line, and of its folder in a fleet.
        host: what ``ssh`` takes: USER@HOST, a host of ssh's configuration, or an ssh:// address.
        python: the program there that makes the environment; begins with ``~/`` for the user's own.
        folder: all that edgekiln puts there.
        environment: a virtual environment with edgekiln, there.
        ssh_config: handed to ``ssh -F``; ``None`` leaves ssh its own.
        required: a fleet without a passing variant on it is refused.
        emulated: its times mean nothing, and none are taken.
    """

    name: str
    host: str
    python: str = "python3"
    folder: str = _FOLDER
    environment: str = f"{_FOLDER}/env"
    ssh_config: Path | None = None
    required: bool = False
    emulated: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, without ssh."""
        return self.name == HERE

    @property
    def has_own_environment(self) -> bool:
        """Whether its environment is made by edgekiln, in its folder."""
        return self.environment.startswith(f"{self.folder}/")

    @property
    def quoted(self) -> str:
        """Its name, as one types it in a shell."""
        return shlex.quote(self.name)


def read_devices(path: Path) -> dict[str, Device]:
    """The devices of a file, in its order; none where there is no such file.

    Raises:
        UsageError: it is no TOML, or an entry makes no sense.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}.", hint="Mend that line.", path=path) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", path=path) from error
    return {name: _read_entry(name, values, path) for name, values in document.items()}


def choose_devices(path: Path, names: Sequence[str]) -> list[Device]:
    """Those of these names, each once; ``here`` is always there.

    Raises:
        UsageError: there is no device of that name; as ``read_devices``.
    """
    known = read_devices(path)
    chosen = []
    for name in dict.fromkeys(names):
        device = known.get(name) or (Device(HERE, "") if name == HERE else None)
        if device is None:
            near = difflib.get_close_matches(name, [*known, HERE], n=1)
            there = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(known) or 'none'}."
            raise UsageError(
                f"{path} has no device {name!r}.",
                hint=f"{there} `edgekiln device add NAME USER@HOST` adds one.",
                path=path,
            )
        chosen.append(device)
    return chosen


def _read_entry(name: str, values: object, path: Path) -> Device:
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{path}: {name!r} is no device: a device is a table.",
            hint=f"Write [{name}] and its keys below.",
            path=path,
        )
    _check_name(name, path)
    for key in values:
        if key not in (*_TEXTS, *_FLAGS):
            near = difflib.get_close_matches(key, (*_TEXTS, *_FLAGS), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join((*_TEXTS, *_FLAGS))}."
            raise UsageError(f"{path}: the device {name!r} has an unknown key {key!r}.", hint=hint, path=path)
    texts = {key: values[key] for key in _TEXTS if key in values}
    flags = {key: values[key] for key in _FLAGS if key in values}
    for key, value in texts.items():
        if not isinstance(value, str) or not value or as_printable(value) != value:
            raise UsageError(f"{path}: {key} of {name!r} is to be text, got {value!r}.", path=path)
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {key} of {name!r} is to be true or false, got {value!r}.", path=path)
    host = texts.get("host", "")
    if name != HERE and (not host or host.startswith("-")):  # ssh would take it for an option
        raise UsageError(
            f"{path}: the device {name!r} has no host that ssh could take, got {host!r}.",
            hint='Give it one: host = "user@orin.local".',
            path=path,
        )
    return _complete(name, texts, flags, path)


def _complete(name: str, texts: Mapping[str, str], flags: Mapping[str, bool], path: Path) -> Device:
    folder = texts.get("folder", _FOLDER).rstrip("/") or "/"
    config = texts.get("ssh_config")
    return Device(
        name,
        texts.get("host", ""),
        texts.get("python", "python3"),
        folder,
        texts.get("environment", f"{folder}/env").rstrip("/"),
        None if config is None else (path.parent / Path(config).expanduser()).absolute(),
        **flags,
    )


def _check_name(name: str, path: Path) -> None:
    if (
        not name.strip() or name != name.strip() or name.startswith((".", "-")) or len(name.encode()) > _MOST_NAME
        or any(sign in name for sign in "/,\\") or as_printable(name) != name
    ):  # fmt: skip
        raise UsageError(
            f"{path}: {name!r} cannot be a device's name.",
            hint=f"It names a folder and stands in lists: no / , or \\, no . or - first, at most {_MOST_NAME} bytes.",
            path=path,
        )


def add_device(path: Path, name: str, values: Mapping[str, Any]) -> Device:
    """Check an entry; nothing is written. ``write_device`` keeps it.

    Args:
        path: of ``devices.toml``.
        name: of the new device.
        values: keys of its table; ``None`` and ``False`` are left out.

    Raises:
        UsageError: the name is taken or cannot be one; a value makes no sense.
    """
    if name == HERE:
        raise UsageError(
            f"{HERE!r} is this machine, which needs no entry.", hint=f"edgekiln bench BUNDLE --on {HERE}"
        )
    if name in read_devices(path):
        raise UsageError(
            f"{path} has a device {name!r} already.",
            hint=f"Take another name, change the file, or: edgekiln device remove {shlex.quote(name)}",
            path=path,
        )
    return _read_entry(name, {key: value for key, value in values.items() if value}, path)


def keep_device(path: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write the table of a device that ``add_device`` took behind what the file holds."""
    before = path.read_text("utf-8-sig") if path.exists() else ""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quote(name)
    lines = [f"[{key}]", *(f"{k} = {_quote(v)}" for k, v in values.items() if v)]
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    _write(path, f"{before}{gap}" + "\n".join(lines) + "\n")


def drop_device(path: Path, name: str) -> None:
    """Take the table of a device out of the file; everything else stays as it is.

    Raises:
        UsageError: it is not written as a table of its own.
    """
    lines = path.read_text("utf-8-sig").splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if _table_name(line) == name), None)
    if first is None:
        raise UsageError(
            f"{path}: {name!r} is not written as a table of its own.", hint="Remove it by hand.", path=path
        )
    last = first + 1
    while last < len(lines) and not _HEADER.match(lines[last]):
        last += 1
    while last > first + 1 and lines[last - 1].lstrip().startswith("#"):
        last -= 1  # a comment right above the next table is that one's
    _write(path, "".join(lines[:first] + lines[last:]))


def _table_name(line: str) -> str | None:
    """The name in a line ``[name]``; ``None`` of any other."""
    if not _HEADER.match(line):
        return None
    try:
        table = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    return next(iter(table), None)


def _quote(value: object) -> str:
    # JSON's strings and truth values are TOML's too, but for DEL, which no printable text holds.
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    place = place_beside(path)
    try:
        place.write_text(text, "utf-8")
        place.replace(path)
    finally:
        remove(place)
