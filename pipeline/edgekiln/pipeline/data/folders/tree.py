"""What lies below a folder, as far as it counts for labelled pictures: folders, pictures, and what was left out."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgekiln.runtime.pictures.finding import LeftOut, printable_name, unreadable_folder, walk_pictures

__all__ = ["Folder", "Tree", "draw_tree", "read_tree", "same_name"]

_DRAWN_DEPTH, _DRAWN_ENTRIES = 3, 6


@dataclass(slots=True)
class Folder:
    """A folder with what counts in it.

    Attributes:
        name: as the system gives it; empty for the root.
        path: relative to the root, empty for the root itself.
        pictures: names of its own pictures, sorted.
        folders: below it, sorted by name.
        others: how many of its own files are no pictures.
        holds_own: whether edgekiln's own output lies directly below it.
        total: pictures in it and below.
    """

    name: str
    path: str
    pictures: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    others: int = 0
    holds_own: bool = False
    total: int = 0

    @property
    def key(self) -> str:
        """The path as reports can hold it."""
        return printable_name(self.path)

    @property
    def filled(self) -> list[Folder]:
        """The folders that hold pictures, at any depth."""
        return [folder for folder in self.folders if folder.total]

    def list_pictures(self) -> list[str]:
        """Paths of all pictures, relative to this folder, sorted by their parts."""
        return sorted(self._walk(""), key=lambda name: name.split("/"))

    def _walk(self, prefix: str) -> Iterator[str]:
        yield from (f"{prefix}{name}" for name in self.pictures)
        for folder in self.folders:
            yield from folder._walk(f"{prefix}{folder.name}/")


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole tree.

    Attributes:
        place: of the root, as it was asked for.
        left_out: (key, why) of every file and folder that is no picture; a folder's key ends with a slash.
        camera: whether TIFF, PGM and PPM are pictures.
    """

    place: Path
    root: Folder
    left_out: list[tuple[str, LeftOut]]
    camera: bool = False


def read_tree(place: Path, *, camera: bool = False) -> Tree:
    """List what lies below a folder; ``camera`` as for ``walk_pictures``.

    Raises:
        DataError: a folder in it cannot be read: its pictures would vanish.
    """
    start = os.fspath(place)
    folders: dict[str, Folder] = {start: Folder("", "")}
    left_out: list[tuple[str, LeftOut]] = []

    def at(path: str) -> Folder:
        if path not in folders:
            above, name = os.path.split(path)  # top-down: the folder above is there
            folders[path] = Folder(name, f"{folders[above].path}/{name}".lstrip("/"))
            folders[above].folders.append(folders[path])
        return folders[path]

    def tell(path: str, why: LeftOut) -> None:
        left_out.append(
            (printable_name(os.path.relpath(path, start)) + ("/" if path.endswith("/") else ""), why)
        )
        above = at(os.path.dirname(path.rstrip("/")))  # noqa: PTH120 # texts: 100,000 Paths cost seconds
        above.others += not path.endswith("/")
        above.holds_own |= why is LeftOut.OWN

    def refuse(error: OSError) -> None:
        raise unreadable_folder(error) from error

    for path, pictures in walk_pictures(start, tell, refuse, camera=camera):
        at(path).pictures = pictures
    root = folders[start]
    _complete(root)
    return Tree(place, root, left_out, camera)


def _complete(folder: Folder) -> None:
    """Count pictures from below, and drop folders that hold edgekiln's own output and nothing else."""
    for inner in folder.folders:
        _complete(inner)
    folder.holds_own |= any(map(_is_own, folder.folders))
    folder.folders = sorted((f for f in folder.folders if not _is_own(f)), key=lambda f: f.name)
    folder.total = len(folder.pictures) + sum(inner.total for inner in folder.folders)


def _is_own(folder: Folder) -> bool:
    return folder.holds_own and not folder.total and not folder.folders


def draw_tree(tree: Tree) -> str:
    """The tree on one line: ``photos/{train/{cat/ 40, dog/ 40}, test/ 60}``; the numbers are pictures."""
    return f"{printable_name(tree.place.resolve().name or tree.place)}{_draw(tree.root, 0)}"


def _draw(folder: Folder, depth: int) -> str:
    if not folder.folders or depth == _DRAWN_DEPTH:
        return f"/ {folder.total}"
    shown = folder.folders[:_DRAWN_ENTRIES]
    entries = [f"{printable_name(inner.name)}{_draw(inner, depth + 1)}" for inner in shown]
    if len(folder.folders) > len(shown):
        entries.append(f"{len(folder.folders) - len(shown)} more folders")
    if folder.pictures:
        entries.append(f"{len(folder.pictures)} pictures")
    return f"/{{{', '.join(entries)}}}"


def same_name(name: str) -> str:
    """One spelling for names that a person reads as one: composed letters, no blanks at the ends."""
    return unicodedata.normalize("NFC", name).strip()
