"""The pictures that ``predict`` is asked about, one after the other: files, folders, globs, lists, standard input.

Nothing is collected: a folder of a million pictures costs the memory of its largest folder's names.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from edgekiln.runtime.errors import UsageError

__all__ = ["STANDARD_INPUT", "find_pictures", "name_picture"]

STANDARD_INPUT = "-"
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # those that runtime.image decodes


def find_pictures(arguments: Sequence[str], lists: Sequence[str]) -> Iterator[tuple[str, Path | bytes]]:
    """(name, picture) of each, in the order of the arguments; within a folder or glob sorted by name.

    Args:
        arguments: paths of files and folders, globs, and ``-`` for one picture's bytes on standard input.
        lists: files that hold a path per line; ``-`` is standard input.

    Raises:
        UsageError: a folder, glob or list that holds no picture, or standard input asked for twice.
    """
    if [*arguments, *lists].count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input (-) can be read once only.", hint="Leave one of the two out.")
    return _yield_pictures(arguments, lists)


def _yield_pictures(arguments: Sequence[str], lists: Sequence[str]) -> Iterator[tuple[str, Path | bytes]]:
    for argument in arguments:
        if argument == STANDARD_INPUT:
            yield STANDARD_INPUT, sys.stdin.buffer.read()
        else:
            for path in _expand(argument):
                yield name_picture(path), path
    for name in lists:
        for path in _read_list(name):
            yield name_picture(path), path


def name_picture(path: Path) -> str:
    """The path as text that can be printed: bytes that are no UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def _expand(argument: str) -> Iterator[Path]:
    path = Path(argument)
    if path.is_dir():
        yield from _require(_walk(path), f"The folder {name_picture(path)} holds no pictures.", path)
    elif glob.has_magic(argument) and not path.exists():
        found = (p for p in map(Path, sorted(glob.glob(argument, recursive=True))) if p.is_file())  # noqa: PTH207 # absolute ones too
        yield from _require(found, f"No file matches {argument!r}.", path)
    else:
        yield path  # also one that is missing: it is named at the end, and the others are answered


def _require(paths: Iterator[Path], complaint: str, origin: Path) -> Iterator[Path]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise UsageError(
            complaint, hint=f"Wanted files that end in {', '.join(_SUFFIXES)}, at any depth.", path=origin
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures at any depth by their endings, hidden files and folders left out."""

    def refuse(error: OSError) -> None:  # pictures would vanish silently
        raise UsageError(
            f"The folder {error.filename} cannot be read: {error.strerror}.", path=error.filename
        ) from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def _read_list(name: str) -> Iterator[Path]:
    """A path per line, as ``find`` and ``ls`` print them; empty lines are passed over."""
    if name == STANDARD_INPUT:
        yield from _require(_lines(sys.stdin.buffer), "Standard input names no picture.", Path(name))
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 # closed below: only opening is converted
    except OSError as error:
        raise UsageError(f"The list {name} cannot be read: {error.strerror}.", path=name) from error
    with file:
        yield from _require(_lines(file), f"The list {name} names no picture.", Path(name))


def _lines(file: BinaryIO) -> Iterator[Path]:
    """Names of files are bytes, so that they are read as bytes; some editors write a byte order mark."""
    for line in file:
        text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        if text:
            yield Path(os.fsdecode(text))
