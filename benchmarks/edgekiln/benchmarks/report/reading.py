"""Reads a ``report.json`` that may be newer than this code, cut off, or no report at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.errors import UntrustedError, UsageError

__all__ = ["REPORT_NAME", "REPORT_SCHEMA", "parse_report", "read_bundled_report", "read_report"]

REPORT_NAME = "report.json"
"""In a bundle and in a run's folder."""

REPORT_SCHEMA = "1.2"
"""What is written: "major.minor"."""

_MAJOR = 1
_MAX_BYTES = 256 * 2**20
_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "recipe": dict, "data": dict, "contract": dict, "baseline": dict, "variants": list, "notices": list,
    "machine": dict, "benchmark": (dict, type(None)),
}  # fmt: skip
_WHERE = "Give the report.json that `edgekiln run` wrote; the same run again makes a damaged one anew."
_COLUMNS = ("name", "backend", "precision", "verdict", "reason", "flips")


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report in a file, its schema and its parts checked.

    Raises:
        UsageError: there is no such file.
        UntrustedError: no JSON, no report, or one of a newer major version.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", hint=_WHERE, path=path)
    if path.stat().st_size > _MAX_BYTES:
        raise UntrustedError(
            f"{path} is larger than any report: {path.stat().st_size} bytes.", hint=_WHERE, path=path
        )
    return parse_report(path.read_bytes(), path)


def read_bundled_report(bundle: Bundle) -> dict[str, Any] | None:
    """The report of a bundle, folder or ``.zip``, its bytes checked against the manifest; ``None`` without one.

    Raises:
        UntrustedError: as ``read_report``, or it was changed since the bundle was opened.
    """
    if REPORT_NAME not in bundle.files:
        return None
    return parse_report(bundle.read(REPORT_NAME), bundle.path / REPORT_NAME)


def parse_report(raw: bytes, path: Path) -> dict[str, Any]:
    """The report in ``raw``, its schema and its parts checked; ``path`` is where it was found.

    Raises:
        UntrustedError: no JSON, no report, or one of a newer major version.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UntrustedError(
            f"{path} is no JSON that can be read, it may be cut off: {error}.", hint=_WHERE, path=path
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("schema_version"), str):
        raise UntrustedError(f"{path} is no report: it has no schema version.", hint=_WHERE, path=path)
    _check_version(values["schema_version"], path)
    for name, kind in _PARTS.items():
        if name not in values or not isinstance(values[name], kind):
            raise UntrustedError(
                f"{path} is no whole report: {name!r} is missing or of another kind.", hint=_WHERE, path=path
            )
    for row in values["variants"]:
        if not isinstance(row, dict) or any(key not in row for key in _COLUMNS):
            raise UntrustedError(
                f"{path} is no whole report: a variant lacks what one needs.", hint=_WHERE, path=path
            )
    return values


def _check_version(version: str, path: Path) -> None:
    """Every minor version of this major one is read: what it adds is not shown."""
    major = version.partition(".")[0]
    if major != str(_MAJOR):
        newer = major.isdecimal() and int(major) > _MAJOR
        raise UntrustedError(
            f"{path} has schema version {version}, this edgekiln reads {_MAJOR}.x.",
            hint="Update edgekiln." if newer else _WHERE,
            path=path,
        )
