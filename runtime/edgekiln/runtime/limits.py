"""What the system lets this process have: cores, by affinity and by the quotas of its control groups, and threads.

A container's limits stand in control groups (cgroups), version 1 or 2, one within the other: each level limits what is
below it, so the smallest counts. No engine library reads them, and some ignore the affinity too: they start a thread
for each core of the machine, and the system then stalls all of them for the rest of each period.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from edgekiln.runtime.errors import ResourceError

__all__ = [
    "call_in_a_passing_thread",
    "control_group_folders",
    "count_affinity",
    "count_cores",
    "default_threads",
    "explain_no_thread",
    "read_cpu_quota",
    "start_thread",
    "usable_threads",
]

_ROOT = Path("/")
_T = TypeVar("_T")


# --------------------------------------------------------------------------------------------------------------
# Cores


def count_affinity() -> int:
    """Cores that this process may be put on; see ``count_cores`` for the quota on top."""
    return len(os.sched_getaffinity(0))


def count_cores(root: Path = _ROOT) -> float:
    """Cores that this process may use: its affinity, and a container's quota where that is less (1.5, for example)."""
    quota = read_cpu_quota(root)
    return float(count_affinity()) if quota is None else min(float(count_affinity()), quota)


def usable_threads(root: Path = _ROOT) -> int:
    """Threads that can compute at once without being stalled: whole cores of ``count_cores``, at least 1."""
    return max(1, int(count_cores(root)))


def default_threads(root: Path = _ROOT) -> int | None:
    """Threads for an engine where nobody chose; ``None`` where nothing limits this process: the library knows best.

    As the libraries do, a core that runs two threads (SMT) counts once.
    """
    if count_cores(root) >= (os.cpu_count() or 1):
        return None
    folder = root / "sys/devices/system/cpu"
    cores = {_read(folder / f"cpu{n}/topology/thread_siblings_list") or n for n in os.sched_getaffinity(0)}
    return min(len(cores), usable_threads(root))


def read_cpu_quota(root: Path = _ROOT) -> float | None:
    """Cores that the quota allows, or ``None`` without one. A quota stalls threads for part of a period.

    The least of this process's control group and those above it: ``cpu.max`` in version 2, ``cpu.cfs_quota_us`` over
    ``cpu.cfs_period_us`` in version 1.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    quotas = []
    for folder in control_group_folders("cpu", root):
        words = (_read(folder / "cpu.max") or "").split() or [
            _read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")
        ]
        if len(words) == 2 and all(
            word.isdigit() and int(word) for word in words
        ):  # "max" and "-1" are no quota
            quotas.append(int(words[0]) / int(words[1]))
    return round(min(quotas), 2) if quotas else None


# --------------------------------------------------------------------------------------------------------------
# Control groups


def control_group_folders(controller: str, root: Path = _ROOT) -> Iterator[Path]:
    """Folders of the groups that limit this process, its own first and then all above it that can be seen.

    Args:
        controller: ``cpu`` or ``memory``.
        root: where ``proc`` and ``sys`` lie.
    """
    groups = _own_groups(controller, root)
    for version, top_group, place in _mounts(controller, root):
        own = Path(groups.get(version, "/"))
        # Outside of what is mounted where a container sees its own group as the top, or another's namespace.
        below = (
            own.relative_to(top_group) if own.is_relative_to(top_group) and ".." not in own.parts else Path()
        )
        top = root / place.lstrip("/")
        folder = top / below
        yield folder
        yield from (parent for parent in folder.parents if parent == top or top in parent.parents)


def _own_groups(controller: str, root: Path) -> dict[str, str]:
    """This process's group by the type of the file system: a line is ``4:cpu,cpuacct:/a``, in version 2 ``0::/a``."""
    found = {}
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            found["cgroup2"] = group
        elif controller in controllers.split(","):
            found["cgroup"] = group
    return found


def _mounts(controller: str, root: Path) -> list[tuple[str, str, str]]:
    """(type of the file system, group at its top, where it is mounted) of the hierarchies that may hold the limit."""
    found = []
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = (*file_system.split(), "", "", "")[:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            top, place = (
                re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in mount.split()[3:5]
            )
            found.append((kind, top, place))
    usual = "/sys/fs/cgroup"
    return found or [("cgroup2", "/", usual), ("cgroup", "/", f"{usual}/{controller}")]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


# --------------------------------------------------------------------------------------------------------------
# Threads that may not start: the system refuses more of them, or the interpreter is ending


def start_thread(work: Callable[[], None], name: str, *, daemon: bool = False) -> threading.Thread:
    """A thread that has begun; raises ResourceError where none can be started."""
    thread = threading.Thread(target=work, name=name, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:
        raise explain_no_thread(name, error) from error
    return thread


def call_in_a_passing_thread(make: Callable[[], _T], name: str) -> _T:
    """What ``make`` returns or raises, called in a thread that ends with it.

    Raises:
        ResourceError: no thread can be started.
    """
    made: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:
            failed.append(error)

    start_thread(run, name).join()
    if failed:
        raise failed.pop()
    return made.pop()


def explain_no_thread(name: str, error: RuntimeError) -> ResourceError:
    """The error to raise where Python says that it can start no thread."""
    return ResourceError(
        f"The thread {name} cannot be started: {error}.",
        hint="A limit of threads is reached (ulimit -u, or the container's), or the program is ending.",
    )
