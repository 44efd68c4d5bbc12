"""Writes an opened bundle as one ``.zip`` that ``archive.py`` reads: the same bundle gives the same bytes."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from edgekiln.runtime.bundles.archive import MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_TOTAL_BYTES
from edgekiln.runtime.bundles.beside import place_beside, remove
from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.errors import ResourceError, UsageError

__all__ = ["write_zip"]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can tell


def write_zip(bundle: Bundle, path: Path) -> None:
    """Write an opened bundle, its signature included, as one archive that ``read_zip`` takes.

    Members are stored, in order, with one fixed time: the same bundle gives the same bytes, whatever zlib is there.
    They are hashed as they are read. ``path`` is replaced when the archive is complete.

    Raises:
        UsageError: the bundle is larger than ``read_zip`` takes, or ``path`` lies in it or cannot be a file.
        BundleError: a file changed since the bundle was opened.
        ResourceError: no space.
    """
    sizes = [record.size for record in bundle.files.values()]
    total = MAX_TOTAL_BYTES - 2**26  # room for manifest, signature and headers
    if sum(sizes) > total or max(sizes, default=0) > MAX_MEMBER_BYTES or len(sizes) > MAX_MEMBERS - 2:
        raise UsageError(
            f"{bundle.path} is too large for an archive: at most {MAX_MEMBERS - 2} files, {MAX_MEMBER_BYTES} bytes "
            f"each and {total} together.",
            hint="Ship the folder.",
            path=bundle.path,
        )
    _check_target(bundle, path)
    beside = place_beside(path)
    try:
        _write_members(bundle, beside)
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}.", path=path) from error
    finally:
        remove(beside)


def _check_target(bundle: Bundle, path: Path) -> None:
    try:
        folder = path.resolve().parent
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}.", hint="Make it first.", path=folder)
        found = "it is a folder" if path.is_dir() else "it would lie in the bundle itself"
        if path.is_dir() or folder == bundle.path.resolve():
            raise UsageError(
                f"{path} cannot be written: {found}.", hint="Name a file in another folder.", path=path
            )
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, or links that lead in a circle
        raise UsageError(f"{str(path)[:200]!r} is no path to write to: {error}.") from error


def _write_members(bundle: Bundle, path: Path) -> None:
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in bundle.members():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.create_system = 3  # Unix, wherever it is written
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, data)
        file.flush()
        os.fsync(file.fileno())
