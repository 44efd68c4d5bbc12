"""Which files below a folder are pictures: the one rule for training, ``init``, ``predict``, ``bench`` and ``soak``.

Links are followed, and loops end. What a system, an editor, a NAS or edgekiln itself left there is no picture. A file
with a picture's ending is taken at its word, and whoever opens it tells if it is none; of the others the first bytes
decide. TIFF, PGM and PPM are pictures for models with ``sensor_bits`` alone, and TIFF by its ending alone: raw files of
photo cameras begin as TIFFs do. Decodes nothing, and knows no classes.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.encoded import CAMERA_SUFFIXES, SUFFIXES

__all__ = ["LeftOut", "Tell", "list_pictures", "printable_name", "unreadable_folder", "walk_pictures"]


class LeftOut(Enum):
    """Why something below a folder is no picture; the value says it in words, behind a number."""

    NO_PICTURE = "files that are no picture (JPEG, PNG, WebP or BMP)"
    CAMERA = "pictures of a camera (TIFF, PGM or PPM), which the recipe's key data.sensor_bits takes"
    HIDDEN = "hidden names, which begin with a dot"
    SYSTEM = "names of a system, a NAS or a program"
    COPY = "backups of an editor or unfinished copies"
    OWN = "outputs of edgekiln itself"
    LOOP = "links back to a folder above"
    DANGLING = "links that lead nowhere"


Tell: TypeAlias = Callable[[str, LeftOut], None]
"""Is told the path of what is left out, a folder's with a slash behind it, and why."""
_Identity: TypeAlias = "tuple[int, int] | None"  # device and inode: the same by whichever link it was reached

_SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "lost+found",
    "$recycle.bin", "recycler", "system volume information", "__macosx", "__pycache__", "network trash folder",
    "temporary items", ".ipynb_checkpoints", ".thumbnails", ".@__thumb", ".appledouble", ".trashes", ".trash",
    ".spotlight-v100", ".fseventsd", ".documentrevisions-v100", ".git", ".svn", ".cache", ".venv",
})  # fmt: skip
"""Of Synology, QNAP, NetApp, Linux, Windows, macOS, Jupyter and Python, in lower case."""
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_COPY = re.compile(
    r"~$|^#.*#$|\.(bak|backup|old|orig|tmp|temp|part|partial|crdownload|download|swp|swo)$", re.IGNORECASE
)
_RUN_FOLDER = frozenset({"stages", "bundle", "data.json", "transfer"})
"""What a run's folder may hold beside its ``.lock`` and hidden names."""
_SUFFIXES = tuple(sorted(SUFFIXES))
_CAMERA_SUFFIXES = tuple(sorted(CAMERA_SUFFIXES))
_CONTROLS = frozenset({"Cc", "Zl", "Zp"})  # they move the cursor or begin a line
_NETPBM_HEAD = re.compile(rb"P[56]\s+[0-9#]")
_HEAD_BYTES = 18  # of a file, as many as tell its format
_BMP_HEADERS = frozenset(
    {12, 40, 52, 56, 64, 108, 124}
)  # bytes of the header that follows a BMP's first fourteen
_MOST_LINKS = 16  # ways by which one folder is followed: links that cross would lead to millions of paths


def walk_pictures(
    folder: str | os.PathLike[str], tell: Tell, refuse: Callable[[OSError], None], *, camera: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """(path, names of its pictures) of the folder and of each below it: top-down, each list sorted by name.

    A folder without a picture is given too. Nothing is collected: a folder costs the memory of its names.

    Args:
        folder: is looked into whatever its own name is.
        tell: of what is left out.
        refuse: is given the error of each folder that cannot be read; the walk goes on if it returns.
        camera: whether TIFF, PGM and PPM are pictures, as a contract with ``sensor_bits`` says.
    """
    root = os.fspath(folder)
    above: dict[str, frozenset[_Identity]] = {root: frozenset()}  # of the folders still to be read
    reached: Counter[_Identity] = Counter()
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        here = above.pop(place) | {_identify(place)}
        if place != root and (why := _judge_content(folders, files)) is not None:
            folders.clear()
            tell(f"{place}/", why)
            continue
        kept = []
        for name in sorted(folders):
            path = os.path.join(place, name)  # noqa: PTH118 # as os.walk joins
            why = _judge_folder(name) or _judge_link(path, here, reached)
            if why is not None:
                tell(f"{path}/", why)
            else:
                kept.append(name)
                above[path] = here
        folders[:] = kept
        pictures = []
        for name in sorted(files):
            why = _judge_file(place, name)
            if why is None or (camera and why is LeftOut.CAMERA):
                pictures.append(name)
            else:
                tell(os.path.join(place, name), why)  # noqa: PTH118 # as os.walk joins
        yield place, pictures


def list_pictures(folder: Path, *, camera: bool = False) -> list[Path]:
    """The pictures below a folder, sorted; what is left out is not told. ``camera`` as for ``walk_pictures``.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable_folder(error) from error

    found = walk_pictures(folder, lambda path, why: None, refuse, camera=camera)
    return sorted(Path(place, name) for place, names in found for name in names)


def unreadable_folder(error: OSError) -> DataError:
    """What to raise for a folder that cannot be listed: its pictures would vanish."""
    return DataError(
        f"The folder {error.filename} cannot be read: {error.strerror}.",
        hint=f"Run: chmod u+rx '{error.filename}' - or remove it from the data.",
        path=error.filename,
    )


def _judge_folder(name: str) -> LeftOut | None:
    """Why a folder of that name is not looked into; ``None`` where it is."""
    if name.casefold() in _SYSTEM_FOLDERS or name.startswith(".Trash-"):
        return LeftOut.SYSTEM
    return LeftOut.HIDDEN if name.startswith(".") else None


def _judge_content(folders: list[str], files: list[str]) -> LeftOut | None:
    """A run's folder and a bundle are told by what they hold: a class may be called ``runs``."""
    visible = {name for name in (*folders, *files) if not name.startswith(".")}
    if ".lock" in files and visible <= _RUN_FOLDER:
        return LeftOut.OWN
    if "manifest.json" in files and ("report.json" in files or any(n.endswith(".onnx") for n in files)):
        return LeftOut.OWN
    return None


def _judge_link(path: str, above: frozenset[_Identity], reached: Counter[_Identity]) -> LeftOut | None:
    if not os.path.islink(path):  # noqa: PTH114 # texts: Paths cost as much as the system calls
        return None
    identity = _identify(path)
    reached[identity] += 1
    return LeftOut.LOOP if identity in above or reached[identity] > _MOST_LINKS else None


def _judge_file(place: str, name: str) -> LeftOut | None:
    """Why a file is no picture; ``None`` where it is one, or has a picture's ending."""
    lower = name.casefold()
    if lower in _SYSTEM_FILES:
        return LeftOut.SYSTEM
    if name.startswith("."):
        return LeftOut.HIDDEN
    if _COPY.search(lower):
        return LeftOut.COPY
    if lower.endswith(_SUFFIXES):
        return None
    if lower.endswith(_CAMERA_SUFFIXES):
        return LeftOut.CAMERA
    if lower.endswith(".toml"):  # a recipe, which ``init`` may write beside the pictures
        return LeftOut.OWN
    path = os.path.join(place, name)  # noqa: PTH118 # texts, as above
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 # as above
        return LeftOut.DANGLING
    head = _read_head(path)
    if _is_picture_head(head):
        return None
    return LeftOut.CAMERA if _NETPBM_HEAD.match(head) else LeftOut.NO_PICTURE


def _read_head(path: str) -> bytes:
    """The first bytes; none of what cannot be read, or is a pipe, which is not opened."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 # as above
            return b""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 # as above
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _is_picture_head(head: bytes) -> bool:
    """Whether they are those of one of the usual formats."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _identify(folder: str) -> _Identity:
    try:
        status = os.stat(folder)  # noqa: PTH116 # a text, as above
    except OSError:  # os.walk tells of it
        return None
    return status.st_dev, status.st_ino


def printable_name(path: str | os.PathLike[str]) -> str:
    """A path that can be printed and kept: bytes that are no UTF-8 become U+FFFD, control characters ``\\x1b``."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(_escape(c) if unicodedata.category(c) in _CONTROLS else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
