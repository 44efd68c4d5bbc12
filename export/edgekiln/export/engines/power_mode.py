"""The power mode of a Jetson, read from nvpmodel's files: it decides how fast each kernel is. Starts no program."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["read_power_mode"]


def read_power_mode(root: Path = Path("/")) -> tuple[str, str | None] | None:
    """(number, name) of the mode that nvpmodel set, its name from nvpmodel's configuration; ``None`` on other machines.

    Args:
        root: below which ``var/lib/nvpmodel/status`` and ``etc/nvpmodel.conf`` lie.
    """
    status = re.search(r"pmode:\s*(\d+)", _read(root / "var/lib/nvpmodel/status") or "")
    config = _read(root / "etc/nvpmodel.conf") or ""
    default = re.search(r"PM_CONFIG\s+DEFAULT=(\d+)", config)
    chosen = status or default
    if chosen is None:
        return None
    number = str(int(chosen[1]))
    names = {str(int(i)): name for i, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", config)}
    return number, names.get(number)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
