"""Where a file or folder is written before it gets its name, in one step, so that no half of it is ever seen there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from time import time

__all__ = ["ABANDONED_AFTER_S", "ENDING", "place_beside", "remove"]

ABANDONED_AFTER_S = 86_400.0
"""Seconds without a change until what lies there is taken for the rest of a killed process. Whether that still runs
cannot be asked: it may be in another container, or on another machine."""
ENDING = "edgekiln-partial"
_MAX_STEM_BYTES = 200  # of a name, which may have 255 with all that is added


def place_beside(path: Path) -> Path:
    """A name in the folder of ``path`` that nobody else has, to write to and then to rename to ``path``.

    What killed processes left there a day ago or longer is removed.
    """
    stem = os.fsdecode(os.fsencode(path.name)[:_MAX_STEM_BYTES])
    pattern = re.compile(re.escape(f".{stem}.") + r"[0-9a-f]{8}\." + re.escape(ENDING))
    with contextlib.suppress(
        OSError
    ):  # a folder that cannot be listed can perhaps be written, which shows later
        for entry in path.parent.iterdir():
            if pattern.fullmatch(entry.name) and time() - entry.lstat().st_mtime > ABANDONED_AFTER_S:
                remove(entry)
    return path.with_name(f".{stem}.{secrets.token_hex(4)}.{ENDING}")


def remove(place: Path) -> None:
    """Remove what lies at a place, if anything does; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
