"""Finished parts of a benchmark on disk, so that one that was interrupted goes on where it stopped.

A part is a search or a round. Each is written beside its place, flushed, and moved there in one step, so a part under
its name is whole. Each carries the digest of the plan that it was measured for; parts of another plan are thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Journal", "clear_journal", "plan_digest"]

_PREFIX = "bench-"


def plan_digest(values: Mapping[str, Any], inputs: Path) -> str:
    """sha256 over JSON values and the bytes of the inputs file: what parts must agree in to belong together."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    with inputs.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Journal:
    """Parts by name, each a JSON object; kept in memory alone where there is no folder."""

    def __init__(self, folder: Path | None, plan: str, message: Callable[[str], None]) -> None:
        """Read what is there, and delete what is damaged or of another plan; ``message`` is told of that."""
        self._folder, self._plan = folder, plan
        self._parts: dict[str, dict[str, Any]] = {}
        paths = [] if folder is None else sorted(folder.glob(f"{_PREFIX}*.json"))
        wrong = [path for path in paths if not self._take(path)]
        for path in wrong:
            path.unlink()
        if wrong:
            message(
                f"  {len(wrong)} earlier parts of this benchmark are damaged or of another plan: measured again"
            )

    def _take(self, path: Path) -> bool:
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["plan"] != self._plan:
                return False
            self._parts[path.stem.removeprefix(_PREFIX)] = stored["values"]
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def read(self, name: str) -> dict[str, Any] | None:
        """The values of a finished part, or ``None``."""
        return self._parts.get(name)

    def write(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a finished part; returns its values as they will be read."""
        text = json.dumps({"plan": self._plan, "values": values}, sort_keys=True)
        if self._folder is not None:
            _replace(self._folder / f"{_PREFIX}{name}.json", text)
        stored: dict[str, Any] = json.loads(text)["values"]
        self._parts[name] = stored
        return stored

    def values(self) -> list[dict[str, Any]]:
        """All finished parts."""
        return list(self._parts.values())


def clear_journal(folder: Path) -> None:
    """Delete the parts, once a result that holds what was in them is written."""
    for path in folder.glob(f"{_PREFIX}*.json"):
        path.unlink()


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.part")  # one name: what a kill leaves is overwritten
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
