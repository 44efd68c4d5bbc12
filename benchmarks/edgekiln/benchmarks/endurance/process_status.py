"""What this process holds of memory and of file descriptors, as /proc tells it."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep

from edgekiln.runtime.errors import EnvironmentProblem

__all__ = ["read_descriptors", "read_rss_mb"]


def read_rss_mb(status: Path = Path("/proc/self/status")) -> float:
    """Resident memory of this process in MB of 1e6 bytes; raises EnvironmentProblem where there is no /proc."""
    try:
        lines = status.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) * 1024 / 1e6
    except (OSError, StopIteration) as error:
        raise EnvironmentProblem(f"Memory cannot be read: there is no VmRSS in {status}.") from error


def read_descriptors(looks: int = 50, pause_s: float = 0.002) -> int:
    """Open file descriptors of this process: the fewest of several looks, as threads that read files hold some."""
    counts = []
    for _ in range(looks):
        counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 # a plain count; no paths are needed
        sleep(pause_s)
    return min(counts)
