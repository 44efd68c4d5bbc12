"""How much fits: memory that a process may still take, room on a disk, and bytes in words.

Room is asked for before work that is known to need it, and told in numbers where it ran out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekiln.runtime.errors import ResourceError
from edgekiln.runtime.limits import control_group_folders

__all__ = [
    "FULL_ERRORS",
    "available_memory_bytes",
    "describe_bytes",
    "explain_writing",
    "free_disk_bytes",
    "require_room",
]

FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of a disk or a quota that is full. A limit of file sizes is another thing."""
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's, which has no errno

# (limit, what is used, key of memory.stat with the page cache that is given back on demand), of cgroup v2 and v1
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def describe_bytes(count: int) -> str:
    """In units of 1000, as disks are sold and df -H tells: ``350 MB``, ``15.1 GB``."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1000:.3g} kB"


def free_disk_bytes(folder: Path) -> int:
    """Bytes that a user may still write where an existing folder lies. Quotas are not seen."""
    return shutil.disk_usage(folder).free


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """What can be taken without swapping: MemAvailable, or less where a cgroup leaves less; ``None`` if nothing tells.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    amounts = [
        int(line.split()[1]) * 1024
        for line in (_read(root / "proc/meminfo") or "").splitlines()
        if line.startswith("MemAvailable:")
    ]
    amounts += [
        left
        for folder in control_group_folders("memory", root)
        if (left := _left_in_cgroup(folder)) is not None
    ]
    return min(amounts, default=None)


def _left_in_cgroup(folder: Path) -> int | None:
    """Bytes until the limit, page cache that can be dropped counted as free; ``None`` where there is no limit."""
    for limit_name, used_name, cache_name in _CGROUP_FILES:
        limit, used = _read(folder / limit_name), _read(folder / used_name)
        if limit and used and limit.isdigit() and used.isdigit():
            statistics = dict(
                line.split(maxsplit=1) for line in (_read(folder / "memory.stat") or "").splitlines()
            )
            return max(0, int(limit) - int(used) + int(statistics.get(cache_name, 0)))
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ResourceError where the file system of ``folder`` has less than ``needed_bytes`` free."""
    free = free_disk_bytes(folder)
    if free < needed_bytes:
        raise ResourceError(
            f"{what} need {describe_bytes(needed_bytes)}, and {folder} has {describe_bytes(free)} free.",
            hint="Free some, or choose another place with --runs.",
            path=folder,
        )


@contextlib.contextmanager
def explain_writing(root: Path, usual_bytes: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Say which place below ``root`` cannot be written, why, how much was free and wanted, and what to do.

    The system's own error names no file when writing fails, only when opening does. Errors about files that are only
    read pass through, and so does every other one.

    Args:
        usual_bytes: how much the work wrote when it was last done; ``None`` where that is unknown.
    """
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
        if error.errno in FULL_ERRORS or _SHORT_WRITE.search(str(error)):
            raise _explain_full(path, error, usual_bytes()) from error
        if error.errno == errno.EFBIG:
            raise ResourceError(
                f"{path} may not grow as it would have to: {error.strerror}.",
                hint="Raise the limit of file sizes (ulimit -f), and run the same command again: finished stages are "
                "kept.",
                path=path,
            ) from error
        if error.errno in _REFUSED and path.is_relative_to(root):
            raise ResourceError(
                f"{path} cannot be written: {error.strerror}.",
                hint="Check who owns it and its permissions, or choose another place with --runs.",
                path=path,
            ) from error
        raise


def _explain_full(path: Path, error: OSError, usual_bytes: int | None) -> ResourceError:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = describe_bytes(free_disk_bytes(existing))
    usual = (
        "" if usual_bytes is None else f", and this took {describe_bytes(usual_bytes)} when it was last done"
    )
    return ResourceError(
        f"No space is left for {path}: {error.strerror or error}; {free} are free there{usual}.",
        hint="Free some, or choose another place with --runs, and run the same command again: finished stages are "
        "kept.",
        path=path,
    )
