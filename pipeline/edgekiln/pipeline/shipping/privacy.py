"""What of this machine and of its pictures stays out of what leaves it.

A bundle and its report are made to be passed on. Two things must not travel with them unasked: folders of the machine
that made them, which hold the names of people, hosts and projects; and, where the recipe says
``report.images = false``, pictures and their files' names. docs/privacy.md lists what remains.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "find_home",
    "machine_folders",
    "name_picture",
    "name_places",
    "remove_private",
    "strip_folders",
    "withhold_names",
]

_WITHHELD = "withheld"
_LISTS = ("unreadable", "duplicates", "conflicts", "allowed")
_TAIL = r"(?:/[^\s'\"<>|:;,()\[\]{}]*)?"


def machine_folders(*others: Path | None) -> tuple[str, ...]:
    """Absolute folders of this machine that texts may name: ``others``, then home, work, temporary and Python's own.

    Each as it is written and with links resolved, the longest first, since one may lie in another.
    """
    own = (Path.cwd(), find_home(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix))
    given = [str(path.absolute()) for path in (*others, *own) if path is not None]
    paths = [*given, *(entry for entry in sys.path if entry.startswith("/"))]
    found = {path.rstrip("/") for path in (*paths, *map(os.path.realpath, paths))}
    return tuple(sorted((path for path in found if path), key=lambda path: (-len(path), path)))


def find_home() -> Path | None:
    """This user's home folder; ``None`` for one without HOME whom the system does not know."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def strip_folders(value: Any, folders: Sequence[str]) -> Any:
    """JSON values whose texts name no file of ``folders`` by more than its last part; keys of mappings too.

    Only paths below ``folders`` are touched, not whatever begins with a slash: names of ONNX nodes do.
    """
    if not folders:
        return value
    start = "|".join(re.escape(folder) for folder in folders)
    return _replace(value, re.compile(rf"(?<![\w.-])(?:{start})(?![\w-]){_TAIL}"))


def _replace(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(_last_part, value) if "/" in value else value
    if isinstance(value, Mapping):
        return {_replace(key, pattern): _replace(entry, pattern) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(entry, pattern) for entry in value]
    return value


def _last_part(found: re.Match[str]) -> str:
    """``.../red.png`` of ``/home/somebody/pictures/red.png``; a sentence's own full stop stays."""
    path = found.group()
    return f".../{Path(path.rstrip('./')).name}{'.' if path.endswith('.') else ''}"


def name_picture(split: str, position: int) -> str:
    """What a picture is called where its file's name is withheld: its place in ``index.json`` of the data stage."""
    return f"{split} picture {position}"


def withhold_names(data: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The ``data`` part of a report without a file's name: how many and why stays, which does not.

    Args:
        data: with the lists ``unreadable``, ``duplicates``, ``conflicts``, ``allowed`` and ``ignored``.
        places: what those pictures are called that stand in a split, by key.
    """
    entries = {name: [_rename(entry, places) for entry in data[name]] for name in _LISTS if name in data}
    return {**data, **entries, "ignored": [_WITHHELD] * len(data["ignored"])}


def _rename(entry: Mapping[str, str], places: Mapping[str, str]) -> dict[str, str]:
    named = {key: places.get(entry[key], _WITHHELD) for key in ("key", "same_as") if key in entry}
    told = {"message": _WITHHELD} if "message" in entry else {}  # it quotes the file's first bytes
    return {**entry, **named, **told}


def name_places(splits: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """``name_picture`` by key, of every picture in the index that ``prepare_splits`` wrote."""
    return {
        key: name_picture(split, position)
        for split, part in splits.items()
        for position, key in enumerate(part["keys"])
    }


def remove_private(value: Any, private: Mapping[str, str] | None = None) -> Any:
    """JSON values with every folder, user and host of this machine taken out of their texts."""
    names = _private_names() if private is None else private
    if isinstance(value, str):
        for name, word in names.items():
            value = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, value)
        return value
    if isinstance(value, dict):
        return {key: remove_private(entry, names) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [remove_private(entry, names) for entry in value]
    return value


def _private_names() -> dict[str, str]:
    """What to replace by what, the longest first: a folder may lie in another."""
    site = [entry for entry in sys.path if entry]
    home = find_home()
    folders = [*site, sys.prefix, sys.base_prefix, str(Path.cwd()), str(home or ""), tempfile.gettempdir()]
    names = {folder: "..." for folder in folders if len(folder) > 1}
    names |= {os.path.realpath(folder): "..." for folder in list(names)}
    names[socket.gethostname()] = "HOST"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "root"
    if user != "root":  # every machine has that one, and so have many messages
        names[user] = "USER"
    return dict(sorted(names.items(), key=lambda entry: -len(entry[0])))
