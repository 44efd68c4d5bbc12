"""Where edgekiln writes: room, permission, and locks that really lock; and whether text is UTF-8."""

from __future__ import annotations

import contextlib
import fcntl
import locale
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekiln.export.engines.cache import default_cache_folder
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn
from edgekiln.runtime.errors import EnvironmentProblem

__all__ = [
    "check_cache_folder",
    "check_cache_room",
    "check_encoding",
    "check_room",
    "check_shared_memory",
    "check_temporary_folder",
]

_LITTLE_ROOM, _TOO_LITTLE_ROOM = 5 * 2**30, 2**29  # bytes
_LITTLE_SHARED_MEMORY = 2**28  # bytes: two loading workers with batches of 64 pictures of 512 x 512


def check_room(name: str, folder: Path, remedy: str) -> Row:
    """Free space of the file system that ``folder`` is, or would be, on."""
    try:
        free = shutil.disk_usage(_nearest_existing(folder)).free
    except OSError as error:
        return fail(name, f"{folder} cannot be looked at: {error.strerror}", remedy)
    found = f"{free / 2**30:.1f} GiB free for {folder}"
    if free < _TOO_LITTLE_ROOM:
        return fail(name, found, remedy)
    return warn(name, found, remedy) if free < _LITTLE_ROOM else ok(name, found)


def check_cache_room() -> list[Row]:
    """Free space for built engines; nothing where they have no place, which ``check_cache_folder`` tells."""
    try:
        folder = default_cache_folder()
    except EnvironmentProblem:
        return []
    return [check_room("disk for engines", folder, "Free some, or choose another place with EDGEKILN_CACHE.")]


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Row:
    """What loading workers hand over pictures in. A container has 64 MB of it where nobody asked for more."""
    name, remedy = (
        "shared memory",
        "docker run --shm-size=2g, or --ipc=host; else fewer loading workers are taken.",
    )
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return warn(name, f"{folder}: {error.strerror}", f"Training reads pictures without workers; {remedy}")
    found = f"{free / 2**20:.0f} MiB free in {folder}"
    return warn(name, found, remedy) if free < _LITTLE_SHARED_MEMORY else ok(name, found)


def check_cache_folder(folder: Path | None = None) -> Row:
    """The engine cache: its owner's alone, writable, and on a file system where a second lock is refused."""
    name, remedy = "engine cache", "Set EDGEKILN_CACHE to a folder of your own on a local disk."
    try:
        folder = folder or default_cache_folder()
    except EnvironmentProblem as error:
        return fail(name, error.message, remedy)
    existing = _nearest_existing(folder)
    if not existing.is_dir():
        return fail(name, f"{existing} is a file, {folder} wants a folder there", remedy)
    if existing == folder:
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return fail(
                name, f"{folder} can be written by others: an engine is code", f"Run: chmod 700 {folder}"
            )
    problem = _try_to_lock(existing)
    if problem:
        return fail(name, f"{folder}: {problem}", remedy)
    return ok(name, f"{folder}{'' if existing == folder else ' (not there yet)'}, writable, and locks hold")


def _try_to_lock(folder: Path) -> str | None:
    """What goes wrong when a file in ``folder`` is locked twice; ``None`` where the second lock is refused."""
    try:
        with _open_twice(folder) as (first, second):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return "two processes may hold one lock: the file system has no locks"
            return None
    except OSError as error:
        return f"{folder} cannot be written or locked ({error.strerror})"


@contextlib.contextmanager
def _open_twice(folder: Path) -> Iterator[tuple[int, int]]:
    """Two descriptors of a new file, which lock against each other as two processes would. The file is removed."""
    first, path = tempfile.mkstemp(prefix=".edgekiln-doctor-", dir=folder)
    try:
        second = os.open(path, os.O_RDWR)
        try:
            yield first, second
        finally:
            os.close(second)
    finally:
        os.close(first)
        Path(path).unlink()


def check_temporary_folder() -> Row:
    """The folder in which engines are built and reports assembled."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"\0")
    except OSError as error:
        return fail("temporary folder", str(error), "Set TMPDIR to a folder that can be written.")
    remedy = "Set TMPDIR to a folder with more room: engines are built there."
    return check_room("temporary folder", Path(tempfile.gettempdir()), remedy)


def check_encoding() -> Row:
    """File names and reports are UTF-8; a system in another encoding garbles or refuses some."""
    encodings = {
        "files": sys.getfilesystemencoding(),
        "text": locale.getpreferredencoding(False),
        "output": getattr(sys.__stdout__, "encoding", None) or "none",
    }
    found = ", ".join(f"{use} {name}" for use, name in encodings.items())
    if {name.lower().replace("-", "") for name in encodings.values()} <= {"utf8", "none"}:
        return ok("encoding", found)
    return warn("encoding", found, "Run: export PYTHONUTF8=1, or set LANG=C.UTF-8")


def _nearest_existing(folder: Path) -> Path:
    """``folder``, or the nearest above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())
