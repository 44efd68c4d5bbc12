"""The result's document: what it holds, whether a part of it failed, and how it is written. Runs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["is_bad", "names_of", "without_nan", "write_document"]


def is_bad(part: Mapping[str, Any]) -> bool:
    """Whether a part, or anything in it, failed."""
    return part["state"] == "failed" or any(_failures(part["result"]))


def _failures(result: Any) -> Iterator[bool]:
    """For a part's result: whether each of its files, contenders, checks or tests failed."""
    if not isinstance(result, Mapping):
        return
    yield bool(result.get("failures"))
    for entry in [*result.values(), *(result.get("contenders") or {}).values()]:
        if isinstance(entry, Mapping):
            yield entry.get("state") == "failed"


def without_nan(value: Any) -> Any:
    """JSON values, with ``None`` for what JSON has no number for: one such figure must not cost all others."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return value


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write JSON so that a reader sees the whole of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def names_of(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated names, each of which has to be known.

    Raises:
        ValueError: one is not.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"got {', '.join(unknown) or 'nothing'}, known: {', '.join(known)}")
    return names
