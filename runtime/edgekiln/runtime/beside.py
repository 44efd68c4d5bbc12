"""Where a file or folder is written before it gets its name, in one step, so that no half of it is ever seen there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from time import time

__all__ = ["ABANDONED_AFTER_S", "place_beside"]

ABANDONED_AFTER_S = 3600.0
"""Seconds without a change. A process of another machine or container, which cannot be asked for, may still write."""


def place_beside(path: Path) -> Path:
    """A place in the folder of ``path`` for this process to write to, and then to rename to ``path``.

    What killed processes left at such places is removed; what is in the way of this one is, too.
    """
    pattern = re.compile(re.escape(f".{path.name}-") + r"(\d+)")
    with contextlib.suppress(
        OSError
    ):  # a folder that cannot be listed can perhaps be written, which shows later
        for entry in path.parent.iterdir():
            match = pattern.fullmatch(entry.name)
            if match is not None and _is_abandoned(entry, int(match[1])):
                _remove(entry)
    return path.with_name(f".{path.name}-{os.getpid()}")


def _is_abandoned(entry: Path, pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return time() - entry.lstat().st_mtime > ABANDONED_AFTER_S
    except PermissionError:  # somebody else's, and alive
        return False
    return False


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
