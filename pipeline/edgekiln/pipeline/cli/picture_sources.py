"""The pictures that ``predict`` is asked about, one after the other: files, folders, globs, lists, standard input.

Nothing is collected: a folder of a million pictures costs the memory of its largest folder's names.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from edgekiln.runtime.errors import ImageError, UsageError
from edgekiln.runtime.pictures.encoded import SUFFIXES, read_at_most
from edgekiln.runtime.pictures.finding import LeftOut, printable_name, walk_pictures
from edgekiln.runtime.pictures.limits import MAX_BYTES

__all__ = ["STANDARD_INPUT", "PictureSearch", "name_picture"]

STANDARD_INPUT = "-"
_PEEKED = 4096  # bytes of a list that are looked at first: a picture has a NUL among them
_SUFFIXES = tuple(sorted(SUFFIXES))
_ENDINGS = f"Wanted files that end in {', '.join(_SUFFIXES)}, at any depth."

_Found: TypeAlias = "Path | ImageError"


class PictureSearch:
    """(name, picture) of each, in the order of the arguments; within a folder or glob sorted by name.

    In a picture's place stands the error where an argument led to none: the others are found all the same.

    Args:
        arguments: paths of files and folders, globs, and ``-`` for one picture's bytes on standard input.
        lists: files that hold a path per line; ``-`` is standard input.

    Attributes:
        camera: whether TIFF, PGM and PPM of folders are taken, as the contract says; to be set before the first one.
        passed_over: how many files of the folders so far are no pictures, by ending.
        left_out: how many files and folders are left out for another reason.

    Raises:
        UsageError: standard input asked for twice.
    """

    def __init__(self, arguments: Sequence[str], lists: Sequence[str]) -> None:
        if [*arguments, *lists].count(STANDARD_INPUT) > 1:
            raise UsageError("Standard input (-) can be read once only.", hint="Leave one of the two out.")
        self._arguments, self._lists = arguments, lists
        self.camera = False
        self.passed_over: Counter[str] = Counter()
        self.left_out: Counter[LeftOut] = Counter()
        self._examples: dict[LeftOut, str] = {}
        self._camera_files = 0

    def __iter__(self) -> Iterator[tuple[str, Path | bytes | ImageError]]:
        for argument in self._arguments:
            if argument == STANDARD_INPUT:
                # One byte more shows that it is too long.
                yield STANDARD_INPUT, read_at_most(sys.stdin.buffer, MAX_BYTES + 1)
            else:
                yield from _name(self._expand(argument))
        for name in self._lists:
            yield from _name(_read_list(name))

    def describe_passed_over(self) -> list[str]:
        """Sentences for people; none where nothing was passed over."""
        told = [
            f"Left out: {count} {why.value}; the first is {printable_name(self._examples[why])}."
            for why, count in self.left_out.items()
        ]
        if count := self.passed_over.total():
            endings = ", ".join(ending or "none at all" for ending in sorted(self.passed_over))
            passed = f"{count} file{'' if count == 1 else 's'} passed over: no picture's ending"
            told.insert(0, f"{passed} ({endings}). {_ENDINGS}")
        if self._camera_files:
            told.append(
                f"{self._camera_files} of them TIFF, PGM or PPM: for models whose recipe has data.sensor_bits."
            )
        return told

    def _expand(self, argument: str) -> Iterator[_Found]:
        path = Path(argument)
        if _is_no_path(path):
            yield path
        elif path.is_dir():
            complaint = f"The folder {printable_name(path)} holds no pictures."
            yield from _require(self._walk(path), complaint, path)
        elif glob.has_magic(argument) and not path.exists():
            found = (p for p in map(Path, sorted(glob.glob(argument, recursive=True))) if p.is_file())  # noqa: PTH207 # absolute ones too
            yield from _require(found, f"No file matches {argument!r}.", path)
        else:
            yield path  # also one that is missing: whoever opens it says so

    def _walk(self, folder: Path) -> Iterator[_Found]:
        """Pictures at any depth, by the rule that training follows too; see ``walk_pictures``."""
        refused: list[OSError] = []
        for place, names in walk_pictures(folder, self._tell, refused.append, camera=self.camera):
            yield from (Path(place, name) for name in names)
        yield from map(_unreadable_folder, refused)

    def _tell(self, path: str, why: LeftOut) -> None:
        if why in {LeftOut.NO_PICTURE, LeftOut.CAMERA}:
            self._camera_files += why is LeftOut.CAMERA
            self.passed_over[Path(path).suffix.lower()] += 1
        else:
            self.left_out[why] += 1
            self._examples.setdefault(why, path)


def name_picture(path: Path) -> str:
    """The path as text, for rows that programs read: bytes that are no UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def _name(found: Iterable[_Found]) -> Iterator[tuple[str, _Found]]:
    for item in found:
        path = Path(item.path or "") if isinstance(item, ImageError) else item
        yield name_picture(path), item


def _unreadable_folder(error: OSError) -> ImageError:
    return ImageError(
        f"The folder {error.filename} cannot be read: {error.strerror}.",
        reason="unreadable",
        hint="Check who owns it and its permissions.",
        path=error.filename,
    )


def _require(paths: Iterator[_Found], complaint: str, origin: Path, hint: str = _ENDINGS) -> Iterator[_Found]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        yield ImageError(complaint, reason="missing", hint=hint, path=origin)


def _read_list(name: str) -> Iterator[_Found]:
    """A path per line, as ``find`` and ``ls`` print them; empty lines are passed over."""
    hint = "Wanted the path of a picture per line."
    if name == STANDARD_INPUT:
        yield from _require(_lines(sys.stdin.buffer), "Standard input names no picture.", Path(name), hint)
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 # closed below: only opening is converted
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        yield ImageError(
            f"The list {name} cannot be read: {error.strerror}.", reason=reason, hint=hint, path=name
        )
        return
    with file:
        if b"\0" in file.peek(_PEEKED)[:_PEEKED]:
            yield ImageError(
                f"{name} is no list of paths: it holds bytes that no text has.",
                reason="format",
                hint="A picture is named without --from-file.",
                path=name,
            )
            return
        yield from _require(_lines(file), f"The list {name} names no picture.", Path(name), hint)


def _lines(file: BinaryIO) -> Iterator[Path]:
    """Names of files are bytes, so that they are read as bytes; some editors write a byte order mark."""
    for line in file:
        text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        if text:
            yield Path(os.fsdecode(text))


def _is_no_path(path: Path) -> bool:
    """A name that is too long or holds a NUL: opening it tells so, and the other pictures are answered."""
    try:
        path.exists()
    except (OSError, ValueError):
        return True
    return False
