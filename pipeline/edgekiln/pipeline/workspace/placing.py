"""Gives a finished folder its final name, also where an older one has it: at every moment one of them is there, whole.

Linux exchanges two names in one step (renameat2(2), ``RENAME_EXCHANGE``; since 3.15). File systems that cannot (some
network and overlay ones) get two renames, and a process that dies between them leaves the older folder under
``.old-NAME``: ``restore`` puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

__all__ = ["put_in_place", "restore"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}


def put_in_place(new: Path, place: Path) -> None:
    """Rename the folder ``new`` to ``place`` beside it; a folder that was there is removed afterwards."""
    old = _old(place)
    if not place.exists():
        new.rename(place)
    elif _exchange(new, place):
        shutil.rmtree(new)
    else:
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    _flush(place.parent)


def restore(place: Path) -> None:
    """Put the older folder back where a process died between the two renames, or remove it where the newer is there."""
    old = _old(place)
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _old(place: Path) -> Path:
    return place.with_name(f".old-{place.name}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; ``False`` where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than glibc 2.28
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
