"""Finds the table that labels the pictures of a folder, in it or beside it: its columns are told by what they hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError

__all__ = ["find_table"]

_LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target")
"""Usual names of the column of labels, the most usual first."""
_SPLIT = "split"
_ENDINGS = frozenset({".csv", ".tsv"})
_LOOKED_AT = 50  # rows whose pictures have to be there; the whole table is read afterwards
_MOST_BYTES = 256 * 2**20


def find_table(folder: Path) -> DataSettings | None:
    """The ``csv`` source of the one table whose paths are pictures below ``folder``; ``None`` without exactly one.

    Raises:
        DataError: a table beside the folder lists its pictures by paths that begin in the folder.
    """
    inside, beside = _list_tables(folder), _list_tables(folder.resolve().parent)
    found = [settings for table in (*inside, *beside) if (settings := _read(table, table.parent, folder))]
    if not found:
        for table in beside:
            if _read(table, folder, folder):
                raise DataError(
                    f"{table} lists the pictures of {folder} by paths that begin in {folder.name}.",
                    hint=f"Move the table into {folder}: the paths of a table are taken from its own folder.",
                    path=table,
                )
    return found[0] if len(found) == 1 else None


def _list_tables(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and path.is_file())
    except OSError:
        return []


def _read(table: Path, start: Path, folder: Path) -> DataSettings | None:
    """The source of a table whose paths are taken from ``start``, if they are pictures below ``folder``."""
    header, rows = _read_rows(table)
    below = folder.resolve()
    paths = [
        column
        for column in header
        if rows and all(_is_below(start / (row.get(column) or ""), below) for row in rows[:_LOOKED_AT])
    ]
    if len(paths) != 1:
        return None
    others = [column for column in header if column not in (paths[0], _SPLIT)]
    usual = [name for word in _LABELS for name in others if name.strip().casefold() == word]
    label = usual[0] if usual else others[0] if len(others) == 1 else None
    if label is None:
        return None
    return DataSettings(source="csv", path=table, path_column=paths[0], label_column=label)


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.is_file() and path.resolve().is_relative_to(folder)
    except (OSError, ValueError):  # no name of a file
        return False


def _read_rows(table: Path) -> tuple[Sequence[str], list[Mapping[str, str | None]]]:
    """Header and first rows; nothing of what is no table."""
    try:
        if table.stat().st_size > _MOST_BYTES:
            return (), []
        text = table.read_text("utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        return reader.fieldnames or (), [row for row, _ in zip(reader, range(_LOOKED_AT), strict=False)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return (), []
