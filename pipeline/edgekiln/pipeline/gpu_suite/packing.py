"""Files in parts of limited size, with one manifest, and the way back: what is too large for a part is cut into pieces.

Every part holds the whole manifest with the sha256 of every file and piece, so whatever arrived says what is missing.
It knows nothing of what the files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekiln.runtime.errors import UsageError

__all__ = ["MANIFEST", "PART_BYTES", "Packed", "hash_file", "join_parts", "pack_parts", "read_manifest"]

SCHEMA = "edgekiln.gpu-inputs/1"
MANIFEST = "manifest.json"
PART_BYTES = 60 * 2**20
"""Most bytes of a part, its manifest included."""
_MANIFEST_BYTES = 512 * 2**10
_CHUNK = 2**22
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")
_PART = re.compile(r"part-\d+")


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------
# Into parts


@dataclass(frozen=True, slots=True)
class Packed:
    """A file to be packed, and what the manifest says of it besides its size and digest."""

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)


def pack_parts(
    files: Sequence[Packed], folder: Path, about: Mapping[str, Any], part_bytes: int = PART_BYTES
) -> dict[str, Any]:
    """Write ``folder/part-1``, ``part-2`` and so on, and the manifest into each and beside them.

    Args:
        files: in the order of their value; the first ones come into the first parts.
        folder: parts of an earlier call there are replaced.
        about: more of the manifest.
        part_bytes: most that a part may hold.

    Returns:
        The manifest.

    Raises:
        UsageError: a name is none that a part can hold, or two are alike.
    """
    room = part_bytes - min(_MANIFEST_BYTES, part_bytes // 2)
    _check_names([file.path.name for file in files])
    (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, half-written parts are no parts
    for old in folder.iterdir():
        if _PART.fullmatch(old.name):
            shutil.rmtree(old)
    held: list[int] = []
    entries: dict[str, Any] = {}
    for file in files:
        size = file.path.stat().st_size
        pieces = [_write_piece(file.path, cut, folder, held, room) for cut in _cuts(size, room)]
        digest = pieces[0]["sha256"] if len(pieces) == 1 else hash_file(file.path)
        entries[file.path.name] = {**file.about, "bytes": size, "sha256": digest, "pieces": pieces}
    manifest = {"schema": SCHEMA, **about, "parts": len(held), "part_bytes": held, "files": entries}
    _write_manifests(manifest, folder, part_bytes - room)
    return manifest


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name) or name == MANIFEST or names.count(name) > 1:
            raise UsageError(
                f"A part cannot hold a file of the name {name!r}: names are plain, and each is one file's."
            )


def _cuts(size: int, room: int) -> list[tuple[int, int, str]]:
    """(begin, end, ending of the name) of each piece of a file; one without an ending where it need not be cut."""
    if size <= room:
        return [(0, size, "")]
    count = -(-size // room)
    return [(i * room, min(size, (i + 1) * room), f".piece-{i + 1}-of-{count}") for i in range(count)]


def _write_piece(
    source: Path, cut: tuple[int, int, str], folder: Path, held: list[int], room: int
) -> dict[str, Any]:
    """Put a piece into the first part that has room for it."""
    begin, end, ending = cut
    size = end - begin
    part = next((i for i, bytes_held in enumerate(held) if bytes_held + size <= room), len(held))
    if part == len(held):
        held.append(0)
        (folder / f"part-{part + 1}").mkdir()
    held[part] += size
    target = folder / f"part-{part + 1}" / f"{source.name}{ending}"
    if ending:
        with source.open("rb") as whole, target.open("wb") as piece:
            whole.seek(begin)
            _copy(whole, piece, size)
    else:
        _link_or_copy(source, target)
    return {"part": part + 1, "file": target.name, "bytes": size, "sha256": hash_file(target)}


def _copy(source: Any, target: Any, size: int) -> None:
    while size > 0:
        chunk = source.read(min(_CHUNK, size))
        if not chunk:
            raise OSError(f"{getattr(source, 'name', 'the file')} ended {size} bytes too early")
        target.write(chunk)
        size -= len(chunk)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_manifests(manifest: Mapping[str, Any], folder: Path, room: int) -> None:
    text = json.dumps(manifest, indent=1) + "\n"
    if len(text) > room:
        raise UsageError(f"The manifest has {len(text)} bytes and may have {room}: pack fewer files.")
    for part in range(manifest["parts"]):
        (folder / f"part-{part + 1}" / MANIFEST).write_text(text, "utf-8")
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(text, "utf-8")
    partial.replace(folder / MANIFEST)


# --------------------------------------------------------------------------------------------------------------
# Back again


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of parts in ``folder``; ``None`` where these are no parts.

    Raises:
        UsageError: it is damaged, or of another kind.
    """
    parts = sorted(
        folder.glob("part-*"), key=lambda path: int(path.name[5:]) if path.name[5:].isdigit() else 0
    )
    for place in (folder, *parts):
        path = place / MANIFEST
        if path.is_file():
            try:
                manifest = json.loads(path.read_text("utf-8"))
                known = manifest["schema"] == SCHEMA and all(
                    _NAME.fullmatch(name) for name in manifest["files"]
                )
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{place.name}/{MANIFEST} is damaged: {error}.", hint="Bring it again."
                ) from error
            if not known:
                raise UsageError(f"{place.name}/{MANIFEST} is none of {SCHEMA}.", hint="Run --prepare again.")
            return dict(manifest)
    return None


def join_parts(folder: Path, manifest: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Put every file that is wholly there, and whole, into ``target``; parts may be missing.

    Returns:
        For each file ``state``, ``reason`` and ``bytes``: *skipped* where a piece is missing, *failed* where its
        bytes are not those that were packed.
    """
    target.mkdir(parents=True, exist_ok=True)
    return {name: _join(folder, name, entry, target / name) for name, entry in manifest["files"].items()}


def _join(folder: Path, name: str, entry: Mapping[str, Any], target: Path) -> dict[str, Any]:
    paths = [folder / f"part-{int(piece['part'])}" / Path(piece["file"]).name for piece in entry["pieces"]]
    told = {"bytes": entry["bytes"], **{key: entry[key] for key in ("made_by",) if key in entry}}
    missing = [path.parent.name for path in paths if not path.is_file()]
    if missing:
        return {"state": "skipped", "reason": f"not here: {', '.join(dict.fromkeys(missing))}", **told}
    for path, piece in zip(paths, entry["pieces"], strict=True):
        if hash_file(path) != piece["sha256"]:
            reason = f"{path.parent.name}/{path.name} is damaged: its sha256 is not {piece['sha256']}; bring it again"
            return {"state": "failed", "reason": reason, **told}
    _assemble(paths, target)
    if len(paths) > 1 and hash_file(target) != entry["sha256"]:
        target.unlink()
        return {"state": "failed", "reason": f"{name} is damaged: its pieces give another sha256", **told}
    return {"state": "done", "reason": None, **told}


def _assemble(paths: Iterable[Path], target: Path) -> None:
    first, *others = paths
    target.unlink(missing_ok=True)
    if not others:
        with contextlib.suppress(OSError):  # a file system without links
            target.symlink_to(first.resolve())
            return
    with target.open("wb") as whole:
        for path in (first, *others):
            with path.open("rb") as piece:
                shutil.copyfileobj(piece, whole, _CHUNK)
