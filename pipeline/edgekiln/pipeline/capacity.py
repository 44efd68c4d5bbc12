"""How much fits: memory that a process may still take, space that is left on a disk, and bytes in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory_bytes", "describe_bytes", "free_disk_bytes"]

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
    amounts += [left for folder in _cgroup_folders(root) if (left := _left_in_cgroup(folder)) is not None]
    return min(amounts, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Folders of the memory controller that may limit this process: its own and all above it, of v2 and of v1."""
    for line in ["0::/", "0:memory:/", *(_read(root / "proc/self/cgroup") or "").splitlines()]:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        place = top / own.lstrip("/")
        yield place
        yield from (parent for parent in place.parents if parent == top or top in parent.parents)


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
